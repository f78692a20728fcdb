"""What a preparation is going to do: its settings checked, its inputs found and cut into tasks."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recipes.common.errors import UserError
from recipes.corpus.encode_shards import Task
from recipes.corpus.input_files import DOCUMENTS_PER, Ignored, Layout
from recipes.corpus.preparation_checks import check_documents
from recipes.corpus.text_records import TEXTUAL, Span
from recipes.corpus.text_sources import (
    Portion,
    find_inputs,
    hub_splits,
    is_hub_name,
    portions,
    source,
)
from recipes.corpus.tokenizer import Tokenizer

DEFAULT_VOCAB_SIZE = 30522


@dataclass(frozen=True)
class Plan:
    """Everything that decides the result.

    Attributes:
        options: the settings, as JSON types; a preparation continues only with the same.
        tokenizer: the one to use; None to train one.
        tasks: one per shard; those of the validation input last.
        input_digest: SHA-256 of names, sizes and cuts: notices that an input has changed.
        input_times: SHA-256 of when each file was written last: notices a change in place.
        held_out_fraction: of the documents; 0 with a validation input of its own.
        ignored: files that are not read.
        messages: what the user should know about the inputs found.
    """

    options: Mapping[str, Any]
    tokenizer: Tokenizer | None
    tasks: tuple[Task, ...]
    input_digest: str
    input_times: str
    held_out_fraction: float
    ignored: Ignored
    messages: tuple[str, ...]

    def portions(self, split: str) -> tuple[Portion, ...]:
        return tuple(task.portion for task in self.tasks if task.split == split)


def make_plan(args: argparse.Namespace) -> Plan:
    """Check the settings, find the inputs and cut them into shards.

    Raises:
        UserError: every fault found, one message each.
    """
    faults = [*args.faults, *_option_faults(args)]
    tokenizer = None
    if args.tokenizer is not None:
        try:
            tokenizer = Tokenizer(args.tokenizer)
        except UserError as error:
            faults += error.faults
    spans, ignored, messages = _find_spans(args, faults)
    train, validation = spans["train"], spans["validation"]
    held_out_sources = set(map(source, validation))
    kept = tuple(span for span in train if source(span) not in held_out_sources)
    if both := sorted({span.name for span in train} - {span.name for span in kept}):
        shown = [*both[:3], f"{len(both) - 3} more"] if len(both) > 4 else both
        messages.append(f"validation only: {', '.join(shown)}")
    if not kept:
        raise UserError("all of --input is also --validation-input: nothing is left to train on")
    tasks = [
        Task(split, number, portion)
        for split, of_split in (("train", kept), ("validation", validation))
        for number, portion in enumerate(portions(of_split, args.shards, args.max_documents))
    ]
    for split in spans:
        of_split = [task.portion for task in tasks if task.split == split]
        check_documents(of_split, args.text_key, args.max_bad_fraction)
    digest = hashlib.sha256(json.dumps([asdict(task) for task in tasks]).encode()).hexdigest()
    return Plan(
        _options(args, tokenizer),
        tokenizer,
        tuple(tasks),
        digest,
        _input_times(kept + validation),
        0.0 if validation else args.validation_fraction,
        ignored,
        tuple(messages),
    )


def _find_spans(
    args: argparse.Namespace, faults: list[str]
) -> tuple[dict[str, tuple[Span, ...]], Ignored, list[str]]:
    """The spans of either split, what is not read, and messages.

    Raises:
        UserError: `faults`, and those found here.
    """
    messages: list[str] = []
    spans: dict[str, tuple[Span, ...]] = {"train": (), "validation": ()}
    ignored = Ignored()
    layout = Layout(args.format, args.documents_per)
    for split, names in (("train", args.input), ("validation", args.validation_input)):
        try:
            found = find_inputs(names, args.config, split, layout, args.output)
        except UserError as error:
            faults += error.faults
            continue
        spans[split] = found.spans
        ignored.merge(found.ignored)
        if found.ignored.total:
            messages.append(found.ignored.describe())
    kinds = {span.kind for of_split in spans.values() for span in of_split}
    if (
        args.documents_per != "paragraph"
        and kinds
        and DOCUMENTS_PER[args.documents_per] not in kinds
    ):
        faults.append(f"--documents-per {args.documents_per}: only for plain text, and no input is")
    if args.format is not None and kinds and not kinds & {*TEXTUAL, "parquet"}:
        faults.append(f"--format {args.format}: only for files, and no input is one")
    if faults:
        raise UserError(*faults)
    if not args.validation_input and all(map(is_hub_name, args.input)):
        if all("validation" in hub_splits(name, args.config) for name in args.input):
            spans["validation"] = find_inputs(args.input, args.config, "validation").spans
            messages.append("validation: the dataset's own validation split")
    return spans, ignored, messages


def _options(args: argparse.Namespace, tokenizer: Tokenizer | None) -> dict[str, Any]:
    normalizer = args.normalizer or ("nmt_nfkc" if args.cased else "nmt_nfkc_cf")
    vocab_size = getattr(args, "vocab_size", DEFAULT_VOCAB_SIZE)
    return {
        "input": args.input,
        "config": args.config,
        "text_key": args.text_key,
        "format": args.format,
        "documents_per": args.documents_per,
        "validation_input": args.validation_input,
        "validation_fraction": args.validation_fraction,
        "tokenizer": tokenizer and tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size if tokenizer else vocab_size,
        "cased": not tokenizer.lower_case if tokenizer else not normalizer.endswith("_cf"),
        "normalizer": None if tokenizer else normalizer,
        "tokenizer_sample_mb": args.tokenizer_sample_mb,
        "shards": args.shards,
        "max_documents": args.max_documents,
    }


def _input_times(spans: Iterable[Span]) -> str:
    files = sorted({span.name for span in spans if os.path.isfile(span.name)})
    times = [(name, os.stat(name).st_mtime_ns) for name in files]
    return hashlib.sha256(json.dumps(times).encode()).hexdigest()


def _option_faults(args: argparse.Namespace) -> Iterator[str]:
    if args.output.exists() and not args.output.is_dir():
        yield f"--output {args.output}: is a file; name a directory"
    if args.tokenizer is not None and (hasattr(args, "vocab_size") or args.cased):
        yield "--tokenizer brings its own vocabulary: --vocab-size and --cased do not apply"
    if args.tokenizer is not None and args.normalizer:
        yield "--tokenizer brings its own normaliser: --normalizer does not apply"
    if args.cased and args.normalizer and args.normalizer.endswith("_cf"):
        keeps = args.normalizer.removesuffix("_cf")
        yield f"--cased keeps case, --normalizer {args.normalizer} folds it; {keeps} keeps it"
    if args.config is not None and not any(map(is_hub_name, args.input + args.validation_input)):
        yield f"--config {args.config}: only for hub datasets, and no input is one"
