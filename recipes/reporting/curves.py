"""Curves of pretraining runs: loss against steps, tokens and time; speed and losses over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FormatStrFormatter, PercentFormatter

from recipes.reporting.figures import (
    DASHED,
    Dashes,
    Look,
    add_legend,
    from_zero,
    in_legend,
    in_style,
    look,
    panels,
    stacked_panels,
)
from recipes.reporting.runs import RecordedRun, Values

BINS = 120
"""Points of a drawn curve; more records than twice that are drawn as means."""
GREY = "#777777"


class Position(NamedTuple):
    """What a curve is drawn against."""

    key: str
    label: str
    unit: float = 1.0
    """What of the record is one on the axis."""


STEPS, SEQUENCES, TOKENS = (Position(key, key) for key in ("step", "sequences", "tokens"))


def wall_time(runs: Sequence[RecordedRun]) -> Position:
    """Return time in the largest unit of which the longest run has taken two at least."""
    longest = max(run.latest["seconds"] for run in runs)
    for name, seconds in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if longest >= 2 * seconds:
            return Position("seconds", f"{name} of wall time", seconds)
    return Position("seconds", "seconds of wall time")


def loss_figure(runs: Sequence[RecordedRun]) -> Figure:
    """Draw training and evaluation loss in nats against sequences, with the unigram entropy."""
    figure, (axes,) = stacked_panels(1, "Masked-language-model loss")
    _draw_losses(axes, runs, SEQUENCES)
    axes.set_ylabel("nats per masked token")
    add_legend(axes, columns=3)
    return figure


def losses_figure(runs: Sequence[RecordedRun]) -> Figure:
    """Draw the losses against steps, against tokens and against wall time, side by side."""
    figure, [row] = panels(1, 3, "Masked-language-model loss", size=(11, 4.4))
    for axes, position in zip(row, (STEPS, TOKENS, wall_time(runs)), strict=True):
        _draw_losses(axes, runs, position)
        axes.sharey(row[0])
    for axes in row[1:]:
        axes.tick_params(labelleft=False)
    row[0].set_ylabel("nats per masked token")
    _legend_below(figure, row[0])
    return figure


def throughput_figure(runs: Sequence[RecordedRun]) -> Figure:
    """Draw tokens per second, utilisation and what is lost, over wall time, restarts marked."""
    time = wall_time(runs)
    logged = [row for row in _SPEEDS if any(run.has(row[0]) for run in runs)]
    rows = max(1, -(-len(logged) // 2))
    figure, grid = panels(rows, 2, "Throughput over time", size=(9, 1.2 + 2.4 * rows))
    cells = [axes for row in grid for axes in row]
    for axes, (key, title, percent) in zip(cells, logged, strict=False):
        for run, style, _ in _styled(runs):
            _draw(axes, *run.curve("seconds", key), time, style, label=in_legend(run.name))
        axes.set_title(title, loc="left", fontsize=9)
        axes.yaxis.set_major_formatter(
            PercentFormatter(xmax=1) if percent else EngFormatter(sep="")
        )
        from_zero(axes)
        axes.set_xlabel(time.label)
        for run, style, _ in _styled(runs):
            _mark_restarts(axes, run, time, style)
    for axes in cells[len(logged) :]:
        axes.set_axis_off()
    if not logged:
        cells[0].text(0, 0.5, "no speed was logged")
        return figure
    if len(runs) > 1 or any(run.restarts for run in runs):
        _legend_below(figure, cells[0])
    return figure


_SPEEDS = (
    ("throughput/tokens_per_sec", "real tokens/s, all devices", False),
    ("throughput/device/mfu", "MFU (6N)", True),
    ("throughput/padding_share", "padding, of the tokens computed", True),
    ("time/data_wait_share", "waiting for data, of the time", True),
)
"""What is drawn: the key of the log, its title, whether it is a share."""


RATE_KEYS = ("optimizer/lr", "optimizer/grad_norm")


def learning_rate_figure(runs: Sequence[RecordedRun]) -> Figure:
    """Draw the learning rate and the norm of the gradient, as far as logged, against steps."""
    figure, [cells] = panels(1, 2, "Learning rate and gradient", size=(9, 3.4))
    for axes, key, title in zip(
        cells,
        RATE_KEYS,
        ("learning rate", "norm of the gradient"),
        strict=True,
    ):
        for run, style, _ in _styled(runs):
            _draw(axes, *run.curve("step", key), STEPS, style, label=in_legend(run.name))
        axes.set_title(title, loc="left", fontsize=9)
        from_zero(axes)
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    cells[0].yaxis.set_major_formatter(FormatStrFormatter("%.1e"))
    if len(runs) > 1:
        _legend_below(figure, cells[0])
    return figure


@in_style
def _legend_below(figure: Figure, axes: Axes) -> None:
    """Add one legend for all panels below them: that of several runs is wider than a panel."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3)


