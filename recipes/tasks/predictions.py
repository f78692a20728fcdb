"""Predictions on GLUE's test sets, in the files that its server (gluebenchmark.com) takes.

A submission is a zip of all of them. The server also wants `WNLI.tsv` and, to score the diagnostic
set, `AX.tsv`; those two sets are no part of this benchmark, GLUE's sample submission has fillers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recipes.common.files import write_whole
from recipes.tasks.glue_tasks import Task


def write_predictions(
    directory: str | Path, task: Task, name: str, predictions: np.ndarray
) -> Path:
    """Write one test set's predictions, whole or not at all.

    Args:
        directory: made if it is not there.
        name: of the test set, a key of `task.server_files`.
        predictions: [N] class indices, or scores for a regression, which are clipped to the
            task's range, in the order of `TaskData.test`.

    Returns:
        The file.

    Raises:
        ValueError: no such test set, or predictions that are no classes or scores of the task.
    """
    if name not in task.server_files:
        raise ValueError(f"{task.folder}: no test set {name!r}, but {', '.join(task.server_files)}")
    path = Path(directory) / task.server_files[name]
    lines = ["index\tprediction"]
    lines += [f"{i}\t{text}" for i, text in enumerate(_texts(task, predictions))]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, ("\n".join(lines) + "\n").encode())
    return path


def _texts(task: Task, predictions: np.ndarray) -> list[str]:
    if task.labels is None:
        if not np.isfinite(predictions).all():
            raise ValueError(f"{task.folder}: predictions that are not finite")
        return [f"{score:.3f}" for score in np.clip(predictions, *task.score_range)]
    classes = np.arange(task.outputs)
    if not np.isin(predictions, classes).all():
        raise ValueError(f"{task.folder}: predictions other than 0 to {classes[-1]}")
    if task.labels_by_name:
        return [task.labels[i] for i in predictions]
    return [str(i) for i in predictions]
