"""Figures: empty panels in the style of `figures.mplstyle`, their legends, and the PNG file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context, rc_params_from_file, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

from recipes.common.files import write_whole

STYLE = Path(__file__).with_name("figures.mplstyle")
COLORS: tuple[str, ...] = tuple(
    rc_params_from_file(STYLE, use_default_template=False)["axes.prop_cycle"].by_key()["color"]
)
"""The style's palette."""

Dashes = str | tuple[int, tuple[float, ...]]
DASHED: Dashes = (0, (4, 3))
"""Line style of a level to compare with."""


@dataclass(frozen=True)
class Look:
    """How one of several things compared looks: without colour it is told by the rest."""

    color: str
    dashes: Dashes
    marker: str
    hatch: str


_DASHES: tuple[Dashes, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_MARKERS = "osD^v"
_HATCHES = ("", "///", "...", "xxx", "\\\\\\")


def look(index: int) -> Look:
    """Return the look of the thing that is number `index`; the first 140 all differ."""
    return Look(
        COLORS[index % len(COLORS)],
        _DASHES[index % len(_DASHES)],
        _MARKERS[index % len(_MARKERS)],
        _HATCHES[index % len(_HATCHES)],
    )


def in_legend(name: str) -> str:
    """Return somebody's name for something so that a legend shows it as it is.

    matplotlib leaves out labels that begin with `_`, and reads what is between `$` as a formula.
    """
    shown = name.replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{shown}" if shown.startswith("_") else shown


in_style = style.context(str(STYLE))


@in_style
def panels(
    rows: int, columns: int, title: str, *, size: tuple[float, float], share_x: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """Return an empty figure with its title at the upper left, and its axes [rows][columns].

    Args:
        size: width and height in inches.
        share_x: whether the panels of a column have one x-axis.
    """
    figure = Figure(figsize=size)
    grid = figure.subplots(rows, columns, sharex="col" if share_x else False, squeeze=False)
    figure.suptitle(title, x=0.01, ha="left")
    return figure, [list(row) for row in grid]


def stacked_panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of panels one above the other over one x-axis."""
    figure, grid = panels(count, 1, title, size=(9, 2 + 3 * count), share_x=True)
    stack = [axes for (axes,) in grid]
    for axes in stack:
        axes.margins(x=0.02)
    return figure, stack


def count_axis(axes: Axes, counts: Sequence[int]) -> None:
    """Make the x-axis logarithmic, with a tick at each count."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(counts)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def from_zero(axes: Axes) -> None:
    """Let the y-axis begin at zero, and leave room above what was drawn."""
    _, top = axes.get_ylim()
    axes.set_ylim(0, 1.05 * top)


@in_style
def add_legend(axes: Axes, columns: int) -> None:
    """Add a legend above the panel, where no curve can run through it."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)


@in_style
def write_png(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG file."""
    contents = io.BytesIO()
    figure.savefig(contents, format="png")
    write_whole(path, contents.getvalue())


@in_style
def svg_of(figure: Figure) -> bytes:
    """Return a figure as an SVG document, the same at every call."""
    contents = io.BytesIO()
    with rc_context({"svg.hashsalt": "rapidbert"}):
        figure.savefig(contents, format="svg", metadata={"Date": None})
    return contents.getvalue()
