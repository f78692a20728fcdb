"""Figure S2: training throughput against the sequence length, at a constant number of tokens.

Documents are made long enough to fill the sequences (64 times the length on average), so that a
length of 4,096 is one of 4,096 tokens and not of C4's 400; --data keeps its own documents.
"""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from recipes.benchmarks.mode import DataSettings, Mode
from recipes.benchmarks.presentation import panels, shown
from recipes.benchmarks.records import Record, Rows
from recipes.benchmarks.throughput import rate
from recipes.benchmarks.timing import release_memory
from recipes.benchmarks.training_step import (
    Setup,
    Trainer,
    made_batches,
    measure_steps,
    on_data,
    one_process,
    recommended,
    training_data,
)
from recipes.common.json_content import Json
from recipes.common.settings import SequenceLength
from recipes.corpus.token_shards import TokenShards
from recipes.engine.world import World
from recipes.reporting.figures import count_axis, look

# Both ends first: with --minutes, what lies between may find no time.
LENGTHS = (128, 4096, 512, 2048, 256, 1024, 8192)
TOY_LENGTHS = (32, 128, 64)
MODELS = {"rapidbert-base": 65_536, "rapidbert-large": 32_768}
"""Tokens per step and micro-batch: 512 and 256 sequences of 128."""
TOY_MODELS = {"rapidbert-tiny": 1024}
WARM_UP_STEPS, STEPS = 3, 7


@dataclass(frozen=True)
class Settings(DataSettings):
    """Measures training steps of a constant number of tokens in sequences of different lengths
    (Figure S2)."""

    lengths: tuple[SequenceLength, ...] = ()
    """Tokens of a sequence; those of Figure S2 unless given."""


def measure(settings: Settings, record: Record) -> None:
    lengths = settings.lengths or (LENGTHS if record.gpu else TOY_LENGTHS)
    models = MODELS if record.gpu else TOY_MODELS
    setups = {model: recommended(model, record)[0] for model in models}
    record["points"] = []
    with one_process() as world:
        for length in lengths:
            mean = 64.0 * length
            most = max(models.values())
            # Enough for every step, twice over: documents vary in length.
            documents = max(32, round(2 * most * (WARM_UP_STEPS + STEPS) / mean))
            with training_data(
                settings.data, record, mean_length=mean, documents=documents
            ) as shards:
                record["settings"] = {
                    "data": str(settings.data) if settings.data else "synthetic, long documents",
                    "tokens_per_step": models,
                    "steps": STEPS,
                    "warm_up_steps": WARM_UP_STEPS,
                    "setups": {
                        model: on_data(setup, shards).describe() for model, setup in setups.items()
                    },
                }
                for model, tokens in models.items():
                    what = f"{model} at {length} tokens"
                    if record.out_of_time(what):
                        continue
                    setup = on_data(setups[model], shards)
                    point = record.attempt(
                        what, measure_length, setup, length, tokens, shards, world
                    )
                    release_memory()
                    if point is not None:
                        record["points"].append(point)
                        print(f"{what}: {rate(point)}", flush=True)
                    record.save()


def measure_length(
    setup: Setup, length: int, tokens: int, shards: TokenShards, world: World
) -> Json:
    """Measure steps of one micro-batch of `tokens` tokens in sequences of `length`."""
    sequences = max(1, tokens // length)
    batches = made_batches(shards, sequences, sequences, length, steps=3)
    with Trainer(setup, sequences, sequences, batches, world) as trainer:
        measured = measure_steps(trainer, warm_up=WARM_UP_STEPS, repeats=STEPS)
    return {"model": setup.model.name, "sequence_length": length, **measured}


def figure(record: Json) -> Figure:
    """Draw tokens/s and sequences/s against the length."""
    drawn, ((tokens,), (sequences,)) = panels(
        2, 1, "Training throughput and sequence length", record
    )
    models = list(dict.fromkeys(point["model"] for point in record["points"]))
    for number, model in enumerate(models):
        points = [p for p in record["points"] if p["model"] == model]
        points.sort(key=lambda point: point["sequence_length"])
        lengths = [point["sequence_length"] for point in points]
        color, marker = look(number).color, look(number).marker
        rates = [point["tokens_per_second"] for point in points]
        tokens.plot(lengths, [r["median"] for r in rates], marker=marker, color=color, label=model)
        tokens.fill_between(
            lengths,
            [r["min"] for r in rates],
            [r["max"] for r in rates],
            color=color,
            alpha=0.2,
            linewidth=0,
        )
        per_second = [p["sequences_per_step"] / p["step_seconds"]["median"] for p in points]
        sequences.plot(lengths, per_second, marker=marker, color=color, label=model)
    tokens.set_ylabel("real tokens/s")
    tokens.set_ylim(bottom=0)
    sequences.set_ylabel("sequences/s")
    sequences.set_yscale("log", base=2)
    sequences.yaxis.set_major_formatter(ScalarFormatter())
    sequences.set_xlabel("sequence length (tokens)")
    ticks = sorted({point["sequence_length"] for point in record["points"]})
    for axes in (tokens, sequences):
        count_axis(axes, ticks)
    tokens.legend()
    return drawn


def table(record: Json) -> Rows:
    rows: Rows = [("model", "length", "real tokens/s", "ms/step", "MFU", "executed")]
    for point in record["points"]:
        used = [point["mfu"], point["executed_flops_utilization"]]
        rows.append(
            (
                point["model"],
                str(point["sequence_length"]),
                shown(point["tokens_per_second"], ",.0f"),
                shown(point["step_seconds"], ",.1f", 1e-3),
                *("-" if share is None else f"{share:.1%}" for share in used),
            )
        )
    return rows


def headlines(record: Json) -> list[tuple[str, str]]:
    """List the shortest and the longest sequences of each model."""
    lines = []
    for model in dict.fromkeys(point["model"] for point in record["points"]):
        points = [point for point in record["points"] if point["model"] == model]
        points.sort(key=lambda point: point["sequence_length"])
        lines += [
            (
                f"{model} at {point['sequence_length']} tokens",
                f"{point['tokens_per_second']['median']:,.0f} real tokens/s",
            )
            for point in {id(point): point for point in (points[0], points[-1])}.values()
        ]
    return lines


MODE = Mode(Settings, measure, table, figure, headlines)
