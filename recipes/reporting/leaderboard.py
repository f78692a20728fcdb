"""GLUE per dollar: a file with a line for each run, beside what others have published.

A line says what it takes to repeat it: the command, the revision, the hardware, dates, seeds and
every score. It belongs to a run by its directory's name, what was pretrained and on what, and the
settings of finetuning that are not the table's: the same command, run again, replaces its own line
and no other, and so do more tasks or seeds. Fewer of them replace nothing. What other versions have
put into other lines stays.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.common.errors import UserError
from recipes.common.files import write_whole
from recipes.common.json_content import Json, finite, json_bytes
from recipes.common.locks import alone_with
from recipes.common.places import RESULTS
from recipes.reporting.run_settings import pretraining_command
from recipes.reporting.runs import RecordedRun
from recipes.reporting.scores import Series, settings_of
from recipes.tasks.glue_tasks import TASKS
from recipes.tasks.results import Result

FILE = "leaderboard.json"
PUBLISHED = RESULTS / FILE
"""The repository's own, with the published points."""
NEEDED: dict[str, tuple[type, ...]] = {"key": (str,), "name": (str,), "score": (int, float)}
OPTIONAL: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("benchmark", "score_name", "hardware", "source", "series", "command"), (str,)),
    **dict.fromkeys(("hours", "gpu_hours", "dollars"), (int, float)),
    **dict.fromkeys(("tasks", "git_revision", "dates"), (dict,)),
    **dict.fromkeys(("published", "command_as_typed"), (bool,)),
}
"""What a line may have besides; null where it is not known."""
SETTINGS = ("learning_rate", "weight_decay", "epochs", "batch_size", "max_length")
"""Of finetuning, that results say and `finetune.py` takes."""

Line = Json
"""A run's or a publication's, as the file has it."""


def read(path: Path) -> list[Line]:
    """Read the lines; none where there is no file.

    Raises:
        UserError: it is no such file.
    """
    try:
        content = json.loads(path.read_bytes())
        lines = content["lines"]
        # Half a surrogate pair, which JSON can spell and no page can hold.
        json.dumps(content, ensure_ascii=False).encode()
        for line in lines:
            _check(path, line)
    except FileNotFoundError:
        return []
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no leaderboard ({type(error).__name__}: {error}); name another file"
        ) from None
    return list(lines)


def _check(path: Path, line: Line) -> None:
    for key, kinds in NEEDED.items():
        if not _is_a(line[key], kinds):
            raise UserError(f"{path}: {key} is {line[key]!r} in a line")
    for key, kinds in OPTIONAL.items():
        value = line.get(key)
        if value is not None and (not _is_a(value, kinds) or (float in kinds and value < 0)):
            raise UserError(f"{path}: {key} is {line[key]!r} in the line of {line['name']}")


def _is_a(value: object, kinds: tuple[type, ...]) -> bool:
    if float in kinds:
        return finite(value) is not None
    return isinstance(value, kinds)


def add(path: Path, line: Line) -> str | None:
    """Put a line into the file, in place of an earlier one of the same run; makes the file.

    Several processes may do so at a time.

    Returns:
        Why the earlier line stays, if it does: it has tasks or seeds that the new one lacks.

    Raises:
        UserError: the file is no leaderboard; it stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone_with(path):
        lines = read(path)
        places = [n for n, other in enumerate(lines) if other["key"] == line["key"]]
        if places and (lacking := _lacking(line, lines[places[0]])):
            return (
                f"{path}: the line of {line['name']} stays: it has {', '.join(lacking)}, which "
                "these results lack; name another file, or remove the line"
            )
        if places:
            earlier = lines[places[0]]
            if earlier.get("command_as_typed") and not line.get("command_as_typed"):
                kept = {name: earlier[name] for name in ("command", "command_as_typed")}
                line = {**line, **kept}  # what was typed is more than what the results say
            lines[places[0]] = line
        else:
            lines.append(line)
        write_whole(path, json_bytes({"lines": lines}))
    return None


def _lacking(line: Line, earlier: Line) -> list[str]:
    """What an earlier line has and a new one has not: tasks, or seeds of them."""
    tasks, lacking = line.get("tasks") or {}, []
    for task, scores in (earlier.get("tasks") or {}).items():
        more = _seeds(scores) - _seeds(tasks.get(task))
        if task not in tasks:
            lacking.append(task)
        elif more > 0:
            lacking.append(f"{more} seed{'s' * (more > 1)} more of {task}")
    return lacking


def _seeds(scores: object) -> int:
    """Count a task's seeds; none are known in what another version has written otherwise."""
    seeds = scores.get("seeds") if isinstance(scores, dict) else None
    return len(seeds) if isinstance(seeds, dict) else 0


def with_published(lines: Sequence[Line]) -> list[Line]:
    """Return the lines, and before them GLUE's of the repository's file, the published ones."""
    own = {line["key"] for line in lines}
    known = [line for line in read(PUBLISHED) if line.get("benchmark") == "GLUE"]
    others = [line for line in known if line["key"] not in own]
    return [*others, *lines]


