"""Pretraining runs as they lie on the disk: `config.json` and `log.jsonl` of each."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.common.errors import Faults, UserError
from recipes.common.json_content import Json, at, finite
from recipes.common.tables import shown
from recipes.training.bill import DOLLARS, GPU_HOURS
from recipes.training.console import duration
from recipes.training.run_log import LOG_NAME, of_training, read_records

Values = NDArray[np.float64]

CONFIG_NAME = "config.json"
NEEDED = ("model.name",)
EARLIER = "time/earlier_seconds"
"""Wall time before the start that wrote a record."""


class Restart(NamedTuple):
    """A later start of a run."""

    step: int
    """The last step logged before it."""
    seconds: float
    """Wall time at which it began."""

    @property
    def words(self) -> str:
        """Where it was, in words."""
        return f"after step {self.step:,} was logged, {duration(self.seconds)} into the run"


@dataclass(frozen=True)
class RecordedRun:
    """One run's records; `steps` and `evals` are those of `log.jsonl`, in order."""

    name: str
    directory: Path
    config: Json
    steps: list[Json]
    evals: list[Json]
    notes: list[str] = field(default_factory=list)
    """What is missing from the records, or damaged."""

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.config["model"]["name"])

    @property
    def parameters(self) -> int | None:
        """Parameters of the model; None in records of other versions."""
        found = finite(at(self.config, "model.parameters"))
        return None if found is None else round(found)

    @property
    def device(self) -> str:
        """Name of a device, `cpu` without a GPU."""
        return str(self.config.get("device") or "unknown device")

    @property
    def devices(self) -> int | None:
        """Devices that took part; None in records of other versions."""
        found = finite(self.config.get("world_size"))
        return None if found is None else round(found)

    @property
    def hardware(self) -> str:
        """Number and name of the devices."""
        return f"{'?' if self.devices is None else self.devices} × {self.device}"

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours of all starts; None on a CPU and where it is not known.

        Logs of earlier versions do not count them: there, all wall time on the latest devices.
        """
        if self.device == "cpu" or self.devices is None:
            return None
        logged = self.last(GPU_HOURS)
        return self.latest["seconds"] / 3600 * self.devices if logged is None else logged

    @property
    def dollars(self) -> float | None:
        """Dollars of all starts; None on a CPU and where they were not logged."""
        return None if self.device == "cpu" else self.last(DOLLARS)

    @property
    def cost(self) -> str:
        """Dollars in words: a CPU has no price, and not every run logged them."""
        return "no GPU" if self.device == "cpu" else shown(self.dollars, "${:,.2f}", "not logged")

    @property
    def unigram_entropy(self) -> float | None:
        """Loss in nats of a model that knows nothing but how frequent each token is."""
        return finite(at(self.config, "data.unigram_entropy_nats"))

    @property
    def latest(self) -> Json:
        """The record of the latest step."""
        return max(self.steps + self.evals, key=lambda record: record["step"])

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None if time decides."""
        found = finite(self.config.get("total_steps"))
        return None if found is None else round(found)

    @property
    def unfinished(self) -> str | None:
        """How far the run is, in words; None at its end."""
        step, total = self.latest["step"], self.total_steps
        if total is not None:
            return f"step {step:,} of {total:,}" if step < total else None
        minutes = finite(at(self.config, "run.minutes"))
        spent = finite(self.latest.get("time/training_seconds"))
        if minutes is None or spent is None or spent >= 60 * minutes:
            return None
        return f"minute {spent / 60:,.1f} of {minutes:g}"

    @property
    def skipped(self) -> int:
        """Steps without effect: their loss or gradient was not finite."""
        return round(self.last("optimizer/skipped_steps") or 0)

    @property
    def restarts(self) -> list[Restart]:
        """Later starts, of those that have left a record."""
        found, before, last = [], 0.0, 0
        for record in sorted(self.steps + self.evals, key=lambda record: record["step"]):
            earlier = finite(record.get(EARLIER))
            if earlier is not None and earlier > before:
                found.append(Restart(last, earlier))
                before = earlier
            last = record["step"]
        return found

    def has(self, key: str) -> bool:
        """Say whether a number was ever logged under `key`."""
        return len(self.curve("step", key)[0]) > 0

    def curve(self, x: str, y: str) -> tuple[Values, Values]:
        """Return the values of `x` and `y` [records] in the records that have a finite `y`."""
        points = [(r[x], r[y]) for r in self.steps + self.evals if finite(r.get(y)) is not None]
        xs, ys = np.array(points, dtype=np.float64).reshape(-1, 2).T
        return xs, ys

    def last(self, key: str) -> float | None:
        """Return the latest finite value of `key`, None where it was never logged."""
        steps, values = self.curve("step", key)
        return float(values[np.argmax(steps)]) if len(values) else None

    def median(self, key: str, *, skip: int = 0) -> float | None:
        """Return the median of `key` over the logged windows after the first `skip`, if any."""
        _, values = self.curve("step", key)
        return float(statistics.median(values[skip:])) if len(values) > skip else None


