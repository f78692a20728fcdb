"""What one core feeds: tokenisation, and shards to finished micro-batches.

Real tokens per second from shards to finished micro-batches, text to tokens in MB per second, and
the rows that buckets add. One process and one thread; the files are in the page cache after the
first, untimed pass. Every rate is the median of several passes over the same number of sequences,
beside the slowest and the fastest.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from tqdm import tqdm

from recipes.benchmarks.mode import DataSettings, Mode
from recipes.benchmarks.presentation import panels, shown
from recipes.benchmarks.records import Record, Rows
from recipes.benchmarks.synthetic import write_synthetic_data
from recipes.benchmarks.timing import rates
from recipes.common.json_content import Json
from recipes.common.numbers import whole
from recipes.common.settings import SequenceLength, number_in
from recipes.corpus.mlm_batches import MlmBatches
from recipes.corpus.token_shards import TokenShards, open_shards
from recipes.corpus.tokenizer import Tokenizer, encode_documents, open_tokenizer
from recipes.reporting.figures import COLORS, count_axis

SWEPT_MICRO_BATCHES = (16, 64, 256, 1024)
PASS_SEQUENCES = 16_384
TOKENIZED_DOCUMENTS = 2_000
REPEATS = 7

Batch = Annotated[int, number_in(whole(1, 1_000_000))]


@dataclass(frozen=True)
class Settings(DataSettings):
    """Measures what one core feeds: tokenisation of text (with --data, which has some), and token
    shards to finished micro-batches."""

    sequence_length: SequenceLength = 128
    """Tokens."""
    micro_batch: Batch = 512
    """Sequences; the figure shows others beside it."""


def measure_batches(shards: TokenShards, sequence_length: int, micro_batch: int) -> Json:
    """Make micro-batches of one size from shards; return rate, padding and number of shapes."""
    batches = MlmBatches(shards, sequence_length=sequence_length, seed=0, micro_batch=micro_batch)
    items = range(-(-PASS_SEQUENCES // micro_batch))

    def one_pass() -> float:
        return sum(batches[item].real_tokens for item in items)

    rate = rates(one_pass, REPEATS)
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


def measure_tokenizer(shards: TokenShards, tokenizer: Tokenizer) -> dict[str, float]:
    """Tokenise the first documents, decoded; return MB (10**6 UTF-8 bytes) per second."""
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

    return rates(one_pass, REPEATS)


def measure(settings: Settings, record: Record) -> None:
    torch.set_num_threads(1)
    record["threads"] = 1
    with ExitStack() as stack:
        data, tokenizer = settings.data, None
        if data is None:
            data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_synthetic_data(data)
            shards = open_shards(data, "train")
        else:
            tokenizer = open_tokenizer(data)
            shards = open_shards(data, "train", tokenizer_fingerprint=tokenizer.fingerprint)
        record["settings"] = {
            "data": str(settings.data) if settings.data else "synthetic",
            "documents": shards.documents,
            "tokens": shards.tokens,
            "sequence_length": settings.sequence_length,
            "micro_batch": settings.micro_batch,
            "repeats": REPEATS,
            "sequences_per_pass": PASS_SEQUENCES,
        }
        record["batches"] = []
        record["tokenizer_mb_per_second"] = tokenizer and measure_tokenizer(shards, tokenizer)
        # The one that was asked for first, in case there is no time for the others.
        sizes = [settings.micro_batch] + sorted({*SWEPT_MICRO_BATCHES} - {settings.micro_batch})
        for size in tqdm(sizes, desc="micro-batch sizes", disable=not sys.stderr.isatty()):
            if record["batches"] and record.out_of_time(f"micro-batch {size}"):
                continue
            point = measure_batches(shards, settings.sequence_length, size)
            record["batches"].append(point)
            record["batches"].sort(key=lambda point: point["micro_batch"])
            record.save()


def figure(record: Json) -> Figure:
    """Draw rate and padding against the micro-batch size."""
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
    padding.legend(loc="lower left")
    for axes in (speed, padding):
        count_axis(axes, sizes)
    return drawn


def table(record: Json) -> Rows:
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


def headlines(record: Json) -> list[tuple[str, str]]:
    """List the rate at the micro-batch that was asked for."""
    (line,) = (value for name, value in table(record) if name == "shards to batches")
    return [("shards to batches", line)]


MODE = Mode(Settings, measure, table, figure, headlines, by_device=False)
