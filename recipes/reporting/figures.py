"""Figures: empty panels in the style of `figures.mplstyle`, their legends, and the PNG file."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib import rc_params_from_file, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.common.files import write_whole

STYLE = Path(__file__).with_name("figures.mplstyle")
COLORS: tuple[str, ...] = tuple(
    rc_params_from_file(STYLE, use_default_template=False)["axes.prop_cycle"].by_key()["color"]
)
"""The style's palette."""
DASHED = (0, (4, 3))
"""Line style of a level to compare with."""

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
