"""All modes within a time budget, the most important first, and one table at the end.

Each mode is a process of its own with a share of the time that is left; what it does not use goes
to those behind it. A mode that fails, or is still running well after its share, is ended and the
next one starts: its record holds what it had measured by then.

On a GPU the tests of the kernels come first. Where they do not pass, all records go to a directory
of their own, so that no speed of a wrong kernel lies among the results.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipes.benchmarks.mode import MODES, DataSettings, Mode, draw, take_directory
from recipes.benchmarks.records import Rows
from recipes.common.processes import last_line, start, wait
from recipes.common.settings import Minutes
from recipes.reporting.tables import aligned

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "kernels"
"""Name of the check that comes before the modes."""
WEIGHTS = {KERNELS: 3.0} | {name: listed.weight for name, listed in MODES.items()}
"""Weights by which the modes share the time, in the order in which they run."""
TOY_WORDS = {
    "checkpoint": ["--model", "rapidbert-tiny", "--deepspeed-config", "ds_configs/tiny_cpu.json"]
}
"""Options on the CPU, for a mode whose defaults are not a toy's."""
GRACE_SECONDS = 45.0
"""Time that a mode has after its share to finish what it began: it starts nothing new then."""
LEAST_SECONDS = 20.0
"""Shortest share that is enough to import and to measure anything."""
UNVERIFIED = "unverified"
"""Directory of the records of kernels that did not pass their tests."""


@dataclass(frozen=True)
class Settings:
    """Measures everything within a time budget, the most important first, and prints one table.

    On a GPU the tests of the kernels run first. Where they do not pass, the records go to
    `unverified/` in the output.
    """

    output: Path = Path("docs/results")
    """Directory of the records, figures and logs."""
    minutes: Minutes = 9.0
    """Minutes for everything together."""
    data: Path | None = None
    """Prepared directory for the modes that take one; random tokens unless given."""


@dataclass(frozen=True)
class Ended:
    """How the process of a mode, or the kernels' tests, ended."""

    name: str
    status: str
    failed: bool
    log: Path | None = None
    """What it printed; None where it was not started."""
    record: Path | None = None


def run_all(settings: Settings, mode_of: Callable[[str], Mode[Any]]) -> int:
    """Run every mode, print the table; 1 where anything failed."""
    take_directory(settings.output / "logs")  # each mode takes the output itself
    clock = Clock(time.monotonic() + 60 * settings.minutes)
    ended: list[Ended] = []
    output = settings.output
    if torch.cuda.is_available():
        ended.append(check_kernels(output, clock))
        if ended[0].failed:
            output = settings.output / UNVERIFIED
            print(f"{KERNELS}: NOT VERIFIED; all records go to {output}", flush=True)
    else:
        print(f"{KERNELS}: not checked, since on the CPU only PyTorch's are timed", flush=True)
    for name in WEIGHTS:
        if name != KERNELS:
            ended.append(run_mode_apart(name, mode_of(name), settings, output, clock))
    print("\n" + aligned(summary(ended, mode_of)))
    failed = [end for end in ended if end.failed]
    for end in failed:
        where = f"; its log is {end.log}" if end.log else ""
        print(f"{end.name} failed ({end.status}){where}", file=sys.stderr)
    return 1 if failed else 0


@dataclass(frozen=True)
class Clock:
    """The time budget: it is over at `ends`, by the monotonic clock."""

    ends: float

    def share(self, name: str) -> float:
        """Give the seconds of a mode: the time left, by its weight among those still to run."""
        left = self.ends - time.monotonic() - GRACE_SECONDS
        names = list(WEIGHTS)
        waiting = names[names.index(name) :]
        weight = WEIGHTS[name] / sum(WEIGHTS[other] for other in waiting)
        # What is important gets enough, even where nothing remains for what stands behind it.
        return min(left, max(LEAST_SECONDS, left * weight))


def check_kernels(output: Path, clock: Clock) -> Ended:
    """Run the tests of the kernels on this machine's GPU."""
    share = clock.share(KERNELS)
    if share < LEAST_SECONDS:
        return Ended(KERNELS, "no time left", failed=True)
    return run_apart(KERNELS, kernel_tests(), output / "logs" / "kernels.log", share, clock)


def run_mode_apart(
    name: str, mode: Mode[Any], settings: Settings, output: Path, clock: Clock
) -> Ended:
    """Run one mode in a process of its own, and draw what it measured if it was killed."""
    share = clock.share(name)
    if share < LEAST_SECONDS:
        return Ended(name, "no time left", failed=False)
    called = f"{name}_cpu" if mode.by_device and not torch.cuda.is_available() else name
    record = output / f"{called}.json"
    words = [*command(name), "--output", str(output), "--minutes", f"{share / 60:.3f}"]
    if not torch.cuda.is_available():
        words += TOY_WORDS.get(name, [])
    if settings.data is not None and issubclass(mode.settings, DataSettings):
        words += ["--data", str(settings.data)]
    record.unlink(missing_ok=True)  # what is there afterwards was measured now
    end = run_apart(name, words, output / "logs" / f"{called}.log", share, clock)
    status = end.status
    if end.failed and record.exists():
        try:
            draw(mode, json.loads(record.read_bytes()), record)
        except Exception as error:  # a record that a kill left is not what figures are made for
            status += f"; no figure of what was measured ({type(error).__name__}: {error})"
    return Ended(name, status, end.failed, end.log, record)


def run_apart(name: str, words: Sequence[str], log: Path, share: float, clock: Clock) -> Ended:
    """Run a command for `share` seconds and a little more, not past the end."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    print(f"{name}: up to {share:.0f} s, log in {log}", flush=True)
    began = time.monotonic()
    status = wait(start(words, log), min(share + GRACE_SECONDS, clock.ends - began))
    if status is None:
        said = "ended at the time limit"
    else:
        said = "done" if status == 0 else f"exit status {status}"
    print(f"{name}: {said} after {time.monotonic() - began:.0f} s", flush=True)
    return Ended(name, said, failed=status != 0, log=log)


GPU_TESTS = (
    "model",
    "recipes/benchmarks/test_timing.py",
    "recipes/corpus/test_mlm_batches.py",
    "recipes/training/test_throughput.py",
)
"""Where tests are that want a GPU. The others are not collected: one that lacks a package, as
`convert_hf.py`'s may on a machine without a network, would keep all from running."""


def command(name: str) -> list[str]:
    """Give the command that runs a mode."""
    return [sys.executable, str(ROOT / "recipes" / "benchmark.py"), name]


def kernel_tests() -> list[str]:
    """Give the command that tests the kernels: several processes, because they compile long."""
    words = ["-m", "pytest", "-m", "gpu", "-n", "4", "-q", "--rootdir", str(ROOT)]
    return [sys.executable, *words, *(str(ROOT / "tests" / place) for place in GPU_TESTS)]


def summary(ended: Sequence[Ended], mode_of: Callable[[str], Mode[Any]]) -> Rows:
    """List mode, what, result, in the order in which they ran."""
    rows: Rows = [("benchmark", "what", "measured")]
    for end in ended:
        lines: list[tuple[str, str]] = []
        if end.name == KERNELS and end.log:
            lines = [("their tests on this GPU", last_line(end.log))]
        elif end.log and end.record:
            try:
                content = json.loads(end.record.read_bytes())
                lines = mode_of(end.name).headlines(content)
            except (OSError, LookupError, ValueError) as error:
                lines = [("", f"no record ({type(error).__name__})")]
        if end.status != "done":
            lines = [*lines, ("", end.status)]
        rows += [(end.name if number == 0 else "", *line) for number, line in enumerate(lines)]
    return rows
