"""Scores of finetuning as a part of a page: bars, every seed, the chance level and the control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.common.files import write_whole
from recipes.common.tables import shown
from recipes.reporting.html_page import (
    Markup,
    Section,
    document,
    drawing,
    folded,
    joined,
    listed,
    paragraph,
    subheading,
    table,
)
from recipes.reporting.score_figure import figure
from recipes.reporting.score_table import EXPLAINED
from recipes.reporting.scores import STAND_IN, Series, title
from recipes.tasks.glue_tasks import TASKS
from recipes.training.console import duration

NOT_GLUE = (
    f"{STAND_IN}. These tasks have GLUE's format and were made from the text that comes with "
    "Python: compare their scores with each other, with no published one."
)


def scores_part(
    all_series: Sequence[Series], controls: Mapping[str, Series], key: str = "scores"
) -> Markup:
    """Return figure, tables and notes.

    Args:
        controls: scores from random weights, by the name of the series.
        key: as for `drawing`.
    """
    drawn = [*all_series, *controls.values()]
    parts = [paragraph(NOT_GLUE, "warning")] if any(one.stand_in for one in drawn) else []
    caption = (
        "Bars are means over the seeds, points are seeds, lines across all tasks are averages over "
        "the tasks that are there, black lines over a task the best answer that is the same for "
        "every example."
    )
    parts += [drawing(figure(drawn), caption, key), paragraph(EXPLAINED)]
    for series in all_series:
        control = controls.get(series.name)
        if len(all_series) > 1:
            parts.append(subheading(series.name))
        parts += [table(rows(series, control)), listed(series.notes)]
        if series.task_notes:
            parts.append(folded("Notes about the data", listed(series.task_notes)))
    return joined(*parts)


def rows(series: Series, control: Series | None) -> list[tuple[str, ...]]:
    """Return a header, a row for each task with its seeds, and the average."""
    header = ("task", "metric", "mean", "± sd", "every seed", "chance", "from random weights")
    other = {task.task: task.mean for task in control.tasks} if control else {}
    absent = "not measured"
    lines = [
        (
            TASKS[task.task].folder,
            task.metric,
            f"{task.mean:.1f}",
            shown(task.deviation, "{:.1f}"),
            ", ".join(f"{score:.1f}" for score in task.scores.values()),
            shown(task.chance, "{:.1f}", "not recorded"),
            shown(other.get(task.task), "{:.1f}", absent),
            task.start,
            duration(task.seconds),
            _dollars(task.dollars),
        )
        for task in series.tasks
    ]
    same = control is not None and [t.task for t in control.tasks] == [t.task for t in series.tasks]
    average = (
        *(series.average_name, "", f"{series.average:.1f}", "", ""),
        shown(series.chance, "{:.1f}", "not recorded"),
        f"{control.average:.1f}" if control and same else "",
        "",
        duration(sum(task.seconds for task in series.tasks)),
        _dollars(sum(task.dollars for task in series.tasks)),
    )
    return [(*header, "start", "time", "cost"), *lines, average]


def _dollars(spent: float) -> str:
    return f"${spent:,.2f}" if spent else "no GPU"


def write_page(
    all_series: Sequence[Series], output: Path, more: Sequence[Section], notes: Sequence[str]
) -> Path:
    """Write `scores.html` into a directory.

    Args:
        more: sections behind the scores.
        notes: what could not be read.
    """
    path = output / "scores.html"
    names = ", ".join(series.name for series in all_series)
    first = listed([f"Left out: {note}" for note in notes])
    sections = [Section("Scores", scores_part(all_series, {})), *more]
    write_whole(path, document(title(all_series), names, first, sections))
    return path
