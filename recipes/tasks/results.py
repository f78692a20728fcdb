"""Results of finetunings as they lie on the disk, `<task>-seed<k>.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.common.errors import UserError
from recipes.common.json_content import Json, finite
from recipes.tasks.glue_tasks import TASKS

NEEDED = {
    "task": str,
    "seed": int,
    "score": float,
    "metrics": dict,
    "stand_in": bool,
    "seconds": float,
    "checkpoint": str,
}
_KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    bool: "true or false",
}

Result = Json


def read_result(path: Path) -> Result:
    """Read one result of `recipes/finetune.py`.

    Raises:
        UserError: not such a file.
        FileNotFoundError: no file.
    """
    try:
        result: Result = json.loads(path.read_bytes())
        for key, kind in NEEDED.items():
            value = result[key]
            if not isinstance(value, int | float if kind is float else kind):
                raise UserError(f"{path}: {key} is {value!r}, not {_KINDS[kind]}")
        for name, value in {"score": result["score"], **flat_metrics(result["metrics"])}.items():
            if finite(value) is None:
                raise UserError(f"{path}: the {name} is {value!r}, not a finite number")
        if result["task"] in TASKS and abs(result["score"]) > 1:
            raise UserError(f"{path}: the score is {result['score']}, not from -1 to 1")
        for name in ("seconds", "dollars"):  # earlier versions have no dollars
            value = finite(result.get(name) or 0.0)
            if value is None or value < 0:
                raise UserError(f"{path}: the {name} are {result[name]!r}, not a number from 0 on")
        if not isinstance(result.get("notes", []), list):
            raise UserError(f"{path}: the notes are {result['notes']!r}, no list")
    except KeyError as error:
        raise UserError(f"{path}: no result of a finetuning, lacks {error}") from None
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged result: {error}") from None
    return result


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics by name; those of several development sets as `matched/accuracy`."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{inner}": number for inner, number in value.items()}
        else:
            found[key] = value
    return found


def run_name(task: str, seed: int) -> str:
    """Name a task's finetuning with a seed: its result is the JSON of that name."""
    return f"{task}-seed{seed}"


def describe(result: Result) -> str:
    """Say a result in a few words."""
    return f"{TASKS[result['task']].score} {100 * result['score']:.1f}"