def _draw_losses(axes: Axes, runs: Sequence[RecordedRun], position: Position) -> None:
    first = min((run.steps or run.evals)[0][position.key] for run in runs)
    last = max(run.latest[position.key] for run in runs)
    # Over less than two decades the logarithm would only hide the end, which matters most.
    if position is SEQUENCES and first > 0 and last / first >= 100:
        axes.set_xscale("log")
    # Kind by kind, not run by run: the legend fills its columns in this order.
    for run, style, prefix in _styled(runs):
        xs, ys = run.curve(position.key, "loss/train")
        _draw(axes, xs, ys, position, style, label=f"{prefix}training")
    for run, style, prefix in _styled(runs):
        xs, ys = run.curve(position.key, "loss/eval")
        axes.plot(
            xs / position.unit,
            ys,
            color=style.color,
            linestyle="none",
            marker=style.marker,
            markerfacecolor="white",
            markersize=5,
            label=f"{prefix}evaluation, 15% masked",
        )
    known = [(run, run.unigram_entropy) for run in runs if run.unigram_entropy is not None]
    shared = len({entropy for _, entropy in known}) == 1
    for run, style, prefix in list(_styled([run for run, _ in known]))[: 1 if shared else None]:
        axes.axhline(
            run.unigram_entropy or 0.0,
            color=GREY if shared else style.color,
            linestyle=DASHED,
            linewidth=1,
            label=f"{'' if shared else prefix}unigram entropy {run.unigram_entropy:.2f}",
        )
    if position.key != "seconds":  # 0.5 minutes are not 500m
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(position.label)


def _mark_restarts(axes: Axes, run: RecordedRun, time: Position, style: Look) -> None:
    label: str | None = "restart"
    for restart in run.restarts:
        at = restart.seconds / time.unit
        axes.axvline(at, color=style.color, linestyle=(0, (1, 2)), linewidth=1)
        # At the foot of the panel, with the run's own marker.
        axes.plot([at], [0], style.marker, color="black", markersize=5, clip_on=False, label=label)
        label = None


def _styled(runs: Sequence[RecordedRun]) -> Iterator[tuple[RecordedRun, Look, str]]:
    """Give each run its look and the prefix of its labels, which is empty for a run alone."""
    for index, run in enumerate(runs):
        yield run, look(index), f"{in_legend(run.name)}: " if len(runs) > 1 else ""


def _draw(
    axes: Axes, xs: Values, ys: Values, position: Position, style: Look, *, label: str
) -> None:
    """Draw a curve; one of many points as its means, with the points faint behind them."""
    xs = xs / position.unit
    dashes: Dashes = style.dashes
    line: dict[str, Any] = {"color": style.color, "linestyle": dashes, "label": label}
    line["linewidth"] = 1.6
    if len(xs) <= 2 * BINS:
        axes.plot(xs, ys, **line)
        return
    axes.plot(xs, ys, color=style.color, alpha=0.35, linewidth=0.6)
    axes.plot(*bin_means(xs, ys, BINS, logarithmic=axes.get_xscale() == "log"), **line)


def bin_means(xs: Values, ys: Values, bins: int, *, logarithmic: bool) -> tuple[Values, Values]:
    """Return means of x and y [at most bins] over bins of equal width on the axis as drawn.

    Unlike a running mean it neither lags behind a falling curve nor loses its beginning.

    Args:
        xs: positions [points], ascending, positive where `logarithmic`.
        ys: values [points].
    """
    spaced = np.log(xs) if logarithmic else xs
    edges = np.linspace(spaced[0], spaced[-1], bins + 1)
    index = np.searchsorted(edges[1:-1], spaced, side="right")
    counts = np.bincount(index, minlength=bins)
    filled = counts > 0
    counts = counts[filled]
    x_means = np.bincount(index, weights=xs, minlength=bins)[filled] / counts
    y_means = np.bincount(index, weights=ys, minlength=bins)[filled] / counts
    return x_means, y_means
