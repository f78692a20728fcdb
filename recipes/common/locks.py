"""Locks on directories: two processes writing into one would mix their files."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from recipes.common.errors import UserError
from recipes.common.files import LOOK_SECONDS, PATIENCE_SECONDS

LOCK = ".lock"

_held: dict[Path, IO[bytes]] = {}  # until the process ends, however it ends


def lock(directory: Path, work: str, name: str = LOCK) -> None:
    """Keep other processes from writing into `directory` until this process ends.

    A second call in the same process does nothing. A file system without locks is named on the
    console, and the work goes on.

    Args:
        directory: must exist; gets a file, which stays.
        work: what the process does there, for the message of the one that comes second, such as
            "training into it".
        name: of the file. What may be done beside other work in the directory has one of its own.

    Raises:
        UserError: another process holds the directory; it is named.
    """
    path = directory.resolve() / name
    if path in _held and path.exists():
        return
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().decode(errors="replace").strip() or "not named"
        file.close()
        raise UserError(f"{directory}: another process is {work} right now ({holder})") from None
    except OSError as error:  # some network file systems have no locks
        print(f"{directory}: cannot be locked ({error.strerror}); start no second process into it")
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
    file.flush()
    _held[path] = file


@contextmanager
def alone_with(path: Path, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Within it, no other process that asks for the same is writing the file; waits for its turn.

    A file `<path>.lock` beside it stays. A file system without locks is named on the console, and
    the work goes on.

    Raises:
        UserError: another process has not ended with it for `patience` seconds, as one that is
            suspended.
    """
    beside = path.with_name(f"{path.name}.lock")
    with beside.open("ab") as file:
        deadline = time.monotonic() + patience
        while not _locked(file, path):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{path}: another process has been writing it for {patience:g} seconds; if "
                    f"there is none any more, remove {beside.name}"
                )
            time.sleep(LOOK_SECONDS)
        yield


def _locked(file: IO[bytes], path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        print(f"{path}: cannot be locked ({error.strerror}); start no second writer of it")
    return True


def unlock_if_alone(directory: Path) -> None:
    """Take this process's lock away again from a directory in which nothing else has come to be."""
    path = directory.resolve() / LOCK
    if path in _held and os.listdir(directory) == [LOCK]:
        path.unlink()
        _held.pop(path).close()
