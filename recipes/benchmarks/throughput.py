"""Training throughput: model x micro-batch x global batch, on one device.

Rows of Table S2 (micro-batches of 512, 128 and 64 sequences in a global batch of 4,096) and the
shares that Figure S1's global batches leave to one of 8 to 200 GPUs; what several GPUs lose to
communication is not in them (`slurm/scaling_sweep.sh`). Tokens are real tokens; MFU is Eq. 3;
utilisations are given only where the device's peak is known. On a GPU the largest micro-batch that
fits is found by doubling until memory runs out, on sequences without any padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from model.config import preset
from recipes.benchmarks.mode import DataSettings, Mode
from recipes.benchmarks.presentation import panels, shown
from recipes.benchmarks.profile import COLORS as CLASS_COLORS
from recipes.benchmarks.profile import breakdown
from recipes.benchmarks.records import Record, Rows
from recipes.benchmarks.timing import release_memory
from recipes.benchmarks.training_step import (
    SEQUENCE_LENGTH,
    STEPS_MADE,
    Setup,
    Trainer,
    full_batch,
    made_batches,
    measure_steps,
    on_data,
    one_process,
    recommended,
    training_data,
)
from recipes.common.gpus import describe_peak
from recipes.common.json_content import Json
from recipes.common.numbers import whole
from recipes.common.settings import checked
from recipes.corpus.token_shards import TokenShards
from recipes.engine.world import World
from recipes.reporting.figures import add_legend, look

# model, micro-batch, global batch, in sequences. The most important first: with --minutes, those
# at the end may find no time.
Row = tuple[str, int, int]
ROWS: list[Row] = [
    # Table S2's batch on one device, at the micro-batches of ds_configs/.
    ("rapidbert-base", 512, 4096),
    ("rapidbert-large", 256, 4096),
    ("bert-base", 512, 4096),
    # What one of 8, 16, 32 and 64 GPUs has of 4,096, and of Figure S1's larger batches.
    ("rapidbert-base", 512, 512),
    ("rapidbert-base", 128, 128),
    ("rapidbert-base", 64, 64),
    ("rapidbert-large", 256, 512),
    ("rapidbert-large", 128, 128),
    ("rapidbert-large", 64, 64),
    ("rapidbert-large", 20, 20),
    # Table S2's micro-batches for smaller memory, and one for larger.
    ("rapidbert-base", 1024, 4096),
    ("rapidbert-base", 128, 4096),
    ("rapidbert-base", 64, 4096),
    ("rapidbert-large", 512, 4096),
    ("rapidbert-large", 64, 4096),
]
TOY_ROWS: list[Row] = [
    ("rapidbert-tiny", 8, 16),
    ("bert-tiny", 8, 16),
    ("rapidbert-tiny", 4, 16),
    ("rapidbert-tiny", 16, 16),
]
WARM_UP_STEPS, STEPS = 2, 5
BATCH = whole(1, 1_000_000)


def parse_row(word: str) -> Row:
    """Read MODEL:MICRO:GLOBAL.

    Raises:
        ValueError: with what is wrong with it.
    """
    model, *sizes = word.split(":")
    try:
        micro, total = (int(BATCH.read(size)) for size in sizes)
    except ValueError:
        raise ValueError(
            "not MODEL:MICRO:GLOBAL, e.g. rapidbert-base:512:4096; each batch a whole number up to "
            f"{BATCH.high:,}"
        ) from None
    preset(model)
    if total % micro:
        near = max(1, round(total / micro)) * micro
        raise ValueError(
            f"{total} / {micro} = {total / micro:.3g} micro-batches; the nearest global batch is "
            f"{near}"
        )
    return model, micro, total


@dataclass(frozen=True)
class Settings(DataSettings):
    """Measures training on one device: model x micro-batch x global batch (Table S2, Figure S1),
    and what the time of a step is spent on."""

    rows: tuple[Annotated[str, checked(parse_row, "MODEL:MICRO:GLOBAL")], ...] = ()
    """Models and batches in sequences, e.g. rapidbert-base:512:4096; the paper's unless given."""


