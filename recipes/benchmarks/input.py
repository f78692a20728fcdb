"""What one core feeds: tokenisation, and shards to finished micro-batches.

Real tokens per second from shards to finished micro-batches, text to tokens in MB per second, and
the rows that buckets add. One process and one thread; the files are in the page cache after the
first, untimed pass. Every rate is the median of several passes over the same number of sequences,
beside the slowest and the fastest.
"""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter, ScalarFormatter
from tqdm import tqdm

from recipes.benchmarks.records import Record, Rows, measure, panels, shown
from recipes.common.cli import SEQUENCE_LENGTH, whole
from recipes.common.files import write_whole
from recipes.corpus.mlm_batches import MlmBatches
from recipes.corpus.token_shards import (
    MANIFEST_FORMAT,
    MANIFEST_NAME,
    ShardWriter,
    TokenShards,
    open_shards,
)
from recipes.corpus.tokenizer import SPECIAL_IDS, Tokenizer, encode_documents
from recipes.reporting.figures import COLORS

BY_DEVICE = False
SWEPT_MICRO_BATCHES = (16, 64, 256, 1024)
PASS_SEQUENCES = 16_384
TOKENIZED_DOCUMENTS = 2_000


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, help="prepared directory; without it random tokens, and no text"
    )
    parser.add_argument("--sequence-length", type=SEQUENCE_LENGTH, default=128, help="in tokens")
    parser.add_argument(
        "--micro-batch",
        type=whole(1, 1_000_000),
        default=512,
        help="in sequences; the figure shows others beside",
    )
    parser.add_argument("--repeats", type=whole(1, 10_000), default=7, help="timed passes per rate")


def write_synthetic_data(
    directory: Path,
    documents: int = 20_000,
    *,
    vocab_size: int = 30_522,
    mean_length: float = 400.0,
) -> None:
    """Random tokens in documents whose lengths are spread as C4's are (log-normal), one shard.

    Args:
        mean_length: tokens; C4's documents have about 400.
    """
    generator = np.random.default_rng(0)
    sigma = 0.9
    drawn = generator.lognormal(np.log(mean_length) - sigma**2 / 2, sigma, documents)
    lengths = np.clip(drawn, 1, 125 * mean_length).astype(int)
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


def benchmark(options: Namespace, record: Record) -> None:
    torch.set_num_threads(1)
    record["threads"] = 1
    with ExitStack() as stack:
        data, tokenizer = options.data, None
        if data is None:
            data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_synthetic_data(data)
            shards = open_shards(data, "train")
        else:
            tokenizer = Tokenizer(data / "tokenizer.model")
            shards = open_shards(data, "train", tokenizer_fingerprint=tokenizer.fingerprint)
        record["settings"] = {
            "data": str(options.data) if options.data else "synthetic",
            "documents": shards.documents,
            "tokens": shards.tokens,
            "sequence_length": options.sequence_length,
            "micro_batch": options.micro_batch,
            "repeats": options.repeats,
            "sequences_per_pass": PASS_SEQUENCES,
        }
        record["batches"] = []
        record["tokenizer_mb_per_second"] = tokenizer and measure_tokenizer(
            shards, tokenizer, options.repeats
        )
        # The one that was asked for first, in case there is no time for the others.
        sizes = [options.micro_batch] + sorted({*SWEPT_MICRO_BATCHES} - {options.micro_batch})
        for size in tqdm(sizes, desc="micro-batch sizes", disable=not sys.stderr.isatty()):
            if record["batches"] and record.out_of_time(f"micro-batch {size}"):
                continue
            point = measure_batches(shards, options.sequence_length, size, options.repeats)
            record["batches"].append(point)
            record["batches"].sort(key=lambda point: point["micro_batch"])
            record.save()


def figure(record: dict[str, Any]) -> Figure:
    """Rate and padding against the micro-batch size."""
    points = record["batches"]
    sizes = [point["micro_batch"] for point in points]
    rates = [{k: v / 1e6 for k, v in point["tokens_per_second"].items()} for point in points]
    drawn, ((speed,), (padding,)) = panels(2, 1, "Shards to finished micro-batches", record)
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
        f"sequence length {record['settings']['sequence_length']}; "
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
    padding.set_xlabel("sequences per micro-batch")
    padding.legend(frameon=False, loc="lower left")
    for axes in (speed, padding):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    return drawn


def table(record: dict[str, Any]) -> Rows:
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
            f"{shown(chosen['tokens_per_second'], '.1f', 1e6)} million real tokens/s on one core",
        ),
        (
            "bucket padding",
            f"{chosen['padding_share']:.1%} of the token rows, "
            f"{chosen['masked_padding_share']:.1%} of the head's; {chosen['shapes']} shapes",
        ),
        (
            "tokenisation",
            f"{shown(text, '.2f')} MB/s on one core"
            if text
            else "not measured: synthetic data have no text (--data has)",
        ),
    ]


def headlines(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What is fed at the micro-batch asked for."""
    (line,) = (value for name, value in table(record) if name == "shards to batches")
    return [("shards to batches", line)]
