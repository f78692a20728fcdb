"""The benchmark's score table, from the results that `recipes/finetune.py` writes.

    python recipes/reporting/score_table.py runs/base/glue
    python recipes/reporting/score_table.py runs/base/glue runs/base/glue-from-scratch \\
        --output docs/results

writes `scores.md`, `scores.json` and `scores.png`, and prints the table. Scores are GLUE's: the
task's metric times 100 on the development set, the mean over seeds, and over the tasks the mean of
these; MNLI counts once. Every seed counts: the best one is shown, never used.
"""

from __future__ import annotations

import io
import json
import math
import statistics
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patheffects import withStroke  # noqa: E402

from recipes.common.cli import ArgumentParser  # noqa: E402
from recipes.common.entry import run  # noqa: E402
from recipes.common.errors import Faults, UserError  # noqa: E402
from recipes.common.files import why_no_directory, write_whole  # noqa: E402
from recipes.report import COLORS, aligned  # noqa: E402
from recipes.tasks.glue_tasks import TASKS  # noqa: E402
from recipes.training.run_log import duration  # noqa: E402

STAND_IN = "STAND-IN TASKS: not GLUE"
NEEDED = {
    "task": str,
    "seed": int,
    "score": float,
    "metrics": dict,
    "stand_in": bool,
    "seconds": float,
    "checkpoint": str,
}

Result = dict[str, Any]


@dataclass(frozen=True)
class TaskScores:
    """One task over its seeds; `scores` by seed, times 100."""

    task: str
    metric: str
    scores: dict[int, float]
    others: dict[str, float]
    """Means of the remaining metrics, times 100; `set/metric` with several development sets."""
    start: str
    seconds: float
    dollars: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores.values())

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single one."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None

    @property
    def best(self) -> float:
        return max(self.scores.values())


@dataclass(frozen=True)
class Series:
    """The scores of one pretrained model, tasks in the order of the task table."""

    name: str
    tasks: list[TaskScores]
    stand_in: bool
    notes: list[str]
    """What makes these scores other than the published recipe's."""
    task_notes: list[str]
    """What the jobs noted about their data, by task."""

    @property
    def average(self) -> float:
        """Mean over the tasks of their means."""
        return statistics.fmean(task.mean for task in self.tasks)

    @property
    def average_name(self) -> str:
        """What the average may be called; GLUE's only with all eight of GLUE's tasks."""
        if len(self.tasks) < len(TASKS):
            return f"average of {len(self.tasks)} task{'s' * (len(self.tasks) > 1)}"
        return f"average of {len(TASKS)} stand-ins" if self.stand_in else "GLUE average"


def read_result(path: Path) -> Result:
    """One result of `recipes/finetune.py`.

    Raises:
        UserError: not such a file.
        FileNotFoundError: no file.
    """
    try:
        result = json.loads(path.read_bytes())
        for key, kind in NEEDED.items():
            value = result[key]
            if not isinstance(value, int | float if kind is float else kind):
                raise UserError(f"{path}: {key} is {value!r}, not a {kind.__name__}")
        if not math.isfinite(result["score"]):
            raise UserError(f"{path}: the score is {result['score']}")
    except KeyError as error:
        raise UserError(f"{path}: no result of a finetuning, lacks {error}") from None
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged result: {error}") from None
    return result