def measure(settings: Settings, record: Record) -> None:
    rows = [parse_row(word) for word in settings.rows] or (ROWS if record.gpu else TOY_ROWS)
    setups = {model: recommended(model, record) for model, *_ in rows}
    if said := describe_peak(record["device"]):
        print(said)
    with training_data(settings.data, record) as shards, one_process() as world:
        record["settings"] = {
            "data": str(settings.data) if settings.data else "synthetic",
            "sequence_length": SEQUENCE_LENGTH,
            "steps": STEPS,
            "warm_up_steps": WARM_UP_STEPS,
            "setups": {
                model: on_data(setup, shards).describe() | {"recommended_micro_batch": micro}
                for model, (setup, micro) in setups.items()
            },
        }
        record["rows"], record["breakdowns"], record["largest_micro_batch"] = [], {}, {}
        profiled: set[str] = set()
        for model, micro_batch, global_batch in rows:
            what = f"{model}:{micro_batch}:{global_batch}"
            if record.out_of_time(what):
                continue
            setup = on_data(setups[model][0], shards)
            record.attempt(
                what,
                measure_row,
                *(record, setup, micro_batch, global_batch, shards, world, profiled),
            )
            release_memory()
            record.save()
        for model, (setup, micro_batch) in setups.items():
            what = f"largest micro-batch of {model}"
            if record.gpu and not record.out_of_time(what):
                record["largest_micro_batch"][model] = record.attempt(
                    what, largest_micro_batch, on_data(setup, shards), micro_batch, world
                )
                record.save()