def line_of(
    name: str,
    run: RecordedRun | None,
    series: Series,
    results: Sequence[Result],
    command: str | None = None,
) -> Line:
    """Make the line of a run.

    Args:
        name: of the run's directory.
        run: its pretraining; None where only an export is left, whose cost nobody knows.
        results: those that the series summarizes.
        command: that finetuned it; as the results say it if not given.
    """
    cost = _cost(run)
    commands = [pretraining_command(run)] if run else []
    commands.append(command or finetuning_command(results))
    revisions = {str(result.get("git_revision", "unknown")) for result in results}
    dates = sorted(str(result["date"]) for result in results if "date" in result)
    return {
        "key": _key(name, run, results),
        "name": name,
        "published": False,
        "benchmark": "stand-ins, not GLUE" if series.stand_in else "GLUE",
        "score": series.average,
        "score_name": series.average_name,
        "tasks": {
            task.task: {"mean": task.mean, "metric": task.metric, "seeds": task.scores}
            for task in series.tasks
        },
        **cost,
        "finetuning": {
            "device": " and ".join(sorted({str(r.get("device", "unknown")) for r in results})),
            "seconds": sum(task.seconds for task in series.tasks),
            "dollars": sum(task.dollars for task in series.tasks),
        },
        "model": run.model if run else _model(results),
        "command": " && ".join(commands),
        "command_as_typed": command is not None,
        "git_revision": {
            "pretraining": run.config.get("git_revision") if run else None,
            "finetuning": " and ".join(sorted(revisions)),
        },
        "dates": {
            "pretraining": run.config.get("started") if run else None,
            "finetuning": dates[-1] if dates else None,
        },
        "seed": run.config.get("run", {}).get("seed") if run else None,
        "notes": series.notes,
    }


def _cost(run: RecordedRun | None) -> Json:
    """What pretraining took: hours of wall time; GPU-hours and dollars where there were GPUs."""
    if run is None:
        return {"hardware": None, "hours": None, "gpu_hours": None, "dollars": None}
    return {
        "hardware": run.hardware,
        "hours": run.latest["seconds"] / 3600,
        "gpu_hours": run.gpu_hours,
        "dollars": run.dollars,
    }


def finetuning_command(results: Sequence[Result]) -> str:
    """Return the call of glue.py that makes such results, as far as they say it."""
    tasks = [name for name in TASKS if any(result["task"] == name for result in results)]
    starts = [r["checkpoint"] for r in results if TASKS[r["task"]].start == "pretrained"]
    words = ["python", "recipes/glue.py", "--checkpoint", starts[0] if starts else "RUN"]
    data = {str(result["data"]) for result in results if "data" in result} - {"hub"}
    words += ["--data", *data] if len(data) == 1 else []
    words += ["--tasks", *tasks] if len(tasks) < len(TASKS) else []
    seeds = [sum(result["task"] == name for result in results) for name in tasks]
    if any(count < TASKS[name].seeds for name, count in zip(tasks, seeds, strict=True)):
        words += ["--seeds", str(max(seeds))]
    handed_on = []
    for name in SETTINGS:
        values = _changed(results, name)
        if len(values) == 1 and values != {"null"}:
            handed_on += [f"--{name.replace('_', '-')}", *values]
    return shlex.join(words + (["--", *handed_on] if handed_on else []))


def _changed(results: Sequence[Result], name: str) -> set[str]:
    """Return the values, as JSON, of a setting that are not those of the table."""
    return {
        json.dumps(settings_of(result).get(name))
        for result in results
        if settings_of(result).get(name) != _of_table(result["task"], name)
    }


def _of_table(task: str, name: str) -> object:
    return 256 if name == "max_length" else getattr(TASKS[task], name)


def _model(results: Sequence[Result]) -> str | None:
    models = [settings_of(result).get("model") for result in results]
    named = [model for model in models if isinstance(model, Mapping) and model.get("name")]
    return str(named[0]["name"]) if named else None


def _key(name: str, run: RecordedRun | None, results: Sequence[Result]) -> str:
    """Return what stays the same when the same is run again on the same hardware."""
    if run and run.config.get("identity"):
        start: Mapping[str, Any] = {
            "identity": run.config["identity"],
            "hardware": [run.device, run.devices],
        }
    else:
        start = {"checkpoints": sorted({str(r.get("checkpoint_sha256")) for r in results})}
    stand_in = any(result["stand_in"] for result in results)
    changed = {name: sorted(_changed(results, name) - {"null"}) for name in SETTINGS}
    tuned = {name: values for name, values in changed.items() if values}
    told = json.dumps(
        [name, start, stand_in, *([tuned] * bool(tuned))], sort_keys=True, default=str
    )
    return hashlib.sha256(told.encode()).hexdigest()[:16]
