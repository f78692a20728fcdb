"""Curves of pretraining runs: loss against sequences, throughput against steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from recipes.reporting.figures import COLORS, DASHED, add_legend, stacked_panels
from recipes.reporting.runs import RecordedRun, Values

BINS = 120
"""Points of a drawn curve; more records than twice that are drawn as means."""


def loss_figure(runs: Sequence[RecordedRun]) -> Figure:
    """Draw training and evaluation loss in nats against sequences, with the unigram entropy."""
    figure, (axes,) = stacked_panels(1, "Masked-language-model loss")
    first = min(run.steps[0]["sequences"] for run in runs)
    last = max(run.steps[-1]["sequences"] for run in runs)
    # Over less than two decades the logarithm would only hide the end, which matters most.
    if first > 0 and last / first >= 100:
        axes.set_xscale("log")
    # Kind by kind, not run by run: the legend fills its columns in this order.
    for run, color, prefix in _styled(runs):
        _draw(axes, *run.curve("sequences", "loss/train"), color, label=f"{prefix}training")
    for run, color, prefix in _styled(runs):
        axes.plot(
            *run.curve("sequences", "loss/eval"),
            color=color,
            linestyle="none",
            marker="o",
            markerfacecolor="white",
            markersize=5,
            label=f"{prefix}evaluation, 15% masked",
        )
    shared = len({run.unigram_entropy for run in runs}) == 1
    for run, color, prefix in list(_styled(runs))[: 1 if shared else None]:
        entropy = run.unigram_entropy
        axes.axhline(
            entropy,
            color="#777777" if shared else color,
            linestyle=DASHED,
            linewidth=1,
            label=f"{'' if shared else prefix}unigram entropy {entropy:.2f}",
        )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("sequences")
    axes.set_ylabel("nats per masked token")
    add_legend(axes, columns=3)
    return figure


def throughput_figure(runs: Sequence[RecordedRun]) -> Figure:
    """Draw real tokens per second, and the shares lost to padding and to waiting, by step."""
    figure, (speed, lost) = stacked_panels(2, "Throughput")
    for run, color, _ in _styled(runs):
        _draw(speed, *run.curve("step", "throughput/tokens_per_sec"), color, label=run.name)
    for key, label, style in (
        ("throughput/padding_share", "padding, of the tokens computed", "-"),
        ("time/data_wait_share", "waiting for data, of the time", (0, (2, 1.5))),
    ):
        for run, color, prefix in _styled(runs):
            _draw(lost, *run.curve("step", key), color, label=prefix + label, linestyle=style)
    speed.set_ylabel("real tokens/s, all devices")
    speed.yaxis.set_major_formatter(EngFormatter(sep=""))
    lost.set_ylabel("share lost")
    lost.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    lost.set_xlabel("step")
    for axes in (speed, lost):
        axes.set_ylim(bottom=0)
    if len(runs) > 1:
        add_legend(speed, columns=3)
    add_legend(lost, columns=2)
    return figure


def _styled(runs: Sequence[RecordedRun]) -> Iterator[tuple[RecordedRun, str, str]]:
    """Give each run its colour and the prefix of its labels, which is empty for a run alone."""
    for index, run in enumerate(runs):
        yield run, COLORS[index % len(COLORS)], f"{run.name}: " if len(runs) > 1 else ""


def _draw(
    axes: Axes, xs: Values, ys: Values, color: str, *, label: str, linestyle: object = "-"
) -> None:
    """Draw a curve; one of many points as its means, with the points faint behind them."""
    style: dict[str, Any] = {
        "color": color,
        "linestyle": linestyle,
        "label": label,
        "linewidth": 1.6,
    }
    if len(xs) <= 2 * BINS:
        axes.plot(xs, ys, **style)
        return
    axes.plot(xs, ys, color=color, alpha=0.35, linewidth=0.6)
    axes.plot(*bin_means(xs, ys, BINS, logarithmic=axes.get_xscale() == "log"), **style)


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