def measure_row(
    record: Record,
    setup: Setup,
    micro_batch: int,
    global_batch: int,
    shards: TokenShards,
    world: World,
    profiled: set[str],
) -> None:
    """Add a row to the record, and for the first one of each model its breakdown."""
    steps = max(2, min(STEPS_MADE, 8192 // global_batch))
    batches = made_batches(shards, micro_batch, global_batch, SEQUENCE_LENGTH, steps)
    name = setup.model.name
    with Trainer(setup, micro_batch, global_batch, batches, world) as trainer:
        measured = measure_steps(trainer, warm_up=WARM_UP_STEPS, repeats=STEPS)
        record["rows"].append(
            {"model": name, "micro_batch": micro_batch, "global_batch": global_batch, **measured}
        )
        print(f"{name} {micro_batch} x {trainer.accumulation}: {rate(measured)}", flush=True)
        if name not in profiled:
            profiled.add(name)
            seconds = measured["step_seconds"]["median"]
            record["breakdowns"][name] = {
                "micro_batch": micro_batch,
                "global_batch": global_batch,
                "real_tokens": measured["real_tokens_per_step"],
                **breakdown(trainer.step, seconds, world.device),
            }


def largest_micro_batch(setup: Setup, start: int, world: World) -> Json:
    """Double from `start` until memory runs out; return what still fitted, and the GB it took.

    Where not even `start` fits, halve instead.
    """
    tried: dict[int, float | None] = {}

    def fits(size: int) -> bool:
        release_memory()
        torch.cuda.reset_peak_memory_stats(world.device)
        try:
            batch = full_batch(setup.model, size, SEQUENCE_LENGTH)
            with Trainer(setup, size, size, [batch], world) as trainer:
                for _ in range(2):  # the optimizer's state exists from the first update on
                    trainer.step()
        except torch.cuda.OutOfMemoryError:
            tried[size] = None
            return False
        tried[size] = torch.cuda.max_memory_reserved(world.device) / 1e9
        return True

    size = start
    if fits(size):
        while fits(2 * size):
            size *= 2
    else:
        while size > 1 and not fits(size // 2):
            size //= 2
        size //= 2
    return {"micro_batch": size, "reserved_gb": tried}


def rate(measured: Json) -> str:
    return f"{shown(measured['tokens_per_second'], ',.0f')} real tokens/s"


def figure(record: Json) -> Figure:
    """Draw the throughput of every row, and what the step of each model is made of."""
    rows, parts = record["rows"], record["breakdowns"]
    drawn, ((speed,), (bars,)) = panels(2, 1, "Training throughput", record, height=3.8)
    models = list(dict.fromkeys(row["model"] for row in rows))
    rows = sorted(
        rows, key=lambda r: (models.index(r["model"]), r["global_batch"], r["micro_batch"])
    )
    bars_of: dict[str, dict[str, Any]] = {
        model: {"color": look(n).color, "hatch": look(n).hatch, "edgecolor": "white"}
        for n, model in enumerate(models)
    }
    labels = []
    for place, row in enumerate(rows):
        values = {k: v / 1e3 for k, v in row["tokens_per_second"].items()}
        own = bars_of[row["model"]]
        speed.bar(place, values["median"], width=0.7, **own)
        speed.vlines(place, values["min"], values["max"], color="black", linewidth=1)
        text = f"{values['median']:,.0f}" if values["median"] >= 100 else f"{values['median']:.1f}"
        if row["mfu"] is not None:
            text += f"\n{row['mfu']:.0%}"
        speed.text(place, values["max"], text, ha="center", va="bottom", fontsize=8)
        labels.append(f"{row['micro_batch']}\n{row['global_batch']}")
    speed.set_xticks(range(len(rows)), labels, fontsize=8)
    speed.set_xlabel("micro-batch, below it the global batch (sequences of up to 128 tokens)")
    known = any(row["mfu"] is not None for row in rows)
    speed.set_ylabel("thousand real tokens/s" + (", and MFU" if known else ""))
    speed.margins(y=0.2)
    speed.grid(axis="x", visible=False)
    for model, own in bars_of.items():
        speed.bar(0, 0, label=model, **own)
    add_legend(speed, columns=len(models))
    stacked_bars(bars, {name: (p["seconds"], p["real_tokens"]) for name, p in parts.items()})
    return drawn


def stacked_bars(axes: Axes, parts: dict[str, tuple[dict[str, float], float]]) -> None:
    """Draw one bar per model: device time per real token by kernel class."""
    names = list(parts)
    left = [0.0] * len(names)
    for number, (kind, color) in enumerate(CLASS_COLORS.items()):
        widths = [seconds[kind] / tokens for seconds, tokens in parts.values()]
        if any(widths):
            # Hatched, so that neighbours differ on a black and white page.
            edges: dict[str, Any] = {
                "hatch": look(number).hatch,
                "edgecolor": "white",
                "linewidth": 0.5,
            }
            axes.barh(names, widths, left=left, color=color, label=kind, height=0.6, **edges)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(EngFormatter("s"))
    axes.set_xlabel("device time per real token, of one step")
    add_legend(axes, columns=5)


def table(record: Json) -> Rows:
    header = ("model", "micro", "global", "real tokens/s", "ms/step", "MFU", "executed", "peak GB")
    rows: Rows = [header]
    for row in record["rows"]:
        used = [row["mfu"], row["executed_flops_utilization"]]
        memory = row.get("peak_memory_reserved_gb")
        rows.append(
            (
                row["model"],
                str(row["micro_batch"]),
                f"{row['global_batch']:,}",
                shown(row["tokens_per_second"], ",.0f"),
                shown(row["step_seconds"], ",.1f", 1e-3),
                *("-" if share is None else f"{share:.1%}" for share in used),
                "-" if memory is None else f"{memory:.1f}",
            )
        )
    for model, found in record["largest_micro_batch"].items():
        if found:
            rows.append((model, str(found["micro_batch"]), "", "largest that fits", *[""] * 4))
    return rows


def headlines(record: Json) -> list[tuple[str, str]]:
    """List the first row of each model, and the largest micro-batch that fits."""
    lines: dict[str, tuple[str, str]] = {}
    for row in record["rows"]:
        used = "" if row["mfu"] is None else f", MFU {row['mfu']:.1%}"
        text = f"{row['tokens_per_second']['median']:,.0f} real tokens/s{used}"
        lines.setdefault(
            row["model"], (f"{row['model']}:{row['micro_batch']}:{row['global_batch']}", text)
        )
    found = record["largest_micro_batch"].items()
    return [
        *lines.values(),
        *(
            (f"largest micro-batch of {model}", f"{fit['micro_batch']} sequences")
            for model, fit in found
            if fit
        ),
    ]


MODE = Mode(Settings, measure, table, figure, headlines)
