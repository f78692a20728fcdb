"""Everything within a time budget, the most important first, and one table at the end.

First come the checks of `checks.py`. On a GPU the tests of the kernels are among them: where they
do not pass, or not in their time, all records go to a directory of their own, so that no speed of a
wrong kernel lies among the results; the table says which of the two it was. Then each mode is a
process of its own with a share of the time that is left; what it does not use goes to those behind
it. A mode that fails, or is still running well after its share, is ended and the next one starts:
its record holds what it had measured by then.

What is known so far is on the disk at any time: the record of each mode, that of the bench itself,
and the archive of all, if one is asked for.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from recipes.benchmarks.archive import why_no_archive, write_archive
from recipes.benchmarks.checks import KERNELS, checks, run_checks
from recipes.benchmarks.limited_processes import Ended, LimitedProcess, run_at_once
from recipes.benchmarks.mode import MODES, AllSettings, DataSettings, Mode
from recipes.benchmarks.records import Record
from recipes.benchmarks.running import draw, take_directory
from recipes.benchmarks.summary import summary
from recipes.common.errors import Faults
from recipes.common.files import why_no_directory
from recipes.common.places import RECIPES
from recipes.common.processes import received_signals
from recipes.common.tables import aligned

WEIGHTS = {name: listed.weight for name, listed in MODES.items()}
"""Weights by which the modes share the time, in the order in which they run."""
TOY_WORDS = {
    "checkpoint": ["--model", "rapidbert-tiny", "--deepspeed-config", "ds_configs/tiny_cpu.json"]
}
"""Options on the CPU, for a mode whose defaults are not a toy's."""
CHECKS_SHARE = 0.35
"""Largest part of the budget that the checks may take."""
GRACE_SECONDS = 45.0
"""Time that a mode has after its share to finish what it began: it starts nothing new then."""
LEAST_SECONDS = 40.0
"""Shortest share that is enough to import and to measure anything."""
NO_TIME = "no time left"
UNVERIFIED = "unverified"
"""Directory of the records of kernels that did not pass their tests."""


@dataclass(frozen=True)
class Clock:
    """The time budget: it is over at `ends`, by the monotonic clock."""

    ends: float

    def left(self) -> float:
        """Give the seconds until the end."""
        return max(0.0, self.ends - time.monotonic())

    def share(self, name: str) -> float:
        """Give the seconds of a mode: the time left, by its weight among those still to run."""
        left = self.left() - GRACE_SECONDS
        names = list(WEIGHTS)
        waiting = names[names.index(name) :]
        weight = WEIGHTS[name] / sum(WEIGHTS[other] for other in waiting)
        # What is important gets enough, even where nothing remains for what stands behind it.
        return min(left, max(LEAST_SECONDS, left * weight))


