"""Plans a preparation: checks the settings, finds the inputs, cuts them into shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipes.common.errors import Faults, UserError
from recipes.common.json_content import Json
from recipes.corpus.encode_shards import ShardPlan
from recipes.corpus.input_files import DOCUMENTS_PER, Ignored, Layout
from recipes.corpus.preparation_checks import check_documents
from recipes.corpus.preparation_settings import DEFAULT_VOCAB_SIZE, Settings
from recipes.corpus.text_records import TEXTUAL, Span
from recipes.corpus.text_sources import (
    Portion,
    find_inputs,
    hub_splits,
    is_hub_name,
    place_of,
    portions,
)
from recipes.corpus.tokenizer import Tokenizer, open_tokenizer


@dataclass(frozen=True)
class Plan:
    """Everything that decides the result.

    Attributes:
        options: the settings that decide it, as JSON types; a preparation continues only with the
            same. Older preparations are recognised by these names and values.
        tokenizer: the given one; None if one is to be trained.
        shards: in the order of the input, those of the validation input last.
        input_digest: SHA-256 of names, sizes and cuts: tells that an input has changed.
        input_times: SHA-256 of the times of the last writing: tells of a change in place.
        held_out_fraction: share of the documents that is held out; 0 with a validation input.
        ignored: files that are not read.
        messages: what the user should know about the inputs found.
    """

    options: Mapping[str, Any]
    tokenizer: Tokenizer | None
    shards: tuple[ShardPlan, ...]
    input_digest: str
    input_times: str
    held_out_fraction: float
    ignored: Ignored
    messages: tuple[str, ...]

    def portions(self, split: str) -> tuple[Portion, ...]:
        """The parts of the input that are read for a split."""
        return tuple(shard.portion for shard in self.shards if shard.split == split)

    @property
    def kinds(self) -> set[str]:
        """Kinds of the inputs, such as `jsonl` and `text`."""
        return {span.kind for shard in self.shards for span in shard.portion.spans}


def make_plan(settings: Settings, faults: Sequence[str] = ()) -> Plan:
    """Check the settings, find the inputs and cut them into shards.

    Args:
        faults: found so far, to be named beside those found here.

    Raises:
        UserError: every fault found, one message each.
    """
    found = Faults([*faults, *_option_faults(settings)])
    path = settings.vocabulary.tokenizer
    tokenizer = None if path is None else found.attempt(lambda: open_tokenizer(path))
    spans, ignored, messages = _find_spans(settings, found)
    train, validation = spans["train"], spans["validation"]
    held_out = set(map(place_of, validation))
    kept = tuple(span for span in train if place_of(span) not in held_out)
    if both := sorted({span.name for span in train} - {span.name for span in kept}):
        shown = [*both[:3], f"{len(both) - 3} more"] if len(both) > 4 else both
        messages.append(f"validation only: {', '.join(shown)}")
    if not kept:
        raise UserError("all of --input is also --validation-input: nothing is left to train on")
    text = settings.text
    shards = [
        ShardPlan(split, number, portion)
        for split, of_split in (("train", kept), ("validation", validation))
        for number, portion in enumerate(portions(of_split, settings.shards, text.max_documents))
    ]
    for split in spans:
        of_split = [shard.portion for shard in shards if shard.split == split]
        check_documents(of_split, text.text_key, text.max_bad_fraction)
    digest = hashlib.sha256(json.dumps([asdict(shard) for shard in shards]).encode()).hexdigest()
    return Plan(
        _options(settings, tokenizer),
        tokenizer,
        tuple(shards),
        digest,
        _input_times(kept + validation),
        0.0 if validation else settings.validation.validation_fraction,
        ignored,
        tuple(messages),
    )


def print_plan(plan: Plan, output: Path) -> None:
    """Print what a preparation into `output` would do."""
    for name, value in plan.options.items():
        print(f"{name:>20} = {json.dumps(value)}")
    for split in dict.fromkeys(shard.split for shard in plan.shards):
        of_split = plan.portions(split)
        size = sum(portion.size for portion in of_split)
        print(f"{split:>20} : {len(of_split)} shards of {size / 1e6:,.1f} MB on disk")
    if plan.held_out_fraction:
        print(f"{'':>20}   {plan.held_out_fraction:.2%} of the training documents are held out")
    print(f"{'output':>20} = {output} (nothing written: --dry-run)")


def _find_spans(
    settings: Settings, faults: Faults
) -> tuple[dict[str, tuple[Span, ...]], Ignored, list[str]]:
    """Find the spans of either split, the files that are not read, and what to say about them.

    Raises:
        UserError: `faults`, and those found here.
    """
    text, held_out = settings.text, settings.validation.validation_input
    messages: list[str] = []
    spans: dict[str, tuple[Span, ...]] = {"train": (), "validation": ()}
    ignored = Ignored()
    layout = Layout(text.format, text.documents_per)
    for split, names in (("train", text.input), ("validation", held_out)):
        try:
            found = find_inputs(names, text.config, split, layout, settings.output)
        except UserError as error:
            faults += error.faults
            continue
        spans[split] = found.spans
        ignored.merge(found.ignored)
        if found.ignored.total:
            messages.append(found.ignored.describe())
    faults += _kind_faults(settings, {span.kind for found in spans.values() for span in found})
    faults.stop()
    if not held_out and all(map(is_hub_name, text.input)):
        if all("validation" in hub_splits(name, text.config) for name in text.input):
            spans["validation"] = find_inputs(text.input, text.config, "validation").spans
            messages.append("validation: the dataset's own validation split")
    return spans, ignored, messages


def _options(settings: Settings, tokenizer: Tokenizer | None) -> Json:
    text, validation, vocabulary = settings.text, settings.validation, settings.vocabulary
    normalizer = vocabulary.normalizer or ("nmt_nfkc" if vocabulary.cased else "nmt_nfkc_cf")
    vocab_size = vocabulary.vocab_size or DEFAULT_VOCAB_SIZE
    return {
        "input": list(text.input),
        "config": text.config,
        "text_key": text.text_key,
        "format": text.format,
        "documents_per": text.documents_per,
        "validation_input": list(validation.validation_input),
        "validation_fraction": validation.validation_fraction,
        "tokenizer": tokenizer and tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size if tokenizer else vocab_size,
        "cased": not tokenizer.lower_case if tokenizer else not normalizer.endswith("_cf"),
        "normalizer": None if tokenizer else normalizer,
        "tokenizer_sample_mb": vocabulary.tokenizer_sample_mb,
        "shards": settings.shards,
        "max_documents": text.max_documents,
    }


def _input_times(spans: Iterable[Span]) -> str:
    files = sorted({span.name for span in spans if Path(span.name).is_file()})
    times = [(name, Path(name).stat().st_mtime_ns) for name in files]
    return hashlib.sha256(json.dumps(times).encode()).hexdigest()


def _option_faults(settings: Settings) -> Iterator[str]:
    """Name the options that contradict each other or the output."""
    output, text, vocabulary = settings.output, settings.text, settings.vocabulary
    cased, normalizer = vocabulary.cased, vocabulary.normalizer
    if output.exists() and not output.is_dir():
        yield f"--output {output}: is a file; name a directory"
    if (output / "config.json").exists():
        yield f"--output {output}: holds a run or a model (config.json); name a directory for data"
    if vocabulary.tokenizer is not None and (vocabulary.vocab_size is not None or cased):
        yield "--tokenizer brings its own vocabulary: --vocab-size and --cased do not apply"
    if vocabulary.tokenizer is not None and normalizer:
        yield "--tokenizer brings its own normaliser: --normalizer does not apply"
    if cased and normalizer and normalizer.endswith("_cf"):
        keeps = normalizer.removesuffix("_cf")
        yield f"--cased keeps case, --normalizer {normalizer} folds it; {keeps} keeps it"
    names = text.input + settings.validation.validation_input
    if text.config is not None and not any(map(is_hub_name, names)):
        yield f"--config {text.config}: only for hub datasets, and no input is one"


def _kind_faults(settings: Settings, kinds: set[str]) -> Iterator[str]:
    """Name the options that are for other kinds of input than the ones found."""
    per, format = settings.text.documents_per, settings.text.format
    if per != "paragraph" and kinds and DOCUMENTS_PER[per] not in kinds:
        yield f"--documents-per {per}: only for plain text, and no input is"
    if format is not None and kinds and not kinds & {*TEXTUAL, "parquet"}:
        yield f"--format {format}: only for files, and no input is one"
