"""The result of a finetuning: whether it is there already, its place, and what is written down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.pretrained import WEIGHTS
from recipes.common.files import write_whole
from recipes.common.json_content import Json, json_bytes
from recipes.common.locks import lock
from recipes.engine.ds_config import numeric_settings
from recipes.engine.world import World
from recipes.tasks.classifier import adamw
from recipes.tasks.finetuning import checksum
from recipes.tasks.work import Finetuning, Metrics
from recipes.training.provenance import device_name, git_revision, versions
from recipes.training.run_log import LOG_NAME

# Settings that results of older versions lack; what these were is not known, and not compared.
LATER_SETTINGS = {"deepspeed"}


def is_done(work: Finetuning) -> bool:
    """Whether the result is there, computed with the same settings, and all that is asked for."""
    try:
        result = json.loads(work.result.read_bytes())
        done = not _different(result["settings"], work.identity)
        tested = result["test_examples_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if work.saves_model:
        done = done and (work.directory / "export" / WEIGHTS).is_file()
    done = done and all((work.predictions / name).is_file() for name in work.kind.files)
    if work.settings.predict_test:
        files = [work.predictions / file for file in work.task.server_files.values()]
        done = done and tested == checksum(work.data.test) and all(f.is_file() for f in files)
    return done


def other_settings(work: Finetuning) -> list[str]:
    """Names of the settings in which a result that is there differs; empty where none is."""
    try:
        return _different(json.loads(work.result.read_bytes())["settings"], work.identity)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _different(before: Json, now: Json) -> list[str]:
    if "deepspeed" in before:  # earlier versions recorded all of a section
        before = {**before, "deepspeed": numeric_settings(before["deepspeed"])}
    names = (before.keys() | now.keys()) - (LATER_SETTINGS - before.keys())
    return sorted(name for name in names if before.get(name) != now.get(name))


def take_directory(work: Finetuning) -> None:
    """Keep other processes out of the directory, and empty its log: no finetuning is resumed."""
    work.directory.mkdir(parents=True, exist_ok=True)
    lock(work.directory, "finetuning into it")
    if different := other_settings(work):
        print(
            f"{work.result}: was computed with other settings ({', '.join(different)} differ), "
            "now replaced",
            flush=True,
        )
    (work.directory / LOG_NAME).unlink(missing_ok=True)


def remove_earlier(work: Finetuning) -> None:
    """Remove a result of other settings with its model and predictions."""
    work.result.unlink(missing_ok=True)
    for directory in (work.directory / "export", work.predictions):
        shutil.rmtree(directory, ignore_errors=True)


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write predictions, each whole or not at all."""
    for name, contents in files.items():
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / name, contents)
        print(f"predictions: {directory / name}")


def write_result(
    work: Finetuning,
    world: World,
    metrics: Metrics,
    *,
    notes: Sequence[str],
    steps: int,
    seconds: float,
) -> None:
    """Write `<task>-seed<k>.json`."""
    result = _record(work, metrics) | {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "steps": steps,
        "notes": list(notes),
        "seconds": seconds,
        "dollars": work.settings.price_per_gpu_hour * _gpu_hours(world, seconds),
        "device": device_name(),
        "world_size": world.world_size,
        "attention": work.settings.kernel_choice.attention,
        "kernels": work.settings.kernel_choice.kernels,
        "versions": versions(),
        "git_revision": git_revision(),
        "tensorboard": str(work.directory / "tensorboard"),
    }
    write_whole(work.result, json_bytes(result))


def _record(work: Finetuning, metrics: Metrics) -> Json:
    """The scores, and what they were computed from."""
    settings, task, data = work.settings, work.task, work.data
    return {
        "task": task.name,
        "seed": settings.seed,
        "score": work.score(metrics),
        "score_metric": task.score,
        "metrics": _by_set(metrics),
        "chance": _chance(work),
        "stand_in": data.stand_in,
        "checkpoint": str(settings.checkpoint),
        "checkpoint_sha256": work.identity["checkpoint_sha256"],
        "from_scratch": settings.from_scratch,
        "start_task": work.start_task,
        "data": str(settings.data or settings.own_data.train_file or "hub"),
        "settings": work.identity,
        "adamw_weight_decay": adamw(task)["weight_decay"],
        "test_examples_sha256": checksum(data.test),
        "train_examples": len(data.train),
        "dev_examples": sum(len(dev) for dev in data.dev.values()),
    }


def _by_set(metrics: Metrics) -> Mapping[str, Any]:
    return metrics if len(metrics) > 1 else next(iter(metrics.values()))


def _chance(work: Finetuning) -> Json | None:
    """The score and the metrics of the best answer that is the same for every example."""
    metrics = work.kind.chance(work)
    if metrics is None:
        return None
    score = work.score(metrics)
    return {"score": score, "metrics": _by_set(metrics)}


def _gpu_hours(world: World, seconds: float) -> float:
    return world.world_size * seconds / 3600 if world.device.type == "cuda" else 0.0