def load_runs(
    directories: Sequence[Path],
    left_out: list[str] | None = None,
    *,
    needed: Sequence[str] = NEEDED,
) -> list[RecordedRun]:
    """Read the runs; torn lines of a log are left out and said on stderr.

    Args:
        left_out: takes the faults of runs that cannot be read, if others can.
        needed: what a run's configuration must have, its sections joined by dots.

    Raises:
        UserError: no run there, or nothing logged yet; all faults of all runs.
    """
    faults = Faults()
    # Two runs of the same name are told apart by their paths.
    alike = len({path.resolve().name for path in directories}) < len(directories)
    runs = [
        faults.attempt(partial(_load_run, path, shown_name(path, whole=alike), needed))
        for path in directories
    ]
    found = [run for run in runs if run is not None]
    if left_out is None or not found:
        faults.stop()
    else:
        left_out += faults
    return found


def shown_name(directory: Path, *, whole: bool = False) -> str:
    """Return the name of a directory, or all of its path, with U+FFFD for what is no UTF-8."""
    name = str(directory) if whole else directory.resolve().name
    return os.fsencode(name).decode("utf-8", "replace")


def _load_run(directory: Path, name: str, needed: Sequence[str]) -> RecordedRun:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    faults = Faults()
    config = faults.attempt(lambda: _read_config(directory, needed)) or {}
    records, notes = faults.attempt(lambda: _read_log(directory)) or ([], [])
    faults.stop()
    return RecordedRun(
        name=name,
        directory=directory,
        config=config,
        steps=[record for record in records if of_training(record)],
        evals=[record for record in records if "loss/eval" in record],
        notes=notes,
    )


def _read_config(directory: Path, needed: Sequence[str]) -> Json:
    path = directory / CONFIG_NAME
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{directory}: no {CONFIG_NAME}, so no run of recipes/pretrain.py"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if missing := [key for key in needed if at(config, key) is None]:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    assert isinstance(config, dict)  # it has what is needed
    # Of another version, whose sections were something else.
    for section in ("run", "versions", "data", "identity"):
        if not isinstance(config.get(section, {}), dict):
            del config[section]
    return config


def _read_log(directory: Path) -> tuple[list[Json], list[str]]:
    path = directory / LOG_NAME
    try:
        records, torn = read_records(path)
    except FileNotFoundError:
        raise UserError(f"{directory}: no {LOG_NAME}, nothing was logged") from None
    if not any(map(of_training, records)):
        counts = f"{len(records)} records and {torn} torn lines"
        raise UserError(f"{path}: no training step among {counts}")
    notes = []
    if torn:
        notes.append(f"{path}: {torn} torn line(s) left out")
        print(notes[0], file=sys.stderr)
    return records, notes
