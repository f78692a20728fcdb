"""Scores of finetuned tasks: read from their results, summarized over seeds and tasks."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.common.errors import UserError
from recipes.tasks.glue_tasks import TASKS
from recipes.tasks.results import Result, flat_metrics, read_result

STAND_IN = "STAND-IN TASKS: not GLUE"


@dataclass(frozen=True)
class TaskScores:
    """One task over its seeds."""

    task: str
    metric: str
    scores: dict[int, float]
    """The score of each seed, times 100."""
    others: dict[str, float]
    """Means of the remaining metrics, times 100; `set/metric` with several development sets."""
    start: str
    """What finetuning started from: `pretrained`, `MNLI` or `random weights`."""
    seconds: float
    dollars: float
    chance: float | None = None
    """Score of the best constant answer, times 100; None where no result says it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the first result was computed with."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.scores.values())

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single one."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None

    @property
    def best(self) -> float:
        """Score of the best seed."""
        return max(self.scores.values())


@dataclass(frozen=True)
class Series:
    """Scores of one pretrained model, tasks in the order of the task table."""

    name: str
    tasks: list[TaskScores]
    stand_in: bool
    notes: list[str]
    """What makes these scores other than the published recipe's."""
    task_notes: list[str]
    """What the jobs noted about their data, each with its task."""

    @property
    def average(self) -> float:
        """Mean over the tasks of their means."""
        return statistics.fmean(task.mean for task in self.tasks)

    @property
    def chance(self) -> float | None:
        """Mean over the tasks of the best constant answers; None unless all are known."""
        known = [task.chance for task in self.tasks if task.chance is not None]
        return statistics.fmean(known) if len(known) == len(self.tasks) else None

    @property
    def average_name(self) -> str:
        """Name that the average may have; GLUE's only with all eight of GLUE's tasks."""
        if len(self.tasks) < len(TASKS):
            return f"average of {len(self.tasks)} task{'s' * (len(self.tasks) > 1)}"
        return f"average of {len(TASKS)} stand-ins" if self.stand_in else "GLUE average"


def result_files(directory: Path) -> list[Path]:
    """Return the files of GLUE's tasks in a directory of results, `<task>-seed<k>.json`."""
    found = sorted(directory.glob("*-seed*.json"))
    return [path for path in found if path.name.split("-seed")[0] in TASKS]


def load_results(
    directory: Path, without: Collection[Path] = (), left_out: list[str] | None = None
) -> list[Result]:
    """Read the results of GLUE's tasks in a directory, but for the files in `without`.

    Args:
        left_out: takes the faults of damaged results, if there are whole ones.

    Raises:
        UserError: no such directory, or damaged results; all of them named.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    results: list[Result] = []
    faults: list[str] = []
    passed_over = {path.resolve() for path in without}
    for path in result_files(directory):
        if path.resolve() in passed_over:
            continue
        try:
            result = read_result(path)
            if result["task"] == path.name.split("-seed")[0]:
                results.append(result)
            else:
                faults.append(f"{path}: a result of {result['task']}, by its name another's")
        except UserError as error:
            faults += error.faults
    if faults and (left_out is None or not results):
        raise UserError(*faults)
    if left_out is not None:
        left_out += faults
    return results


def summarize(name: str, results: Sequence[Result]) -> Series:
    """Summarize results by task, with what a reader must know about how they came about.

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
    flat = [flat_metrics(result["metrics"]) for result in results]
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
        chance=next((found for one in results if (found := _chance(one)) is not None), None),
        settings=next(filter(None, map(settings_of, results)), {}),
    )


def _chance(result: Result) -> float | None:
    chance = result.get("chance")  # results of earlier versions lack it
    score = chance.get("score") if isinstance(chance, Mapping) else None
    return 100.0 * score if isinstance(score, int | float) else None


def settings_of(result: Result) -> Mapping[str, Any]:
    """Return what a result was computed with; nothing where another version wrote it otherwise."""
    settings = result.get("settings")
    return settings if isinstance(settings, Mapping) else {}


def _start(result: Result) -> str:
    if result.get("from_scratch"):
        return "random weights"
    if "start_task" in result:
        from_mnli = result["start_task"] == "mnli"
    else:  # a result of an older version, of which only the path tells
        from_mnli = any(part.startswith("mnli-seed") for part in Path(result["checkpoint"]).parts)
    return "MNLI" if from_mnli else "pretrained"


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


def title(all_series: Sequence[Series]) -> str:
    """Return what a table or figure of these scores is called."""
    stand_in = any(series.stand_in for series in all_series)
    return STAND_IN if stand_in else "GLUE development-set scores"
