"""The planner's figure, Figure S1 as predicted: constant against growing global batches.

A row for each model: tokens per second against the number of GPUs, what a step of the planned
batch is spent on, and what a run costs against how long it takes. With it a page with the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    NullFormatter,
    StrMethodFormatter,
)

from recipes.common.errors import Faults
from recipes.common.files import write_whole
from recipes.common.json_content import json_bytes
from recipes.common.tables import markdown
from recipes.planning.commands import lines_to_paste
from recipes.planning.forecast import CALIBRATED_GPUS, Forecast, Times, forecast
from recipes.planning.settings import Question
from recipes.reporting.figures import COLORS, add_legend, count_axis, in_style, panels, write_png
from recipes.reporting.output import make_directory
from recipes.reporting.plan_page import (
    explanation,
    forecast_record,
    forecast_table,
    heading,
    in_sequences,
    notes,
    recommendation,
    starting,
    step_table,
)

LARGER = (1, 4, 16)
"""Constant global batches that are drawn, in multiples of the planned one (4,096 to 65,536)."""
STEM = "predicted_scaling"
PARTS = {
    "micro-batches": ("compute", COLORS[0], ""),
    "exchange": ("exchange", COLORS[1], "///"),
    "update": ("update", COLORS[2], "..."),
    "waiting": ("waiting", COLORS[4], "xxx"),
}
"""Names of a step's parts with their fields, colours and hatches, which tell them apart in grey."""


@dataclass(frozen=True)
class Simulation:
    """A model on all numbers of GPUs."""

    question: Question
    constant: dict[int, list[Forecast]]
    """By global batch."""
    growing: list[Forecast]
    """With as many sequences per GPU as the planned batch leaves to one of a node."""

    @property
    def planned(self) -> list[Forecast]:
        """Forecasts of the planned global batch."""
        return self.constant[self.question.global_batch]


