"""Measurements, each to one JSON record and one figure.

    python recipes/benchmark.py input --data data/c4
    python recipes/benchmark.py checkpoint --model rapidbert-base

`input`: what one core feeds. Real tokens per second from shards to finished micro-batches, text to
tokens in MB per second, and the rows that buckets add. One process and one thread; the files are in
the page cache after the first, untimed pass. Every rate is the median of several passes over the
same number of sequences, beside the slowest and the fastest.

`checkpoint`: what saving and resuming cost; see `benchmark_checkpoint.py`.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import NullLocator, PercentFormatter, ScalarFormatter  # noqa: E402
from tqdm import tqdm  # noqa: E402

from recipes.cli import ArgumentParser, UserError, run  # noqa: E402
from recipes.mlm_batches import MlmBatches  # noqa: E402
from recipes.report import COLORS, aligned  # noqa: E402
from recipes.token_shards import (  # noqa: E402
    MANIFEST_FORMAT,
    MANIFEST_NAME,
    ShardWriter,
    TokenShards,
    open_shards,
)
from recipes.tokenizer import SPECIAL_IDS, Tokenizer, encode_documents  # noqa: E402
from recipes.whole_files import write_whole  # noqa: E402

SWEPT_MICRO_BATCHES = (16, 64, 256, 1024)
PASS_SEQUENCES = 16_384
TOKENIZED_DOCUMENTS = 2_000


def measure(work: Callable[[], float], repeats: int) -> dict[str, float]:
    """Rates of `work`, which returns how much it did: median, min and max per second.

    An untimed pass comes first, for caches and lazy imports.
    """
    work()
    rates = []
    for _ in range(repeats):
        begin = time.perf_counter()
        amount = work()
        rates.append(amount / (time.perf_counter() - begin))
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}


def cpu_name() -> str:
    """The processor's name as the system gives it, or "unknown"."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def environment(*packages: str) -> dict[str, Any]:
    """What a rate depends on besides the code: date, devices and versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }


def write_synthetic_data(directory: Path, documents: int = 20_000) -> None:
    """Random tokens in documents as long as C4's (mean about 400 tokens, log-normal), one shard."""
    vocab_size = 30_522
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5.6, 0.9, documents), 1, 50_000).astype(int)
    with ShardWriter(directory / "train-00000", vocab_size) as writer:
        for length in lengths.tolist():
            writer.add(generator.integers(len(SPECIAL_IDS), vocab_size, length, dtype=np.int32))
    split = {
        "documents": writer.info["documents"],
        "tokens": writer.info["tokens"],
        "unigram_entropy_nats": float(np.log(vocab_size - len(SPECIAL_IDS))),
        "shards": [writer.info],
    }
    tokenizer = {
        "fingerprint": "synthetic",
        "vocab_size": vocab_size,
        "lower_case": True,
        "special_ids": SPECIAL_IDS,
    }
    manifest = {"format": MANIFEST_FORMAT, "tokenizer": tokenizer, "splits": {"train": split}}
    write_whole(directory / MANIFEST_NAME, json.dumps(manifest).encode())


