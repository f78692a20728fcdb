"""The bench's processes: each has a time limit, some run at once, and a signal to ours ends all.

What failed is known by the last lines that it printed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.common.processes import Child, kill, last_lines, start

LOOK_SECONDS = 0.1
LINES_KEPT = 15
"""Last lines of a failed process's output that go into the record."""
DONE, LATE, STOPPED = "done", "ended at the time limit", "stopped by a signal"
NOT_FINISHED = "not finished"
"""Beginning of the status of tests that the time limit ended; counts of what they found follow."""


@dataclass(frozen=True)
class LimitedProcess:
    """A process to start."""

    name: str
    words: Sequence[str]
    log: Path
    seconds: float
    """Limit, after which it is killed with all that it started."""
    says: str = ""
    """What it does, for the table."""


@dataclass(frozen=True)
class Ended:
    """How a process ended, or why it was not started."""

    name: str
    status: str
    failed: bool
    seconds: float = 0.0
    log: Path | None = None
    """What it printed; None where it was not started."""
    record: Path | None = None
    """What it measured, where it measures."""
    lines: tuple[str, ...] = ()
    """The last lines of its output; one where all is well."""
    says: str = ""

    def describe(self) -> dict[str, object]:
        """Return what the record of the bench holds of it."""
        return {
            "status": self.status,
            "failed": self.failed,
            "seconds": round(self.seconds, 1),
            "log": self.log and str(self.log),
            "last_lines": list(self.lines),
        }


def run_at_once(processes: Sequence[LimitedProcess], signals: Sequence[int]) -> list[Ended]:
    """Run processes side by side, each to its end, to its limit, or all of them to a signal.

    Args:
        signals: what this process has received so far, from `received_signals`.
    """
    began = time.monotonic()
    running: dict[str, tuple[LimitedProcess, Child]] = {}
    ended: dict[str, Ended] = {}
    try:
        for process in processes:
            process.log.parent.mkdir(parents=True, exist_ok=True)
            process.log.unlink(missing_ok=True)
            running[process.name] = process, start(process.words, process.log)
        while running:
            passed = time.monotonic() - began
            for name, (process, child) in list(running.items()):
                said = _how_it_ended(child, passed > process.seconds, bool(signals))
                if said is None:
                    continue
                kill(child)  # what it started, too
                del running[name]
                print(f"{name}: {said} after {passed:.0f} s", flush=True)
                lines = last_lines(process.log, 1 if said == DONE else LINES_KEPT)
                ended[name] = Ended(
                    name, said, said != DONE, passed, process.log, None, lines, process.says
                )
            if running:
                time.sleep(LOOK_SECONDS)
    finally:
        for _, child in running.values():
            kill(child)
    return [ended[process.name] for process in processes]


def _how_it_ended(child: Child, late: bool, stopped: bool) -> str | None:
    """Say how a process has ended, or is to be ended now; None where it goes on."""
    status = child.poll()
    if status is not None:
        return DONE if status == 0 else f"exit status {status}"
    if stopped:
        return STOPPED
    return LATE if late else None
