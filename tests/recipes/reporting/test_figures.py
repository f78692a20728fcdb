"""The style that all figures have, and their file."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.image import imread

from recipes.reporting.figures import COLORS, add_legend, panels, write_png


def test_panels_and_legends_have_the_style_and_others_do_not():
    before = dict(mpl.rcParams)
    figure, grid = panels(2, 3, "A title", size=(9, 5))
    assert [len(row) for row in grid] == [3, 3] and figure.get_suptitle() == "A title"
    axes = grid[1][2]
    assert not axes.spines["top"].get_visible() and axes.spines["left"].get_visible()
    assert axes.xaxis.get_gridlines()[0].get_color() == "#e4e4e4"
    (line,) = axes.plot([0, 1], label="first")
    assert line.get_color() == COLORS[0] == "#0072B2"
    add_legend(axes, columns=1)
    legend = axes.get_legend()
    assert legend is not None and not legend.get_frame_on()
    assert dict(mpl.rcParams) == before


def test_a_figure_becomes_a_png_of_150_dots_per_inch(tmp_path):
    figure, _ = panels(1, 1, "A title", size=(4, 2))
    write_png(tmp_path / "a.png", figure)
    assert imread(tmp_path / "a.png").shape == (300, 600, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
