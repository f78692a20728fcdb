"""Kernels launched one by one against CUDA graphs of whole micro-batches (`--cuda-graphs`).

Steps of one micro-batch, small ones first: there a GPU waits for the host. Two engines of the same
seed take the same 200 steps, whose losses have to be equal; then their steps take turns before the
clock. Where time is short both end earlier, and the record says after how many. The setup is that
of `pretrain.py` in bf16, on the CPU as well, where there are no graphs and the kernels' launches
alone are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.figure import Figure

from recipes.benchmarks.mode import DataSettings, Mode
from recipes.benchmarks.presentation import panels, shown
from recipes.benchmarks.records import NotHere, Record, Rows
from recipes.benchmarks.timing import alternate, ratios, release_memory, spread
from recipes.benchmarks.training_step import (
    SEQUENCE_LENGTH,
    Setup,
    Trainer,
    made_batches,
    on_data,
    one_process,
    recommended,
    training_data,
)
from recipes.common.json_content import Json
from recipes.common.places import DS_CONFIGS
from recipes.corpus.token_shards import TokenShards
from recipes.engine.cuda_graphs import CudaGraphs
from recipes.engine.ds_config import read_config
from recipes.engine.micro_steps import Device, MicroSteps
from recipes.engine.world import World
from recipes.reporting.figures import COLORS

ROWS = [
    *(("rapidbert-base", sequences) for sequences in (64, 128, 512)),
    *(("rapidbert-large", sequences) for sequences in (64, 256)),
]
TOY_ROWS = [("rapidbert-tiny", 4)]
ONE_BY_ONE, GRAPHS = "one by one", "graphs"
PARITY_STEPS = 200
REPEATS = 7
STEPS_MADE = 8
"""Micro-batches that are used in turn, of a few shapes."""


@dataclass(frozen=True)
class Settings(DataSettings):
    """Compares kernels launched one by one with CUDA graphs of whole micro-batches."""


def device(record: Record) -> Device:
    """Return what records graphs here.

    Raises:
        NotHere: there is no GPU.
    """
    if not record.gpu:
        raise NotHere("CUDA graphs need a GPU")
    return CudaGraphs()


def measure(settings: Settings, record: Record) -> None:
    record["rows"] = []
    record["settings"] = {"parity_steps": PARITY_STEPS, "repeats": REPEATS}
    in_place = read_config(DS_CONFIGS / "base.json")
    with training_data(settings.data, record) as shards, one_process() as world:
        for model, sequences in ROWS if record.gpu else TOY_ROWS:
            what = f"{model}, {sequences} sequences"
            if record.out_of_time(what):
                continue
            setup = replace(on_data(recommended(model, record)[0], shards), deepspeed=in_place)
            row = {"model": model, "sequences": sequences}
            record["rows"].append(row)
            record.attempt(what, measure_row, record, row, setup, shards, world)
            release_memory()
            record.save()


def measure_row(record: Record, row: Json, setup: Setup, shards: TokenShards, world: World) -> None:
    """Fill a row of the record: parity first, then the times of steps in turns."""
    size = row["sequences"]
    batches = made_batches(shards, size, size, SEQUENCE_LENGTH, STEPS_MADE)
    with (
        Trainer(setup, size, size, batches, world) as one_by_one,
        Trainer(setup, size, size, batches, world) as graphs,
    ):
        contenders: dict[str, Callable[[], Any]] = {ONE_BY_ONE: one_by_one.step}
        try:
            # Half of the time that is left: the clock, which decides, needs the rest.
            row |= parity(one_by_one, graphs, device(record), record.left() / 2)
            contenders[GRAPHS] = graphs.step
        finally:
            times = alternate(
                contenders, world.device, repeats=REPEATS, go_on=lambda _: record.left() > 0
            )
            row["step_seconds"] = {name: spread(seconds) for name, seconds in times.items()}
            record.save()
    row["ratio"] = ratios(times[GRAPHS], times[ONE_BY_ONE])
    said = f"{shown(row['ratio'], '.3f')} times the time of a step; {verdict(row)}"
    print(f"{row['model']}, {size} sequences: {said}", flush=True)


def parity(one_by_one: Trainer, graphs: Trainer, device: Device, seconds: float) -> Json:
    """Train both, and return how far their losses are apart.

    Args:
        seconds: after which no further step is begun.

    Raises:
        NotHere: graphs were given up; the reason is what was said.
    """
    lines: list[str] = []
    graphs.micro_steps = MicroSteps(graphs.engine, "on", device, lines.append)
    losses: list[list[float]] = [[], []]
    ends = time.monotonic() + seconds
    for _ in range(PARITY_STEPS):
        for trainer, found in zip((one_by_one, graphs), losses, strict=True):
            trainer.step()
            assert trainer.loss is not None
            found.append(float(trainer.loss))
        if time.monotonic() >= ends:
            break
    if not lines or not lines[-1].endswith(": used"):
        raise NotHere(lines[-1] if lines else f"no graph in {len(losses[0])} steps")
    apart = [abs(b - a) / abs(a) for a, b in zip(*losses, strict=True)]
    return {
        "largest_relative_difference": max(apart),
        "equal_steps": sum(difference == 0 for difference in apart),
        "steps": len(apart),
        "trial": lines[0],
    }


def verdict(row: Json) -> str:
    """Say in how many steps the losses were equal, and how far apart they were at most."""
    equal, steps = row["equal_steps"], row["steps"]
    if equal == steps:
        return f"{steps} losses equal to the bit"
    largest = row["largest_relative_difference"]
    return f"{equal} of {steps} losses equal, the others within {largest:.1e}"


def figure(record: Json) -> Figure:
    """Draw the seconds of a step, launched one by one and as graphs."""
    drawn, ((axes,),) = panels(1, 1, "Launches", record)
    rows = [row for row in record["rows"] if "step_seconds" in row]
    for place, row in enumerate(rows):
        for number, (name, seconds) in enumerate(row["step_seconds"].items()):
            label = name if place == 0 else None
            at = place + 0.4 * number
            axes.bar(at, 1e3 * seconds["median"], 0.38, color=COLORS[number], label=label)
    axes.set_xticks(range(len(rows)), [f"{row['model']}\n{row['sequences']}" for row in rows])
    axes.set_ylabel("ms of a step of one micro-batch")
    if rows:
        axes.legend()
    return drawn


def table(record: Json) -> Rows:
    rows: Rows = [("model", "sequences", *(f"ms {name}" for name in (ONE_BY_ONE, GRAPHS)), "")]
    for row in record["rows"]:
        seconds = row.get("step_seconds", {})
        times = (
            shown(seconds[name], ",.2f", 1e-3) if name in seconds else "-"
            for name in (ONE_BY_ONE, GRAPHS)
        )
        said = verdict(row) if "ratio" in row else "-"
        rows.append((row["model"], str(row["sequences"]), *times, said))
    return rows


def headlines(record: Json) -> list[tuple[str, str]]:
    """List each size: time and parity."""
    return [
        (
            f"{row['model']}, {row['sequences']} sequences, graphs",
            f"{row['ratio']['median']:.2f} x the time of a step; {verdict(row)}",
        )
        for row in record["rows"]
        if "ratio" in row
    ]


MODE = Mode(Settings, measure, table, figure, headlines)
