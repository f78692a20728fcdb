"""The figure of the score table: bars, dots and averages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from recipes.reporting.figures import Look, add_legend, in_legend, look, panels
from recipes.reporting.scores import Series, TaskScores, title
from recipes.tasks.glue_tasks import TASKS


def figure(all_series: Sequence[Series]) -> Figure:
    """Draw a bar per task and series at the mean, a dot per seed, lines at average and chance."""
    present = [name for name in TASKS if any(name in _by_name(series) for series in all_series)]
    drawn, [[axes]] = panels(1, 1, title(all_series), size=(9, 5))
    if any(series.stand_in for series in all_series):
        drawn.suptitle(title(all_series), color="#B00020")
    width = 0.8 / len(all_series)
    for index, series in enumerate(all_series):
        style = look(index)
        scores = _by_name(series)
        shift = (index - (len(all_series) - 1) / 2) * width
        places = {name: place + shift for place, name in enumerate(present) if name in scores}
        label = in_legend(series.name)
        for name, place in places.items():
            _draw_task(axes, scores[name], place, width, style, label)
            label = ""  # once is enough
        axes.axhline(
            series.average,
            color=style.color,
            linestyle=look(index + 1).dashes,
            linewidth=1.2,
            label=f"{series.average_name} {series.average:.1f}",
        )
    _draw_chance(axes, all_series, present)
    axes.set_xticks(
        range(len(present)), [f"{TASKS[name].folder}\n{TASKS[name].score}" for name in present]
    )
    axes.set_ylabel("score × 100: mean over seeds, and each seed")
    axes.set_ylim(top=105)  # the bottom is 0, or lower where a correlation is
    axes.grid(visible=False, axis="x")
    add_legend(axes, columns=2)
    return drawn


def _draw_chance(axes: Axes, all_series: Sequence[Series], present: Sequence[str]) -> None:
    """Draw a line over each task at the score of the best constant answer."""
    label = "best constant answer"
    for place, name in enumerate(present):
        found = [_by_name(series)[name].chance for series in all_series if name in _by_name(series)]
        known = [chance for chance in found if chance is not None]
        if known:
            axes.hlines(known[0], place - 0.45, place + 0.45, color="black", label=label)
            label = ""  # once is enough


def _draw_task(
    axes: Axes, task: TaskScores, place: float, width: float, style: Look, label: str
) -> None:
    """Draw a task's bar at `place` on the x-axis, its seeds and its mean in figures."""
    bar: dict[str, Any] = {
        "color": style.color,
        "alpha": 0.45,
        "hatch": style.hatch,
        "label": label,
    }
    axes.bar(place, task.mean, width=0.9 * width, **bar)
    values = list(task.scores.values())
    # Side by side within the bar, in the order of the seeds: equal scores stay visible.
    spread = [0.6 * width * ((k + 0.5) / len(values) - 0.5) for k in range(len(values))]
    steps = [place + offset for offset in spread]
    axes.plot(steps, values, style.marker, markersize=4, color=style.color, zorder=3)
    axes.annotate(
        f"{task.mean:.1f}",
        (place, max(*values, task.mean)),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        path_effects=[withStroke(linewidth=2, foreground="white")],  # over the lines
    )


def _by_name(series: Series) -> dict[str, TaskScores]:
    return {task.task: task for task in series.tasks}