@dataclass
class Bench:
    """What all stages of one `benchmark.py all` share: its settings, its clock, its signals."""

    settings: AllSettings
    mode_of: Callable[[str], Mode[Any]]
    clock: Clock
    signals: Sequence[int]
    """What this process has received, which ends everything."""
    record: Record
    """That of the bench: how the checks and the modes ended."""
    began: float = field(default_factory=time.time)
    ended: list[Ended] = field(default_factory=list)

    def note(self, kind: str, ends: Sequence[Ended]) -> None:
        """Bring what is known now to the disk."""
        self.ended += ends
        for end in ends:
            self.record[kind][end.name] = end.describe()
        self.record.save()
        if self.settings.archive is not None:
            write_archive(self.settings.archive, self.settings.output, since=self.began)

    def check(self) -> Path:
        """Run the checks; return the directory for the records of the modes."""
        output = self.settings.output
        with TemporaryDirectory(prefix="rapidbert-bench-") as scratch:
            listed = checks(torch.cuda.is_available(), Path(scratch))
            most = CHECKS_SHARE * self.clock.left()
            names = ", ".join(f"{each.name} ({min(each.seconds, most):.0f} s)" for each in listed)
            print(f"checks, side by side, at most: {names}; {self.left()}", flush=True)
            ends = run_checks(listed, output / "logs", most, self.signals)
        self.note("checks", ends)
        if any(end.name == KERNELS and end.failed for end in ends):
            output = output / UNVERIFIED
            status = next(end.status for end in ends if end.name == KERNELS)
            print(f"{KERNELS}: NOT VERIFIED ({status}); all records go to {output}", flush=True)
        elif not torch.cuda.is_available():
            print(f"{KERNELS}: not checked, since on the CPU only PyTorch's are timed", flush=True)
        return output

    def measure(self, name: str, output: Path) -> Ended:
        """Run one mode in a process of its own, and draw what it measured if it was ended."""
        mode, share = self.mode_of(name), self.clock.share(name)
        if share < LEAST_SECONDS:
            return Ended(name, NO_TIME, failed=False)
        gpu = torch.cuda.is_available()
        called = f"{name}_cpu" if mode.by_device and not gpu else name
        record = output / f"{called}.json"
        words = [*command(name), "--output", str(output), "--minutes", f"{share / 60:.3f}"]
        words += [] if gpu else TOY_WORDS.get(name, [])
        if self.settings.data is not None and issubclass(mode.settings, DataSettings):
            words += ["--data", str(self.settings.data)]
        record.unlink(missing_ok=True)  # what is there afterwards was measured now
        log = output / "logs" / f"{called}.log"
        print(f"{name}: up to {share:.0f} s, {self.left()}; log in {log}", flush=True)
        limit = min(share + GRACE_SECONDS, self.clock.left())
        (end,) = run_at_once([LimitedProcess(name, words, log, limit)], self.signals)
        status = end.status
        if end.failed and record.exists():
            try:
                draw(mode, json.loads(record.read_bytes()), record)
            except Exception as error:  # half a record is not what figures are made for
                status += f"; no figure of what was measured ({type(error).__name__}: {error})"
        return Ended(name, status, end.failed, end.seconds, end.log, record, end.lines)

    def left(self) -> str:
        """Say what remains of the budget."""
        return f"{self.clock.left():.0f} s of {60 * self.settings.minutes:.0f} s left"


def run_all(settings: AllSettings, mode_of: Callable[[str], Mode[Any]]) -> int:
    """Check, run every mode, print the table; 1 where anything failed, 128 + a signal's number.

    Raises:
        UserError: no directory, no archive, or too little time, before anything is done.
    """
    refuse(settings)
    take_directory(settings.output / "logs")  # each mode takes the output itself
    clock = Clock(time.monotonic() + 60 * settings.minutes)
    record = Record("bench", settings.output)
    record.content |= {"minutes": settings.minutes, "checks": {}, "modes": {}}
    with received_signals() as signals:
        bench = Bench(settings, mode_of, clock, signals, record)
        bench.note("checks", [])
        output = bench.check()
        for name in WEIGHTS:
            if signals:
                bench.ended.append(Ended(name, "stopped before it began", failed=False))
            else:
                bench.note("modes", [bench.measure(name, output)])
        record["complete"] = not signals
        bench.note("modes", [])
    print("\n" + aligned(summary(bench.ended, mode_of)))
    failed = [end for end in bench.ended if end.failed]
    for end in failed:
        where = f"; its log is {end.log}" if end.log else ""
        print(f"{end.name} failed ({end.status}){where}", file=sys.stderr)
        print("".join(f"    {line}\n" for line in end.lines[-5:]), end="", file=sys.stderr)
    print(f"\n{record.path}" + (f"\n{settings.archive}" if settings.archive else ""))
    return 128 + signals[0] if signals else 1 if failed else 0


def refuse(settings: AllSettings) -> None:
    """Name everything that would keep the results from being made or from being kept.

    Raises:
        UserError: with all of it.
    """
    faults = Faults()
    least = (LEAST_SECONDS + GRACE_SECONDS) / 60 / (1 - CHECKS_SHARE)
    if settings.minutes < least:
        faults.append(
            f"--minutes {settings.minutes:g}: {CHECKS_SHARE:.0%} is the checks', a mode needs "
            f"{LEAST_SECONDS:.0f} s and {GRACE_SECONDS:.0f} s to finish what it began: at least "
            f"{math.ceil(10 * least) / 10:.1f}"
        )
    for directory in (settings.output, settings.output / "logs"):
        if refusal := why_no_directory(directory):
            faults.append(f"--output {settings.output}: {refusal}")
            break
    if settings.archive is not None and (refusal := why_no_archive(settings.archive)):
        faults.append(f"--archive {settings.archive}: {refusal}")
    faults.stop()


def command(name: str) -> list[str]:
    """Give the command that runs a mode."""
    return [sys.executable, str(RECIPES / "benchmark.py"), name]
