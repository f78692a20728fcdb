"""What a run says about itself while it runs: `log.jsonl`, TensorBoard and the console.

All three show the same numbers and only rank 0 writes. A resumed run continues each of them
without a gap or a duplicate: records past the checkpoint are dropped, since their steps run again,
and TensorBoard's file is made anew from those that stay.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from recipes.common.files import write_whole
from recipes.common.json_content import Json, finite
from recipes.training.console import Console
from recipes.training.curves import POSITION, Curves

LOG_NAME = "log.jsonl"


def read_records(path: Path) -> tuple[list[Json], int]:
    """The records of a `log.jsonl` in file order, and how many lines were no record.

    A machine that goes down while writing leaves a torn last line; nothing else makes one.
    """
    records: list[Json] = []
    broken = 0
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
            whole = all(finite(record[key]) is not None for key in POSITION)
        except (ValueError, TypeError, KeyError):
            whole = False
        if whole:
            records.append(record)
        else:
            broken += 1
    return records, broken


def of_training(record: Mapping[str, object]) -> bool:
    """Whether a record is of a training step; one in which no token was masked has no loss."""
    return "loss/train" in record or "optimizer/lr" in record


class RunLog:
    """Writes the scalars of a run to `directory` and the console; a no-op on ranks above 0.

    Args:
        directory: the run's; gets `log.jsonl` and `tensorboard/`.
        total_steps: the last step of the run, for the console; None if only time decides.
        budget_seconds: then how much training time there is.
        resume_step: the checkpoint's step; 0 starts anew and drops everything logged before.
        rank: of this process.
        config: everything the run is, for TensorBoard's text page.
        task: of a finetuning, whose curves stand in a group of this name.

    `earlier_seconds` is the wall time that earlier runs logged here, in seconds, steps that have
    to run again included, since they were paid for; 0 on ranks above 0. `earlier_costs` are the
    largest numbers that they logged under `cost/...`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        total_steps: int | None,
        budget_seconds: float | None = None,
        resume_step: int = 0,
        rank: int = 0,
        config: Mapping[str, object] | None = None,
        task: str | None = None,
    ):
        self.earlier_seconds = 0.0
        self.earlier_costs: dict[str, float] = {}
        self._writes = rank == 0
        if not self._writes:
            return
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / LOG_NAME
        self._drop_after(self._path, resume_step)
        self._file = self._path.open("ab", buffering=0)
        self._unwritten = b""
        self._refused = False
        began = time.time() - self.earlier_seconds
        self._curves = Curves(directory / "tensorboard", task=task, config=config, began=began)
        self._curves_behind = True
        self._curves_refused = False
        self._draw(lambda: None)
        self._console = Console(total_steps, budget_seconds)

    def step(self, step: int) -> None:
        """Show in a terminal that a step is done, whether it is logged or not."""
        if self._writes:
            self._console.step(step)

    def log(
        self, step: int, sequences: int, tokens: int, seconds: float, scalars: Mapping[str, float]
    ) -> None:
        """Record `scalars` of a training step.

        Args:
            step: optimizer steps done.
            sequences: trained on so far, over all ranks.
            tokens: real tokens trained on so far, over all ranks.
            seconds: wall time so far, earlier runs included.
            scalars: value by tag, e.g. `loss/train`, `optimizer/lr`, `throughput/tokens_per_sec`.
        """
        if self._writes:
            self._write(step, sequences, tokens, seconds, scalars)
            self._console.log(step, scalars)

    def eval(
        self, step: int, sequences: int, tokens: int, seconds: float, scalars: Mapping[str, float]
    ) -> None:
        """Record `loss/eval` (nats per masked token), `accuracy/eval` (fraction), or whatever
        else was measured by its own tag; else as `log`.
        """
        if self._writes:
            self._write(step, sequences, tokens, seconds, scalars)
            self._console.eval(step, scalars)

    def summarize(
        self,
        position: tuple[int, int, int, float],
        settings: Mapping[str, object],
        results: Mapping[str, float],
    ) -> None:
        """Record results at the end of a run, and show them beside settings in TensorBoard's table
        of hyper-parameters.

        Args:
            position: as the first four of `log`.
        """
        if self._writes:
            self._write(*position, results)
            self._draw(lambda: self._curves.summarize(settings, results))

    def flush(self) -> None:
        """Bring everything logged so far to the disk: before a checkpoint is published."""
        if self._writes:
            self._append()
            os.fsync(self._file.fileno())
            self._draw(self._curves.flush)

    def close(self) -> None:
        """Flush and close; nothing can be logged afterwards."""
        if self._writes:
            self._writes = False
            self._console.close()
            self._append()
            os.fsync(self._file.fileno())
            if self._unwritten:
                lines = self._unwritten.count(b"\n")
                print(f"{self._path}: {lines} records could not be written", file=sys.stderr)
            self._file.close()
            self._draw(self._curves.flush)
            with contextlib.suppress(OSError):
                self._curves.close()

    def _drop_after(self, path: Path, resume_step: int) -> None:
        """Rewrite `path` up to `resume_step`."""
        if not path.exists():
            return
        records, broken = read_records(path)
        self.earlier_seconds = max((record["seconds"] for record in records), default=0.0)
        for name, value in (pair for record in records for pair in record.items()):
            if name.startswith("cost/") and isinstance(value, int | float):
                self.earlier_costs[name] = max(value, self.earlier_costs.get(name, 0.0))
        kept = [record for record in records if resume_step > 0 and record["step"] <= resume_step]
        if broken:
            print(f"{path}: {broken} torn line(s) dropped", file=sys.stderr)
        if len(kept) < len(records):
            dropped = len(records) - len(kept)
            print(f"{path}: {dropped} record(s) past step {resume_step} dropped, to be run again")
        write_whole(path, "".join(_json_line(record) for record in kept).encode())

    def _write(
        self, step: int, sequences: int, tokens: int, seconds: float, scalars: Mapping[str, float]
    ) -> None:
        where = dict(zip(POSITION, (step, sequences, tokens, seconds), strict=True))
        record = {**where, **scalars}
        self._unwritten += _json_line(record).encode()
        self._append()
        self._draw(lambda: self._curves.add(record), logged=True)

    def _draw(self, action: Callable[[], None], *, logged: bool = False) -> None:
        """Do something with the curves. A full disk ends their writing thread, and one of the next
        callers is told; as soon as the log can be written again, they are made anew from it.

        Args:
            logged: the log has what is to be drawn, so curves that are made anew have it, too.
        """
        anew = self._curves_behind
        if anew and self._unwritten:
            return
        try:
            if anew:
                self._curves.redraw(read_records(self._path)[0])
                self._curves_behind = False
            if not (anew and logged):
                action()
        except OSError as error:
            if not self._curves_refused:
                what = f"they are made anew from {self._path.name} when there is space"
                print(f"{self._curves.directory}: {error.strerror}; {what}", flush=True)
            self._curves_behind = self._curves_refused = True

    def _append(self) -> None:
        """Write what is unwritten; a full disk keeps it in memory until there is space again."""
        try:
            # One write: only a crash of the machine, or a full disk, can tear a line.
            written = os.write(self._file.fileno(), self._unwritten)
            self._unwritten = self._unwritten[written:]
            self._refused = False
        except OSError as error:
            if not self._refused:
                print(f"{self._path}: {error.strerror}; records wait in memory", flush=True)
            self._refused = True


def _json_line(record: Mapping[str, object]) -> str:
    # JSON has no NaN and no infinity; other readers refuse the words that Python writes for them.
    valid = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(valid, allow_nan=False) + "\n"