def simulate(question: Question) -> Simulation:
    """Predict constant and growing global batches on all numbers of GPUs.

    Raises:
        UserError: everything that does not fit, at once.
    """
    faults, gpus = Faults(), sorted(set(question.settings.hardware.gpus))
    batch = question.global_batch

    def predicted(batches: dict[int, int]) -> list[Forecast]:
        found = []
        for count, size in batches.items():
            asked = replace(question, deepspeed={**question.deepspeed, "train_batch_size": size})
            found.append(faults.attempt(partial(forecast, asked, count)))
        return [each for each in found if each is not None]

    constant = {batch * by: predicted(dict.fromkeys(gpus, batch * by)) for by in LARGER}
    per_gpu = max(1, batch // question.gpu.gpus_per_node)
    growing = predicted({count: per_gpu * count for count in gpus})
    if any(each.times is None for each in growing):
        faults.append(f"{question.config_path}: no times for fp32, nothing to draw")
    faults.stop()
    return Simulation(question, constant, growing)


def write(questions: Sequence[Question], output: Path) -> str:
    """Write `predicted_scaling.png`, `.md` and `.json`; return what a console shows.

    Raises:
        UserError: as `simulate`.
    """
    faults = Faults()
    found = [faults.attempt(partial(simulate, question)) for question in questions]
    faults[:] = list(dict.fromkeys(faults))  # of several models the same
    faults.stop()
    simulations = [each for each in found if each is not None]
    make_directory(output)
    path = output / STEM
    write_png(path.with_suffix(".png"), figure(simulations))
    text = report(simulations)
    write_whole(path.with_suffix(".md"), f"{text}\n".encode())
    content = json_bytes([simulation_record(each) for each in simulations])
    write_whole(path.with_suffix(".json"), content)
    files = "\n".join(str(path.with_suffix(suffix)) for suffix in (".png", ".md", ".json"))
    tables = [
        "\n\n".join(
            [
                heading(each.question),
                markdown(forecast_table(each.question, each.planned), to_the_right=True),
                *recommendation(each.planned),
            ]
        )
        for each in simulations
    ]
    return "\n\n".join([*tables, files])


def report(simulations: Sequence[Simulation]) -> str:
    """Return the page: a table of recommendations for each model, then its assumptions."""
    parts = ["# Predicted scaling", f"![predicted scaling]({STEM}.png)"]
    parts += [
        "Everything here is a prediction of `python recipes/plan.py --simulate`; nothing was "
        "measured. Bands and the column `between` are the interval that the assumptions below "
        "leave."
    ]
    for each in simulations:
        question = each.question
        pasted = "\n".join(lines_to_paste(question, each.planned))
        parts += [f"## {question.model.name}", heading(question)]
        parts += [markdown(forecast_table(question, each.planned))]
        parts += ["\n\n".join([*notes(question, each.planned), *recommendation(each.planned)])]
        parts += [
            f"{starting(each.planned)}:",
            f"```bash\n{pasted}\n```",
            "A step in ms:",
            markdown(step_table(each.planned)),
        ]
        parts += [f"With a global batch that grows, {growing_name(each)}:"]
        parts += [markdown(forecast_table(question, each.growing))]
    parts += ["## What the numbers stand on"]
    lines = dict.fromkeys(line for each in simulations for line in explanation(each.question))
    parts += ["\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts)


def simulation_record(each: Simulation) -> dict[str, object]:
    """Return a model's predictions as JSON types."""
    return {
        "model": each.question.model.name,
        "gpu": each.question.gpu.name,
        "predicted": True,
        "constant": {
            str(batch): [forecast_record(one) for one in forecasts]
            for batch, forecasts in each.constant.items()
        },
        "growing": [forecast_record(one) for one in each.growing],
        "stands_on": explanation(each.question),
    }


@in_style
def figure(simulations: Sequence[Simulation]) -> Figure:
    """Draw a row of three panels for each model."""
    gpu = simulations[0].question.gpu.name
    size = (15, 1 + 4.2 * len(simulations))
    drawn, grid = panels(len(simulations), 3, f"Predicted, not measured: {gpu}", size=size)
    for each, (speed, step, cost) in zip(simulations, grid, strict=True):
        _draw_speed(speed, each)
        _draw_step(step, each)
        _draw_cost(cost, each)
    return drawn


def growing_name(each: Simulation) -> str:
    """Return how the growing global batch is called."""
    first = each.growing[0]
    return f"{first.plan.requested // first.gpus} per GPU"


def _times(forecasts: Sequence[Forecast]) -> list[Times]:
    return [each.times for each in forecasts if each.times]


def _draw_speed(axes: Axes, each: Simulation) -> None:
    gpus = [one.gpus for one in each.planned]
    first = _times(each.growing)[0].tokens_per_second / gpus[0]
    axes.plot(gpus, [first * n for n in gpus], color="0.6", linestyle=":", label="linear")
    lines = [(f"{batch:,}", found) for batch, found in each.constant.items()]
    lines += [(growing_name(each), each.growing)]
    looks = zip(COLORS, "os^D", ("-", "-", "-", "--"), strict=False)
    for (name, found), (color, marker, line) in zip(lines, looks, strict=True):
        times = _times(found)
        rates = [one.tokens_per_second for one in times]
        axes.plot(gpus, rates, color=color, marker=marker, linestyle=line, label=name)
        if found is each.planned or found is each.growing:
            low = [t.tokens_per_second * t.step.total / t.slow for t in times]
            high = [t.tokens_per_second * t.step.total / t.fast for t in times]
            axes.fill_between(gpus, low, high, color=color, alpha=0.15, linewidth=0)
    count_axis(axes, gpus)
    axes.set_yscale("log")
    axes.set_ylabel(f"{each.question.model.name}: tokens/s, all GPUs")
    axes.set_xlabel("GPUs; lines are global batches in sequences")
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if gpus[-1] > CALIBRATED_GPUS:
        axes.axvspan(CALIBRATED_GPUS * 1.02, gpus[-1] * 1.1, color="0.93", zorder=0)
        place = (CALIBRATED_GPUS * 1.1, 0.02)
        axes.text(*place, "extrapolated", transform=axes.get_xaxis_transform(), fontsize=9)
    add_legend(axes, columns=3)


def _draw_step(axes: Axes, each: Simulation) -> None:
    times = _times(each.planned)
    places = range(len(times))
    bottom = [0.0] * len(times)
    for name, (field, color, hatch) in PARTS.items():
        heights = [1e3 * getattr(one.step, field) for one in times]
        bars = axes.bar(places, heights, 0.7, bottom, label=name, color=color, edgecolor="white")
        for bar in bars:
            bar.set_hatch(hatch)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    low = [1e3 * (one.step.total - one.fast) for one in times]
    high = [1e3 * (one.slow - one.step.total) for one in times]
    axes.errorbar(places, bottom, yerr=(low, high), fmt="none", ecolor="black", capsize=3)
    axes.set_xticks(places, [str(one.gpus) for one in each.planned])
    axes.set_xlabel(f"GPUs, global batch {each.question.global_batch:,}")
    axes.set_ylabel("ms a step")
    axes.grid(axis="x", visible=False)
    add_legend(axes, columns=2)


def _draw_cost(axes: Axes, each: Simulation) -> None:
    lines = ((f"{each.question.global_batch:,}", each.planned), (growing_name(each), each.growing))
    for (name, found), (color, marker, line) in zip(
        lines, ((COLORS[0], "o", "-"), (COLORS[3], "D", "--")), strict=True
    ):
        costs = [one.costs[0] for one in _times(found)]
        hours, dollars = [c.hours for c in costs], [c.dollars for c in costs]
        axes.plot(hours, dollars, color=color, marker=marker, linestyle=line, label=name)
        for one, x, y in zip(found, hours, dollars, strict=True):
            place = (4, 4 if found is each.planned else -12)
            axes.annotate(str(one.gpus), (x, y), place, textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    if each.question.gpu.dollars_per_hour:
        axes.set_yscale("log")
    axes.margins(0.08)  # room for the numbers of GPUs
    length = in_sequences(each.question.lengths[0])
    axes.set_xlabel(f"hours to {length}; at each point the GPUs")
    axes.set_ylabel("dollars")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_formatter(FuncFormatter(_first_digits))
    axes.tick_params(which="minor", labelsize=8)
    add_legend(axes, columns=2)


def _first_digits(value: float, _: int | None) -> str:
    return f"{value:,g}" if f"{value:e}"[0] in "25" else ""
