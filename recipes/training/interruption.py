"""Ending a run before its last step: on a signal, on a stop file, or because a step hangs.

A signal or a stop file is only noted. The ranks tell each other at every step, so that all of them
end at the same step boundary, with a checkpoint, whichever rank was asked.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

INTERRUPTED = 75
"""Exit status after a signal: checkpointed, to be started again (EX_TEMPFAIL of sysexits.h)."""
STOPPED = 3
"""Exit status after a stop file: checkpointed, to be left alone."""

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
STOP_FILE_SECONDS = 1.0
"""A look at a parallel file system in every step would be a load on it."""
STARTUP_SECONDS = 1800.0
"""Seconds for what is slow by nature: cold file systems, compilation, a slow disk."""


class StopRequests:
    """What this rank has been asked for since it was made.

    Args:
        output: directory of the run, in which a file named `stop` ends it.
        rank: rank 0 looks for the stop file, and removes it when it is honoured.
    """

    def __init__(self, output: Path, rank: int):
        self.signalled = False
        self._file = output / "stop"
        self._rank = rank
        self._looked = -STOP_FILE_SECONDS
        self._file_found = False
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        # os.write: print is not safe to re-enter from a handler.
        name = signal.Signals(number).name
        message = f"rank {self._rank} ({socket.gethostname()}): {name}, ending after this step\n"
        with suppress(OSError):
            os.write(sys.__stdout__.fileno() if sys.__stdout__ else 1, message.encode())
        self.signalled = True
        if number == signal.SIGINT:  # a second Ctrl-C does not wait
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @property
    def stop_file(self) -> bool:
        """Whether rank 0 has seen the stop file; looks at most once in `STOP_FILE_SECONDS`."""
        now = time.monotonic()
        if self._rank == 0 and not self._file_found and now - self._looked >= STOP_FILE_SECONDS:
            self._looked = now
            self._file_found = self._file.exists()
        return self._file_found

    def asked(self) -> dict[str, int]:
        """Return what this rank was asked for, to be added up over the ranks."""
        return {"signalled": self.signalled, "stop_file": self.stop_file}

    def status(self, asked: Mapping[str, int]) -> int | None:
        """Return the exit status that the ranks' sums of `asked` ask for; None: go on."""
        if asked["stop_file"]:
            return STOPPED
        return INTERRUPTED if asked["signalled"] else None

    def take_leave(self, status: int, step: int, total_steps: int | None) -> None:
        """Say why the run ends before its last step; remove the stop file that asked for it.

        A stop file that nobody has seen stays: it stops the next start.
        """
        if self._rank == 0:
            why = "a signal" if status == INTERRUPTED else self._file
            whole = f" of {total_steps}" if total_steps else ""
            print(
                f"ended by {why} after step {step}{whole}, with a checkpoint; the same command "
                "goes on"
            )
            if status == STOPPED:
                self._file.unlink(missing_ok=True)


class LastingConsole:
    """A console that may go away: a launcher that is killed, a terminal that is closed.

    What is printed then is dropped: it stands in the run's log as well, and no print may end a run
    between two checkpoints.
    """

    def __init__(self, console: TextIO):
        self._console = console

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._console.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._console.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._console, name)


def outlive_the_console() -> None:
    """Drop, from now on, what this process prints when nobody takes it any more."""
    sys.stdout = cast(TextIO, LastingConsole(sys.stdout))
    sys.stderr = cast(TextIO, LastingConsole(sys.stderr))


class Watchdog:
    """Ends a process, with the stacks of all its threads on stderr, when a step takes too long.

    One rank that hangs keeps all others waiting in a collective; ended processes end the job, and
    the next start goes on from the last checkpoint. It works below Python, so that code that holds
    the interpreter's lock cannot keep it from working.

    Args:
        seconds: that a step may take.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds

    def step(self) -> None:
        """Watch over the step that begins now."""
        self._arm(self._seconds)

    def pause(self) -> None:
        """Give more time, to what may take long: start-up, evaluation, saving."""
        self._arm(max(self._seconds, STARTUP_SECONDS))

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()

    def _arm(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
