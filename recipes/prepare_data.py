"""Text to tokenizer and token shards: the first command of every run.

    python recipes/prepare_data.py --output data/demo --vocab-size 4096
    python recipes/prepare_data.py --input allenai/c4 --config en --output data/c4 --workers 32

The input is cut into portions; worker processes read and encode them, one shard each, and the main
process only keeps the books. What is finished is noted in `progress.json` after every shard, and
the same command continues from there. `manifest.json` is written last: without it nothing is
prepared. Documents are stored whole and without special tokens.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from recipes.common.cli import PART, SHARE, ArgumentParser, whole  # noqa: E402
from recipes.common.entry import run  # noqa: E402
from recipes.common.errors import UserError  # noqa: E402
from recipes.common.files import write_whole  # noqa: E402
from recipes.common.locks import lock, unlock_if_alone  # noqa: E402
from recipes.corpus.encode_shards import (  # noqa: E402
    Job,
    encode_portions,
)
from recipes.corpus.held_out import HeldOut, find_held_out  # noqa: E402
from recipes.corpus.input_files import DOCUMENTS_PER, FORMATS  # noqa: E402
from recipes.corpus.preparation_checks import odd_results  # noqa: E402
from recipes.corpus.preparation_plan import DEFAULT_VOCAB_SIZE, Plan, make_plan  # noqa: E402
from recipes.corpus.preparation_progress import (  # noqa: E402
    PROGRESS_NAME,
    Progress,
    clear,
    is_prepared,
    read_progress,
    remove_partial_files,
)
from recipes.corpus.text_records import Skipped  # noqa: E402
from recipes.corpus.text_sources import (  # noqa: E402
    EMBEDDED,
    Portion,
)
from recipes.corpus.token_shards import MANIFEST_FORMAT, MANIFEST_NAME  # noqa: E402
from recipes.corpus.tokenizer import (  # noqa: E402
    MIN_VOCAB_SIZE,
    NORMALIZERS,
    SPECIAL_IDS,
    Tokenizer,
    train_tokenizer,
)

SAMPLED_PORTIONS = 64  # the tokenizer's sample comes from at most so many places of the input


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code.

    Raises:
        UserError: every fault of the settings and inputs, or what stopped the work.
    """
    args = _parser().parse_args(arguments)
    made = not args.output.exists()
    try:
        return _prepare(args)
    except UserError:
        if made:
            unlock_if_alone(args.output)
            with suppress(OSError):  # unless something is in it
                args.output.rmdir()
        raise
    except OSError as error:
        raise UserError(_explain(error, args.output)) from error
    except KeyboardInterrupt:
        print("stopped; the same command continues after the last finished shard", file=sys.stderr)
        return 130


def _prepare(args: argparse.Namespace) -> int:
    output: Path = args.output
    plan = make_plan(args)
    for message in plan.messages:
        print(message)
    if args.dry_run:
        _print_dry_run(plan, output)
        return 0
    output.mkdir(parents=True, exist_ok=True)
    lock(output, "preparing data into it")
    wanted = (plan.options, plan.input_digest, plan.input_times)
    progress = None
    if args.overwrite:
        clear(output)
    elif is_prepared(output, *wanted):
        print(f"{output}: already prepared with these options")
        return 0
    else:
        progress = read_progress(output, *wanted)
    held_out = find_held_out(
        plan.portions("train"),
        plan.portions("validation"),
        plan.held_out_fraction,
        args.text_key,
        args.max_bad_fraction,
    )
    if progress is None:
        tokenizer = _make_tokenizer(args, plan, held_out)
        progress = Progress(*wanted, tokenizer.fingerprint)
        progress.save(output)
    else:
        tokenizer = Tokenizer(output / "tokenizer.model")
        if tokenizer.fingerprint != progress.fingerprint:
            raise UserError(f"{tokenizer.path}: changed since the preparation started; --overwrite")
        print(f"continuing: {len(progress.finished)} of {len(plan.tasks)} shards are finished")
    job = Job(output, tokenizer.path, args.text_key, held_out, args.max_bad_fraction)
    _encode(plan, progress, job, args.workers)
    progress.skipped().check(args.max_bad_fraction)
    manifest = _manifest(plan, progress, tokenizer)
    write_whole(output / MANIFEST_NAME, (json.dumps(manifest, indent=1) + "\n").encode())
    (output / PROGRESS_NAME).unlink()
    _print_summary(manifest, progress, output)
    kinds = {span.kind for task in plan.tasks for span in task.portion.spans}
    for odd in odd_results(manifest["splits"], kinds, plan.held_out_fraction):
        print(f"look at this: {odd}")
    return 0


