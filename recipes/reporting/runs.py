"""Pretraining runs as they lie on the disk: `config.json` and `log.jsonl` of each."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.common.errors import Faults, UserError
from recipes.training.run_log import LOG_NAME, read_records

Values = NDArray[np.float64]

CONFIG_NAME = "config.json"
NEEDED = ("model.name", "model.parameters", "world_size", "device", "data.unigram_entropy_nats")


@dataclass(frozen=True)
class RecordedRun:
    """One run's records; `steps` and `evals` are those of `log.jsonl`, in order."""

    name: str
    config: dict[str, Any]
    steps: list[dict[str, Any]]
    evals: list[dict[str, Any]]

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.config["model"]["name"])

    @property
    def unigram_entropy(self) -> float:
        """Loss in nats of a model that knows nothing but how frequent each token is."""
        return float(self.config["data"]["unigram_entropy_nats"])

    def curve(self, x: str, y: str) -> tuple[Values, Values]:
        """Return the values of `x` and `y` [records] in the records that have a finite `y`."""
        points = [(r[x], r[y]) for r in self.steps + self.evals if r.get(y) is not None]
        xs, ys = np.array(points, dtype=np.float64).reshape(-1, 2).T
        return xs, ys

    def last(self, key: str) -> float | None:
        """Return the latest finite value of `key`, None where it was never logged."""
        _, values = self.curve("step", key)
        return float(values[-1]) if len(values) else None

    def median(self, key: str, *, skip: int = 0) -> float | None:
        """Return the median of `key` over the logged windows after the first `skip`, if any."""
        _, values = self.curve("step", key)
        return float(statistics.median(values[skip:])) if len(values) > skip else None


def load_runs(directories: Sequence[Path]) -> list[RecordedRun]:
    """Read the runs; torn lines of a log are left out and said on stderr.

    Raises:
        UserError: no run there, or nothing logged yet; all faults of all runs.
    """
    faults = Faults()
    # Two runs of the same name are told apart by their paths.
    alike = len({path.resolve().name for path in directories}) < len(directories)
    named = [(path, str(path) if alike else path.resolve().name) for path in directories]
    runs = [faults.attempt(partial(_load_run, path, name)) for path, name in named]
    faults.stop()
    return [run for run in runs if run is not None]


def _load_run(directory: Path, name: str) -> RecordedRun:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    faults = Faults()
    config = faults.attempt(lambda: _read_config(directory)) or {}
    records = faults.attempt(lambda: _read_log(directory)) or []
    faults.stop()
    return RecordedRun(
        name=name,
        config=config,
        steps=[record for record in records if "loss/train" in record],
        evals=[record for record in records if "loss/eval" in record],
    )


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_NAME
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{directory}: no {CONFIG_NAME}, so no run of recipes/pretrain.py"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if missing := [key for key in NEEDED if _lookup(config, key) is None]:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    return config


def _lookup(config: object, dotted: str) -> object:
    for key in dotted.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _read_log(directory: Path) -> list[dict[str, Any]]:
    path = directory / LOG_NAME
    try:
        records, torn = read_records(path)
    except FileNotFoundError:
        raise UserError(f"{directory}: no {LOG_NAME}, nothing was logged") from None
    if not any("loss/train" in record for record in records):
        counts = f"{len(records)} records and {torn} torn lines"
        raise UserError(f"{path}: no training step among {counts}")
    if torn:
        print(f"{path}: {torn} torn line(s) left out", file=sys.stderr)
    return records