def load_results(directory: Path, without: Collection[Path] = ()) -> list[Result]:
    """The results of GLUE's tasks in a directory, but for those files in `without`.

    Raises:
        UserError: no such directory, or damaged results; all of them named.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    results: list[Result] = []
    faults: list[str] = []
    left_out = {path.resolve() for path in without}
    for path in sorted(directory.glob("*-seed*.json")):
        if path.resolve() in left_out or path.name.split("-seed")[0] not in TASKS:
            continue
        try:
            results.append(read_result(path))
            if results[-1]["task"] != path.name.split("-seed")[0]:
                faults.append(f"{path}: a result of {results[-1]['task']}, by its name another's")
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(*faults)
    return results


def summarize(name: str, results: Sequence[Result]) -> Series:
    """Scores per task over the seeds, with what a reader must know about how they came about.

    Raises:
        UserError: no results, or stand-ins and GLUE's own tasks together.
    """
    if not results:
        raise UserError(f"{name}: no results (files <task>-seed<k>.json)")
    stand_ins = sorted({result["task"] for result in results if result["stand_in"]})
    real = sorted({result["task"] for result in results if not result["stand_in"]})
    if stand_ins and real:
        raise UserError(
            f"{name}: stand-ins ({', '.join(stand_ins)}) and GLUE's own tasks ({', '.join(real)}) "
            "in one table; keep them in directories of their own"
        )
    by_task = {task: [r for r in results if r["task"] == task] for task in TASKS}
    tasks = [_task_scores(task, found) for task, found in by_task.items() if found]
    told = [f"{r['task']}: {note}" for r in results for note in r.get("notes", ())]
    return Series(name, tasks, bool(stand_ins), _notes(results, tasks), list(dict.fromkeys(told)))


def _task_scores(task: str, results: Sequence[Result]) -> TaskScores:
    flat = [_flat(result["metrics"]) for result in results]
    metric = TASKS[task].score
    # A metric that some seed lacks has no mean over the seeds.
    shared = [key for key in flat[0] if key != metric and all(key in one for one in flat)]
    return TaskScores(
        task=task,
        metric=metric,
        scores={result["seed"]: 100 * result["score"] for result in results},
        others={key: 100 * statistics.fmean(one[key] for one in flat) for key in shared},
        start=" and ".join(sorted({_start(result) for result in results})),
        seconds=sum(result["seconds"] for result in results),
        dollars=sum(result.get("dollars") or 0.0 for result in results),
    )


def _start(result: Result) -> str:
    if result.get("from_scratch"):
        return "random weights"
    from_mnli = any(part.startswith("mnli-seed") for part in Path(result["checkpoint"]).parts)
    return "MNLI" if from_mnli else "pretrained"


def _flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """{"accuracy": x}, or of several sets {"matched/accuracy": x, ...}."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{inner}": number for inner, number in value.items()}
        else:
            flat[key] = value
    return flat


def _notes(results: Sequence[Result], tasks: Sequence[TaskScores]) -> list[str]:
    notes = [
        f"{task.task} starts from {task.start}, not from MNLI's result as published"
        for task in tasks
        if TASKS[task.task].start == "mnli" and task.start != "MNLI"
    ]
    fewer = [
        f"{task.task} {len(task.scores)} of {TASKS[task.task].seeds}"
        for task in tasks
        if len(task.scores) < TASKS[task.task].seeds
    ]
    if fewer:
        notes.append(f"fewer seeds than published: {', '.join(fewer)}")
    origins = {r.get("checkpoint_sha256") for r in results if _start(r) == "pretrained"}
    if len(origins) > 1:
        notes.append(f"the results start from {len(origins)} different pretrained checkpoints")
    return notes


def table(series: Series) -> list[tuple[str, ...]]:
    """Rows of text: a header, one row per task, the average with time and cost summed."""
    rows = [("task", "metric", "mean", "± sd", "best", "seeds", "start", "also", "time", "cost")]
    rows += [
        (
            TASKS[task.task].folder,
            task.metric,
            f"{task.mean:.1f}",
            "-" if task.deviation is None else f"{task.deviation:.1f}",
            f"{task.best:.1f}",
            str(len(task.scores)),
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
    average = (series.average_name, "", f"{series.average:.1f}", "", "", str(seeds), "", "")
    return [*rows, (*average, duration(seconds), f"${dollars:,.2f}")]


def title(all_series: Sequence[Series]) -> str:
    stand_in = any(series.stand_in for series in all_series)
    return STAND_IN if stand_in else "GLUE development-set scores"


def console(all_series: Sequence[Series]) -> str:
    """The tables for a terminal."""
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
    """The tables, notes and figure as Markdown."""
    lines = [f"# {title(all_series)}", ""]
    if any(series.stand_in for series in all_series):
        lines += [
            "These tasks only have GLUE's format. They were made from the text that comes with "
            "Python; no score here compares with any published one.",
            "",
        ]
    lines += [
        "Metrics times 100 on the development sets; ± is the sample standard deviation over the "
        "seeds; time is that of the jobs, summed.",
    ]
    for series in all_series:
        header, *rows = table(series)
        lines += ["", f"## {series.name}", "", _row(header), _row(["---"] * len(header))]
        lines += [_row(row) for row in rows]
        lines += ["", *_listed([*series.notes, *series.task_notes])]
    return "\n".join([*lines, "", "![scores](scores.png)", ""])


def _listed(notes: Sequence[str]) -> list[str]:
    return [f"- {note}" for note in notes]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def record(all_series: Sequence[Series]) -> dict[str, Any]:
    """The contents of `scores.json`; scores times 100, time in seconds, cost in dollars."""
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
                "tasks": {
                    task.task: {
                        "metric": task.metric,
                        "mean": task.mean,
                        "standard_deviation": task.deviation,
                        "best": task.best,
                        "scores": task.scores,
                        "other_metrics": task.others,
                        "start": task.start,
                        "seconds": task.seconds,
                        "dollars": task.dollars,
                    }
                    for task in series.tasks
                },
                "seconds": sum(task.seconds for task in series.tasks),
                "dollars": sum(task.dollars for task in series.tasks),
                "notes": [*series.notes, *series.task_notes],
            }
            for series in all_series
        ],
    }