def _make_tokenizer(args: argparse.Namespace, plan: Plan, held_out: HeldOut) -> Tokenizer:
    path = args.output / "tokenizer.model"
    if plan.tokenizer is not None:
        write_whole(path, plan.tokenizer.proto)
        tokenizer = Tokenizer(path)
    else:
        sample_bytes = args.tokenizer_sample_mb * 1_000_000
        pieces = plan.options["vocab_size"]
        print(f"training the tokenizer: {pieces} pieces on up to {sample_bytes:,} bytes")
        sample = _sample(plan.portions("train"), args.text_key, sample_bytes, held_out)
        tokenizer = train_tokenizer(
            sample,
            path,
            pieces,
            normalizer=plan.options["normalizer"],
            sample_bytes=sample_bytes,
        )
    write_whole(path.with_suffix(".vocab"), tokenizer.vocabulary().encode())
    return tokenizer


def _sample(
    training: Sequence[Portion], text_key: str, sample_bytes: int, held_out: HeldOut
) -> Iterator[str]:
    """The heads of evenly spaced portions, equal numbers of bytes, without held-out documents."""
    heads = training[:: -(-len(training) // SAMPLED_PORTIONS)]
    with _progress_bar("sampling text", len(heads), "portion") as bar:
        for portion in heads:
            budget = sample_bytes // len(heads)
            for text in portion.documents(text_key, Skipped()):
                if text in held_out:
                    continue
                yield text
                budget -= len(text.encode())
                if budget <= 0:
                    break
            bar.update()


def _encode(plan: Plan, progress: Progress, job: Job, workers: int) -> None:
    todo = [task for task in plan.tasks if task.name not in progress.finished]
    remove_partial_files(job.output)
    with _progress_bar("encoding", len(plan.tasks), "shard") as bar:
        bar.update(len(progress.finished))
        for encoded in encode_portions(todo, job, workers):
            progress.add(encoded)
            progress.save(job.output)
            bar.set_postfix_str(f"{progress.total('text_bytes') / 1e6:,.0f} MB of text")
            bar.update()


def _progress_bar(title: str, total: int, unit: str) -> tqdm:
    return tqdm(desc=title, total=total, unit=unit, disable=not sys.stderr.isatty())


def _manifest(plan: Plan, progress: Progress, tokenizer: Tokenizer) -> dict[str, Any]:
    splits = {}
    for split in ("train", "validation"):
        shards = [
            progress.finished[task.name]["shards"][split]
            for task in plan.tasks
            if split in progress.finished[task.name]["shards"]
        ]
        if not shards:
            raise UserError(_no_documents(split, progress))
        splits[split] = {
            "documents": sum(shard["documents"] for shard in shards),
            "tokens": sum(shard["tokens"] for shard in shards),
            "unigram_entropy_nats": entropy_nats(progress.token_counts[split]),
            "shards": shards,
        }
    skipped = progress.skipped()
    return {
        "format": MANIFEST_FORMAT,
        "options": plan.options,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "lower_case": tokenizer.lower_case,
            "normalizer": tokenizer.normalizer,
            "keeps_text": tokenizer.keeps_text,
            "special_ids": SPECIAL_IDS,
        },
        "splits": splits,
        "source": {
            "inputs": plan.options["input"] + plan.options["validation_input"],
            "input_digest": plan.input_digest,
            "input_times": plan.input_times,
            "documents": sum(split["documents"] for split in splits.values()),
            "text_bytes": int(progress.total("text_bytes")),
            "skipped": skipped.counts,
            "skipped_examples": skipped.examples,
            "bytes_behind_compressed_data": skipped.trailing,
            "files_not_read": plan.ignored.counts,
        },
    }


def _no_documents(split: str, progress: Progress) -> str:
    skipped = progress.skipped()
    reasons = skipped.describe_all() or "none skipped"
    return f"no documents for {split} in {skipped.records:,} records: {reasons}"


def entropy_nats(counts: Sequence[int] | np.ndarray) -> float:
    """Entropy in nats of the distribution with these counts [vocab_size]."""
    occurring = np.array([count for count in counts if count > 0], dtype=np.float64)
    shares = occurring / occurring.sum()
    return float(-(shares * np.log(shares)).sum())


def _print_dry_run(plan: Plan, output: Path) -> None:
    for name, value in plan.options.items():
        print(f"{name:>20} = {json.dumps(value)}")
    for split in dict.fromkeys(task.split for task in plan.tasks):
        of_split = plan.portions(split)
        size = sum(portion.size for portion in of_split)
        print(f"{split:>20} : {len(of_split)} shards of {size / 1e6:,.1f} MB on disk")
    if plan.held_out_fraction:
        print(f"{'':>20}   {plan.held_out_fraction:.2%} of the training documents are held out")
    print(f"{'output':>20} = {output} (nothing written: --dry-run)")


def _print_summary(manifest: dict[str, Any], progress: Progress, output: Path) -> None:
    source = manifest["source"]
    tokens = sum(split["tokens"] for split in manifest["splits"].values())
    speed = source["text_bytes"] / 1e6 / max(progress.total("cpu_seconds"), 1e-9)
    print(f"{'split':<12}{'documents':>14}{'tokens':>18}{'per document':>14}{'entropy, nats':>15}")
    for name, split in manifest["splits"].items():
        print(
            f"{name:<12}{split['documents']:>14,}{split['tokens']:>18,}"
            f"{split['tokens'] / split['documents']:>14.1f}{split['unigram_entropy_nats']:>15.3f}"
        )
    skipped = progress.skipped()
    print(f"skipped: {skipped.describe_all() or 'nothing'}")
    print(
        f"{source['text_bytes'] / 1e6:,.1f} MB of text, {source['text_bytes'] / tokens:.2f} bytes "
        f"per token, {speed:.1f} MB/s per core"
    )
    print(f"tokenizer: {output / 'tokenizer.model'} ({manifest['tokenizer']['vocab_size']} pieces)")
    print(f"data:      {output / MANIFEST_NAME}")


def _explain(error: OSError, output: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{output}: no space left ({error.strerror}); make room and run the same command "
            "again: finished shards are kept"
        )
    return f"{error.filename or output}: {error.strerror or error}"


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # a SLURM job may have fewer than the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _parser() -> ArgumentParser:
    parser = ArgumentParser(refuse=False, description="Text to tokenizer and token shards.")
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        default=[EMBEDDED],
        help="hub dataset (org/name), .jsonl .json .csv .tsv .txt .parquet files (.gz .bz2 .xz "
        ".zst), directories, or python-docs, the text that comes with Python",
    )
    add("--output", type=Path, required=True, help="directory to write")
    add("--config", help="configuration of the hub dataset, such as en")
    add("--text-key", default="text", help="JSON key (a.b: b in a) or column of the text")
    add("--format", choices=FORMATS, help="of all files; without it their endings tell")
    add(
        "--documents-per",
        choices=tuple(DOCUMENTS_PER),
        default="paragraph",
        help="what a document of plain text is: paragraphs are separated by blank lines",
    )
    add(
        "--validation-input",
        nargs="+",
        default=[],
        help="held-out text, named like --input; without it a hub dataset's validation split, "
        "else a part of the input is held out",
    )
    add(
        "--validation-fraction",
        type=PART,
        default=0.01,
        help="share of the documents held out, chosen by hash, where there is no other validation",
    )
    add("--tokenizer", type=Path, help="existing SentencePiece .model to use instead of training")
    add(
        "--vocab-size",
        type=whole(MIN_VOCAB_SIZE, 1_000_000),
        default=argparse.SUPPRESS,
        help=f"pieces of the tokenizer to train; 5 special ones, 256 bytes and one character need "
        f"at least {MIN_VOCAB_SIZE} (default: {DEFAULT_VOCAB_SIZE})",
    )
    add("--cased", action="store_true", help="keep upper case instead of folding it")
    add(
        "--normalizer",
        choices=tuple(NORMALIZERS),
        help="what the tokenizer does to text first: "
        + "; ".join(f"{name} {what}" for name, what in NORMALIZERS.items())
        + ". All but identity make one of several spaces. Unless given: nmt_nfkc_cf, with --cased "
        "nmt_nfkc",
    )
    add(
        "--tokenizer-sample-mb",
        type=whole(1, 1_000_000),
        default=64,
        help="megabytes of text to train the tokenizer on, from all over the input",
    )
    add(
        "--shards",
        type=whole(1, 1_000_000),
        default=128,
        help="shards to cut a large input into: the unit of parallel work and of resuming",
    )
    add(
        "--max-documents",
        type=whole(2, 10**12),
        help="read only so many records from the front, of the validation input too; at least 2, "
        "one of them for validation",
    )
    add(
        "--max-bad-fraction",
        type=SHARE,
        default=0.01,
        help="stop when a larger share of the records is unusable",
    )
    add(
        "--workers",
        type=whole(1, 1024),
        default=_available_cores(),
        help="worker processes; the result is the same for any number",
    )
    add("--overwrite", action="store_true", help="discard what --output holds of a preparation")
    add("--dry-run", action="store_true", help="print the resolved options or all faults, and exit")
    return parser


if __name__ == "__main__":
    run(main)
