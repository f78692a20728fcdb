"""The launcher that started this process: when it is gone, its processes end too.

`deepspeed`, `torchrun`, `glue.py` and the like end what they have started, unless they are killed
themselves. Then their ranks would wait for each other, or train on, with nobody to stop them and
their GPUs taken. So every process looks at its ancestors, up to the topmost launcher, once a
second, and when one of them is gone it sends itself SIGTERM. That ends it at once, or in the
training loop after the next step with a checkpoint. It works while other code waits for ranks that
will never come.

A shell, a terminal or `srun` is no launcher: what was started by hand goes on without them.

Imports nothing that takes long, so that the look can begin before everything else.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

# Programs and modules; `deepspeed` starts `deepspeed.launcher.launch`, which starts the ranks.
LAUNCHERS = re.compile(
    r"(.*/)?(deepspeed|deepspeed\.pt|ds|torchrun)"
    r"|deepspeed\.launcher\.(launch|runner)|torch\.distributed\.(run|launch)"
    r"|(.*/)?recipes/(\w+/)*\w+\.py|recipes(\.\w+)+"
)
LAUNCH = "deepspeed.launcher.launch"
PYTHON = re.compile(r"(.*/)?(python|pypy)[\d.]*")
VALUED = ("-X", "-W", "--check-hash-based-pycs")  # Python's options with a word of their own
# Variables that these launchers set, and whoever calls their libraries (`accelerate launch`).
MARKS = {"TORCHELASTIC_RUN_ID": "torchrun", "CROSS_RANK": "deepspeed"}
LOOK_SECONDS = 1.0

_watched: list[int] = []


def end_with_launcher() -> None:
    """Make this process end when the launcher that started it does.

    Does nothing where no launcher has started it, and nothing the second time.
    """
    if _watched:
        return
    _watched.extend(launchers())
    if name := _lost_launcher(_watched):
        _end(f"the {name} that started this process")
    elif _watched:
        threading.Thread(target=_watch, args=(list(_watched),), daemon=True).start()


def launchers() -> list[int]:
    """Ancestors of this process, its parent first, up to the topmost launcher; may be none."""
    found, topmost = [], 0
    with suppress(OSError):
        pid = os.getppid()
        while pid > 0:
            found.append(pid)
            if LAUNCHERS.fullmatch(_program(pid)):
                topmost = len(found)
            pid = _parent(pid)
        if not topmost and found and _mark() and _is_launcher_of_another_name(found[0]):
            topmost = 1
    return found[:topmost]


def _mark() -> str | None:
    """The launcher that the environment names."""
    return next((MARKS[mark] for mark in MARKS if mark in os.environ), None)


def _is_launcher_of_another_name(parent: int) -> bool:
    # Known launchers under a debugger, and others that are built on their libraries, are Python
    # programs. Who adopts an orphan (init, systemd) is none, or the first process of a container.
    return parent != 1 and PYTHON.fullmatch(_words(parent)[0]) is not None


def _words(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")


def _program(pid: int) -> str:
    """What a process runs: a program, or the script or module of its Python interpreter."""
    program, *words = _words(pid)
    if not PYTHON.fullmatch(program):
        return program
    # Words behind the program are not looked at: they may be anything, also a launcher's name.
    before = ["", *words]
    return next(
        (
            word
            for option, word in zip(before, words, strict=False)
            if not word.startswith("-") and option not in VALUED
        ),
        "",
    )


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return int(stat.rpartition(")")[2].split()[1])  # the name before may hold anything


def _lost_launcher(found: list[int]) -> str | None:
    """The launcher that the environment names and that was no ancestor any more at the start."""
    name = _mark()
    with suppress(OSError):
        if found and os.environ.get("CROSS_SIZE") == "1" and _program(found[-1]) == LAUNCH:
            # On one machine the ranks' parent is a child of `deepspeed`, in its session; who has
            # adopted it meanwhile is in another.
            return name if os.getsid(found[-1]) != os.getsid(_parent(found[-1])) else None
        # In a container of its own, a rank does not see the launcher outside.
        if b"RANK=" in Path("/proc/1/environ").read_bytes():
            return None
    return None if found else name


def _watch(pids: list[int]) -> None:
    names = " and ".join(map(str, pids))
    while _are_ancestors(pids):
        time.sleep(LOOK_SECONDS)
    _end(f"a launcher of this process (ancestors {names})")


def _are_ancestors(pids: list[int]) -> bool:
    try:
        # An orphan has another parent at once, even while nobody has waited for the dead one.
        return [os.getppid(), *map(_parent, pids[:-1])] == pids
    except OSError:
        return False


def _end(launcher: str) -> None:
    message = f"{launcher} is gone: process {os.getpid()} ends as well\n"
    # Where it went may be gone, too, or None.
    with suppress(OSError, AttributeError):
        os.write(sys.__stderr__.fileno(), message.encode())  # type: ignore[union-attr]
    os.kill(os.getpid(), signal.SIGTERM)
