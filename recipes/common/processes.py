"""Child processes: started in groups of their own, watched, and ended with all that they started.

A process group is what a signal reaches as a whole: a child, its data loaders and its compilers.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

GRACE_SECONDS = 10.0
"""Time that a child gets to end by itself before it is killed."""

Child = subprocess.Popen[bytes]


def start(
    command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None
) -> Child:
    """Start a child in a process group of its own.

    Args:
        log: file that takes what the child prints, after what is in it already.
        environment: variables beside those of this process.
    """
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait(child: Child, seconds: float) -> int | None:
    """Return the child's exit status, or None after killing one that takes longer."""
    try:
        return child.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        kill(child)


def kill(child: Child) -> None:
    """Kill whatever is left of a child's group at once."""
    _signal(child, signal.SIGKILL)
    child.wait()


def stop(children: Sequence[Child]) -> None:
    """End children with everything they started; those that do not listen are killed."""
    for child in children:
        _signal(child, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))
        kill(child)


def _signal(child: Child, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def run_in_front(command: Sequence[str], directory: Path) -> int:
    """Run a command on this terminal to its end, and return its exit status as a shell does.

    Ctrl-C reaches all processes of a terminal; a SIGTERM to this process is passed on.
    """
    before = [signal.signal(signal.SIGINT, lambda *_: None)]
    child = subprocess.Popen(command, cwd=directory)
    before.append(signal.signal(signal.SIGTERM, lambda *_: child.terminate()))
    try:
        status = child.wait()
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


@contextmanager
def received_signals() -> Iterator[list[int]]:
    """Note the signals to stop (Ctrl-C, SIGTERM, SIGHUP) in a list, instead of obeying them.

    An exception from a handler could arrive between the start of a child and its being noted down.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank; an empty text if there is none."""
    return _last_lines(log)[-1]


def last_error(log: Path) -> str:
    """Return the last line of a log that names an error, or else the last line."""
    lines = _last_lines(log)
    named = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception)\b", line)]
    return (named or lines)[-1]


def last_lines(log: Path, count: int) -> tuple[str, ...]:
    """Return the last lines of a log that are not blank, the last one last; may be none."""
    return tuple(line for line in _last_lines(log)[-count:] if line)


def _last_lines(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    # A progress bar writes over itself with \r: a terminal would show the last part.
    shown = [line.split("\r")[-1].strip() or line.strip() for line in lines]
    return [line for line in shown if line] or [""]
