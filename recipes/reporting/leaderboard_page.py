"""The leaderboard as a table and a figure: GLUE's average against dollars and GPU-hours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from recipes.common.errors import UserError
from recipes.common.files import write_whole
from recipes.common.json_content import finite
from recipes.common.tables import aligned, markdown, shown
from recipes.reporting.figures import COLORS, in_legend, panels, write_png
from recipes.reporting.html_page import (
    NOTHING,
    Markup,
    Section,
    document,
    drawing,
    folded,
    joined,
    listed,
    paragraph,
    table,
)
from recipes.reporting.leaderboard import Line, read, with_published
from recipes.reporting.output import make_directory
from recipes.tasks.glue_tasks import TASKS

CAPTION = (
    "GLUE's average against what pretraining cost, finetuning not counted. Hollow points are "
    "published, filled ones are lines of the file. A point whose source gives no price or duration "
    "is only in the table."
)
PROTOCOLS = (
    "Published averages are their authors': tasks, seeds and starts differ in detail. Dollars are "
    "at the price of each source."
)
NO_POINT = "No line of the file has all eight of GLUE's tasks and a GPU, so it adds no point."


def compares(line: Line) -> bool:
    """Say whether a line has GLUE's average, and not another one."""
    complete = line.get("published") or len(line.get("tasks") or ()) == len(TASKS)
    return bool(line.get("benchmark") == "GLUE" and complete)


def leaderboard_part(lines: Sequence[Line]) -> Markup:
    """Return figure and table of lines, those that compare with nothing apart."""
    comparable = [line for line in lines if compares(line)]
    others = [line for line in lines if not compares(line)]
    own = [line for line in comparable if not line.get("published")]
    parts = [drawing(figure(comparable), CAPTION, "leaderboard")]
    if not any(finite(line.get("gpu_hours")) for line in own):
        parts.append(paragraph(NO_POINT))
    ranked = sorted(comparable, key=lambda line: -line["score"])
    parts.append(table([_HEADER, *map(_row, ranked)], "GLUE"))
    if others:
        said = (
            "Not GLUE's average: stand-ins, or fewer tasks. These compare with each other at most"
        )
        parts.append(table([_HEADER, *map(_row, others)], said))
    sources = [f"{line['name']}: {line['source']}" for line in ranked if line.get("source")]
    commands = [_how(line) for line in lines if line.get("command")]
    parts.append(paragraph(PROTOCOLS))
    parts.append(folded("Sources of the published points", listed(sources)))
    if commands:
        parts.append(folded("What repeats each line", listed(commands)))
    return joined(*parts)


def write(board: Path, output: Path) -> str:
    """Write `leaderboard.html`, `.md` and `.png` of a file's lines and the published ones.

    Returns:
        The table and the page's place, for a console.

    Raises:
        UserError: there is no such file, or it is no leaderboard.
    """
    if not board.is_file():
        raise UserError(f"--leaderboard {board}: no such file; name a run to begin one")
    lines = with_published(read(board))
    make_directory(output)
    ranked = sorted(lines, key=lambda line: (not compares(line), -line["score"]))
    rows = [_HEADER, *map(_row, ranked)]
    title = "GLUE for what pretraining cost"
    write_png(output / "leaderboard.png", figure([line for line in lines if compares(line)]))
    sources = [f"- {line['name']}: {line['source']}" for line in ranked if line.get("source")]
    sources += [f"- {_how(line)}" for line in ranked if line.get("command")]
    text = [f"# {title}", "", markdown(rows), "", f"{CAPTION} {PROTOCOLS}", "", *sources]
    text += ["", "![score against cost](leaderboard.png)", ""]
    write_whole(output / "leaderboard.md", "\n".join(text).encode())
    page = output / "leaderboard.html"
    body = [Section("Leaderboard", leaderboard_part(lines))]
    write_whole(page, document(title, str(board), NOTHING, body))
    return f"{aligned(rows)}\n\n{page}"


_HEADER = ("name", "score", "tasks", "hardware", "hours", "GPU-hours", "dollars")


def _row(line: Line) -> tuple[str, ...]:
    published = bool(line.get("published"))
    missing = "not given" if published else "no GPU"
    if not published and line.get("hardware") is None:
        missing = "not known"
    tasks = str(line.get("score_name", ""))
    return (
        f"{line['name']}" + (" (published)" if published else ""),
        f"{line['score']:.1f}",
        tasks,
        str(line.get("hardware") or ("not given" if published else "not known")),
        shown(finite(line.get("hours")), "{:,.2f}", missing),
        shown(finite(line.get("gpu_hours")), "{:,.2f}", missing),
        shown(finite(line.get("dollars")), "${:,.2f}", missing),
    )


def _how(line: Line) -> str:
    revision, dates = line.get("git_revision") or {}, line.get("dates") or {}
    said = [f"{key} {value}" for key, value in (*revision.items(), *dates.items()) if value]
    return f"{line['name']}: {line['command']} ({', '.join(said)})"


def figure(lines: Sequence[Line]) -> Figure:
    """Draw the score against GPU-hours and against dollars, on logarithmic axes."""
    drawn, [cells] = panels(1, 2, "GLUE for what pretraining cost", size=(11, 4.6))
    for axes, key, label in zip(
        cells, ("gpu_hours", "dollars"), ("GPU-hours", "dollars"), strict=True
    ):
        points = [(x, line) for line in lines if (x := finite(line.get(key))) is not None and x > 0]
        axes.set_xscale("log")
        axes.margins(y=0.15)
        if points:
            low, high = (end(x for x, _ in points) for end in (min, max))
            spread = max(2.0, high / low)
            # Room for the names, which stand beside the points.
            axes.set_xlim(low / spread**0.45, high * spread**0.1)
        for x, line in points:
            _draw_point(axes, line, x, left=x > math.sqrt(low * high) or "series" in line)
        for name in {line["series"] for _, line in points if "series" in line}:
            joined_ = sorted((x, line["score"]) for x, line in points if line.get("series") == name)
            axes.plot(*zip(*joined_, strict=True), color=COLORS[0], linewidth=0.8, zorder=1)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if key == "dollars" else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
    cells[0].set_ylabel("GLUE average, dev")
    return drawn


def _draw_point(axes: Axes, line: Line, x: float, *, left: bool) -> None:
    """Draw a point; names of a series and of the file's own lines are above, others below."""
    above = "series" in line or not line.get("published")
    published = bool(line.get("published"))
    axes.plot(
        [x],
        [line["score"]],
        "o" if published else "D",
        color=COLORS[0] if published else COLORS[1],
        markerfacecolor="white" if published else COLORS[1],
        markersize=7,
    )
    axes.annotate(
        in_legend(str(line["name"])),
        (x, line["score"]),
        xytext=(-6 if left else 6, 6 if above else -6),
        textcoords="offset points",
        ha="right" if left else "left",
        va="bottom" if above else "top",
        fontsize=8,
    )