def measure_batches(
    shards: TokenShards, sequence_length: int, micro_batch: int, repeats: int
) -> dict[str, Any]:
    """Shards to finished micro-batches: rate, padding and shapes at one micro-batch size."""
    batches = MlmBatches(shards, sequence_length=sequence_length, seed=0, micro_batch=micro_batch)
    items = range(-(-PASS_SEQUENCES // micro_batch))

    def one_pass() -> float:
        return sum(batches[item].real_tokens for item in items)

    rate = measure(one_pass, repeats)
    made = [batches[item] for item in items]
    rows = sum(len(batch.input_ids) for batch in made)
    masked_rows = sum(len(batch.labels) for batch in made)
    return {
        "micro_batch": micro_batch,
        "tokens_per_second": rate,
        "tokens_per_sequence": sum(batch.real_tokens for batch in made)
        / sum(batch.sequences for batch in made),
        "padding_share": 1 - sum(batch.real_tokens for batch in made) / rows,
        "masked_padding_share": 1 - sum(batch.masked_tokens for batch in made) / masked_rows,
        "shapes": len({(len(batch.input_ids), len(batch.labels)) for batch in made}),
    }


def measure_tokenizer(shards: TokenShards, tokenizer: Tokenizer, repeats: int) -> dict[str, float]:
    """Text to tokens: MB (10**6 UTF-8 bytes) per second, on the first documents decoded."""
    shard = shards.shards[0]
    starts = (shard.pointers[:TOKENIZED_DOCUMENTS] // shard.tokens.itemsize).tolist()
    lengths = shard.lengths[:TOKENIZED_DOCUMENTS].tolist()
    texts = [
        tokenizer.decode(shard.tokens[start : start + length].tolist())
        for start, length in zip(starts, lengths, strict=True)
    ]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6

    def one_pass() -> float:
        encode_documents(tokenizer, texts)
        return megabytes

    return measure(one_pass, repeats)


def input_figure(record: dict[str, Any]) -> Figure:
    """Rate and padding against the micro-batch size."""
    points = record["batches"]
    sizes = [point["micro_batch"] for point in points]
    rates = [{k: v / 1e6 for k, v in point["tokens_per_second"].items()} for point in points]
    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle("Shards to finished micro-batches", x=0.01, ha="left", fontweight="bold")
    speed, padding = figure.subplots(2, 1, sharex=True)
    medians = [rate["median"] for rate in rates]
    speed.plot(sizes, medians, "o-", color=COLORS[0])
    speed.fill_between(
        sizes,
        [rate["min"] for rate in rates],
        [rate["max"] for rate in rates],
        color=COLORS[0],
        alpha=0.2,
        linewidth=0,
    )
    speed.set_ylabel("million real tokens/s, one core")
    speed.set_ylim(bottom=0)
    speed.set_title(
        f"{record['cpu']}, sequence length {record['settings']['sequence_length']}; "
        "median, slowest to fastest pass shaded",
        loc="left",
        fontsize=9,
    )
    for key, label, color in (
        ("padding_share", "token rows", COLORS[0]),
        ("masked_padding_share", "rows of the head", COLORS[1]),
    ):
        padding.plot(sizes, [point[key] for point in points], "o-", color=color, label=label)
    padding.set_ylabel("rows that only fill buckets")
    padding.yaxis.set_major_formatter(PercentFormatter(1))
    padding.set_ylim(bottom=0)
    padding.set_xscale("log", base=2)
    padding.set_xticks(sizes)
    padding.xaxis.set_major_formatter(ScalarFormatter())
    padding.xaxis.set_minor_locator(NullLocator())
    padding.set_xlabel("sequences per micro-batch")
    padding.legend(frameon=False, loc="lower left")
    for axes in (speed, padding):
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def benchmark_input(options: Namespace) -> None:
    """`benchmark.py input`: print the table, write `input.json` and `input.png`."""
    if options.repeats < 1:
        raise UserError(f"--repeats {options.repeats}: at least 1")
    torch.set_num_threads(1)
    with ExitStack() as stack:
        data, tokenizer = options.data, None
        if data is None:
            data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_synthetic_data(data)
            shards = open_shards(data, "train")
        else:
            tokenizer = Tokenizer(data / "tokenizer.model")
            shards = open_shards(data, "train", tokenizer_fingerprint=tokenizer.fingerprint)
        sizes = sorted({*SWEPT_MICRO_BATCHES, options.micro_batch})
        with tqdm(sizes, desc="micro-batch sizes", disable=not sys.stderr.isatty()) as progress:
            batches = [
                measure_batches(shards, options.sequence_length, size, options.repeats)
                for size in progress
            ]
        record = {
            "benchmark": "input",
            **environment("torch", "numpy", "sentencepiece"),
            "settings": {
                "data": str(options.data) if options.data else "synthetic",
                "documents": shards.documents,
                "tokens": shards.tokens,
                "sequence_length": options.sequence_length,
                "micro_batch": options.micro_batch,
                "repeats": options.repeats,
                "sequences_per_pass": PASS_SEQUENCES,
            },
            "batches": batches,
            "tokenizer_mb_per_second": tokenizer
            and measure_tokenizer(shards, tokenizer, options.repeats),
        }
    print(aligned(_input_table(record)))
    write_record(record, input_figure(record), options.output)


def _input_table(record: dict[str, Any]) -> list[tuple[str, ...]]:
    def spread(rate: dict[str, float], unit: float, form: str) -> str:
        return " ".join(
            [f"{rate['median'] / unit:{form}}", f"({rate['min'] / unit:{form}}"]
            + [f"to {rate['max'] / unit:{form}})"]
        )

    settings = record["settings"]
    (chosen,) = (b for b in record["batches"] if b["micro_batch"] == settings["micro_batch"])
    text = record["tokenizer_mb_per_second"]
    return [
        ("CPU", record["cpu"]),
        ("data", f"{settings['data']}: {settings['tokens']:,} tokens"),
        (
            "micro-batch",
            f"{chosen['micro_batch']} sequences of up to {settings['sequence_length']} tokens, "
            f"{chosen['tokens_per_sequence']:.1f} on average",
        ),
        (
            "shards to batches",
            f"{spread(chosen['tokens_per_second'], 1e6, '.1f')} million real tokens/s on one core",
        ),
        (
            "bucket padding",
            f"{chosen['padding_share']:.1%} of the token rows, "
            f"{chosen['masked_padding_share']:.1%} of the head's; {chosen['shapes']} shapes",
        ),
        (
            "tokenisation",
            f"{spread(text, 1, '.2f')} MB/s on one core"
            if text
            else "not measured: synthetic data have no text (--data has)",
        ),
    ]


def write_record(record: dict[str, Any], figure: Figure, output: Path) -> None:
    """Write `<benchmark>.json` and `<benchmark>.png` into `output` and say where they are."""
    output.mkdir(parents=True, exist_ok=True)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    written = [output / f"{record['benchmark']}.{suffix}" for suffix in ("json", "png")]
    write_whole(written[0], (json.dumps(record, indent=2) + "\n").encode())
    write_whole(written[1], image.getvalue())
    print("\n" + "\n".join(map(str, written)))


def main() -> None:
    parser = ArgumentParser(description="Measurements, each to one JSON record and one figure.")
    modes = parser.add_subparsers(dest="mode", required=True, metavar="mode")
    mode = modes.add_parser(
        "input",
        help="real tokens/s from shards to batches and tokenisation MB/s, per core",
        description="What one core feeds: tokenisation and shards to finished micro-batches.",
    )
    mode.add_argument(
        "--data", type=Path, help="prepared directory; without it random tokens, and no text"
    )
    mode.add_argument("--sequence-length", type=int, default=128, help="in tokens")
    mode.add_argument(
        "--micro-batch", type=int, default=512, help="in sequences; the figure shows others beside"
    )
    mode.add_argument("--repeats", type=int, default=7, help="timed passes per rate")
    mode.add_argument(
        "--output",
        type=Path,
        default=Path("docs/results"),
        help="directory of input.json and input.png",
    )
    mode.set_defaults(benchmark=benchmark_input)
    from recipes import benchmark_checkpoint  # it measures with what is in this file

    benchmark_checkpoint.add_mode(modes)
    options = parser.parse_args()
    options.benchmark(options)


if __name__ == "__main__":
    run(main)