def figure(all_series: Sequence[Series]) -> Figure:
    """A bar per task and series at the mean over seeds, a dot per seed, a line at the average."""
    present = [name for name in TASKS if any(name in _by_name(series) for series in all_series)]
    drawn = Figure(figsize=(9, 5), layout="constrained")
    axes = drawn.subplots()
    drawn.suptitle(
        title(all_series),
        x=0.01,
        ha="left",
        fontweight="bold",
        color="#B00020" if any(series.stand_in for series in all_series) else "black",
    )
    width = 0.8 / len(all_series)
    for index, series in enumerate(all_series):
        color = COLORS[index % len(COLORS)]
        scores = _by_name(series)
        shift = (index - (len(all_series) - 1) / 2) * width
        places = {name: place + shift for place, name in enumerate(present) if name in scores}
        axes.bar(
            list(places.values()),
            [scores[name].mean for name in places],
            width=0.9 * width,
            color=color,
            alpha=0.45,
        )
        for name, place in places.items():
            values = list(scores[name].scores.values())
            # Side by side within the bar, in the order of the seeds: equal scores stay visible.
            spread = [0.6 * width * ((k + 0.5) / len(values) - 0.5) for k in range(len(values))]
            steps = [place + offset for offset in spread]
            axes.plot(steps, values, linestyle="none", marker="o", markersize=4, color=color)
            axes.annotate(
                f"{scores[name].mean:.1f}",
                (place, max(*values, scores[name].mean)),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                path_effects=[withStroke(linewidth=2, foreground="white")],  # over the lines
            )
        axes.axhline(
            series.average,
            color=color,
            linestyle=(0, (4, 3)),
            linewidth=1.2,
            label=f"{series.name}, {series.average_name} {series.average:.1f}",
        )
    axes.set_xticks(
        range(len(present)), [f"{TASKS[name].folder}\n{TASKS[name].score}" for name in present]
    )
    axes.set_ylabel("score × 100: mean over seeds, and each seed")
    axes.set_ylim(top=105)  # the bottom is 0, or lower where a correlation is
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return drawn


def _by_name(series: Series) -> dict[str, TaskScores]:
    return {task.task: task for task in series.tasks}


def write_scores(results: Mapping[str, Sequence[Result]], output: Path) -> str:
    """Write `scores.md`, `scores.json` and `scores.png` into `output`; returns the printed table.

    Args:
        results: by the name of each series; the first one is what the table is about.
    """
    all_series = [summarize(name, found) for name, found in results.items()]
    output.mkdir(parents=True, exist_ok=True)
    image = io.BytesIO()
    figure(all_series).savefig(image, format="png", dpi=150)
    write_whole(output / "scores.png", image.getvalue())
    write_whole(output / "scores.json", (json.dumps(record(all_series), indent=1) + "\n").encode())
    write_whole(output / "scores.md", markdown(all_series).encode())
    return f"{console(all_series)}\n\n{output / 'scores.md'}"


def describe(result: Result) -> str:
    """One result in a few words."""
    return f"{TASKS[result['task']].score} {100 * result['score']:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="The score table of finetuned tasks.")
    add = parser.add_argument
    add("results", type=Path, nargs="+", help="directories of results; more are drawn beside")
    add("--output", type=Path, help="directory of scores.md, .json, .png; the first if not given")
    options = parser.parse_args(arguments)
    output = options.output or options.results[0]
    faults = Faults()
    if refusal := why_no_directory(output):
        faults.append(f"--output {output}: {refusal}")
    named = {str(path): faults.attempt(partial(load_results, path)) for path in options.results}
    faults.stop()
    print(write_scores({name: found or [] for name, found in named.items()}, output))


if __name__ == "__main__":
    run(main)
