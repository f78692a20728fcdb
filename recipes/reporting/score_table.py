"""The benchmark's score table, from the results that `recipes/finetune.py` writes.

Scores are GLUE's: the task's metric times 100 on the development set, the mean over seeds, and over
the tasks the mean of these; MNLI counts once. Every seed counts: the best one is shown, never used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.common.files import write_whole
from recipes.common.json_content import Json, json_bytes
from recipes.common.tables import aligned, shown
from recipes.common.tables import markdown as markdown_table
from recipes.reporting.figures import write_png
from recipes.reporting.score_figure import figure
from recipes.reporting.scores import Series, TaskScores, summarize, title
from recipes.tasks.glue_tasks import TASKS
from recipes.tasks.results import Result
from recipes.training.console import duration

EXPLAINED = (
    "Metrics times 100 on the development sets; ± is the sample standard deviation over the seeds; "
    "chance is the score of the best answer that is the same for every example; time is that of "
    "the jobs, summed."
)


def table(series: Series) -> list[tuple[str, ...]]:
    """Return a header, a row for each task, and the average with time and cost summed."""
    header = ("task", "metric", "mean", "± sd", "best", "seeds", "chance", "start", "also")
    rows = [(*header, "time", "cost")]
    rows += [
        (
            TASKS[task.task].folder,
            task.metric,
            f"{task.mean:.1f}",
            shown(task.deviation, "{:.1f}"),
            f"{task.best:.1f}",
            str(len(task.scores)),
            shown(task.chance, "{:.1f}"),
            task.start,
            ", ".join(f"{key} {value:.1f}" for key, value in task.others.items()) or "-",
            duration(task.seconds),
            f"${task.dollars:,.2f}",
        )
        for task in series.tasks
    ]
    seconds = sum(task.seconds for task in series.tasks)
    dollars = sum(task.dollars for task in series.tasks)
    seeds = sum(len(task.scores) for task in series.tasks)
    average = (series.average_name, "", f"{series.average:.1f}", "", "", str(seeds))
    chance = (shown(series.chance, "{:.1f}"), "", "")
    return [*rows, (*average, *chance, duration(seconds), f"${dollars:,.2f}")]


def console(all_series: Sequence[Series]) -> str:
    """Return the tables for a console."""
    parts = [title(all_series)]
    for series in all_series:
        named = [f"{series.name}"] if len(all_series) > 1 else []
        notes = list(series.notes)
        if series.task_notes:
            count = len(series.task_notes)
            notes.append(f"{count} note{'s' * (count > 1)} about the data in scores.md")
        parts.append("\n".join([*named, aligned(table(series)), *_listed(notes)]))
    return "\n\n".join(parts)


def markdown(all_series: Sequence[Series]) -> str:
    """Return tables, notes and figure as Markdown."""
    lines = [f"# {title(all_series)}", ""]
    if any(series.stand_in for series in all_series):
        lines += [
            "These tasks only have GLUE's format. They were made from the text that comes with "
            "Python; no score here compares with any published one.",
            "",
        ]
    lines += [
        EXPLAINED,
    ]
    for series in all_series:
        lines += ["", f"## {series.name}", "", markdown_table(table(series))]
        lines += ["", *_listed([*series.notes, *series.task_notes])]
    return "\n".join([*lines, "", "![scores](scores.png)", ""])


def _listed(notes: Sequence[str]) -> list[str]:
    return [f"- {note}" for note in notes]


def record(all_series: Sequence[Series]) -> Json:
    """Return what `scores.json` holds; scores times 100, time in seconds, cost in dollars."""
    return {
        "title": title(all_series),
        "stand_in": any(series.stand_in for series in all_series),
        "series": [
            {
                "name": series.name,
                "average": {
                    "name": series.average_name,
                    "score": series.average,
                    "tasks": len(series.tasks),
                },
                "tasks": {task.task: _task_record(task) for task in series.tasks},
                "seconds": sum(task.seconds for task in series.tasks),
                "dollars": sum(task.dollars for task in series.tasks),
                "notes": [*series.notes, *series.task_notes],
            }
            for series in all_series
        ],
    }


def _task_record(task: TaskScores) -> Json:
    return {
        "metric": task.metric,
        "mean": task.mean,
        "standard_deviation": task.deviation,
        "best": task.best,
        "chance": task.chance,
        "scores": task.scores,
        "other_metrics": task.others,
        "start": task.start,
        "seconds": task.seconds,
        "dollars": task.dollars,
    }


def write_scores(results: Mapping[str, Sequence[Result]], output: Path) -> str:
    """Write `scores.md`, `.json` and `.png` into a directory; return the tables for a console.

    Args:
        results: of each series, by its name.
    """
    all_series = [summarize(name, found) for name, found in results.items()]
    output.mkdir(parents=True, exist_ok=True)
    write_png(output / "scores.png", figure(all_series))
    write_whole(output / "scores.json", json_bytes(record(all_series)))
    write_whole(output / "scores.md", markdown(all_series).encode())
    return f"{console(all_series)}\n\n{output / 'scores.md'}"
