"""Files that are whole or not there: written under another name, synced, then renamed."""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from recipes.common.errors import UserError

PARTIAL = ".partial"
"""Ending of a file that is not finished; such files are never read."""


class PartialFile:
    """A file called `<path>.partial` until it is whole; only then does `path` change.

    One process at a time writes it: two would mix their bytes.

    Args:
        wait: until no other process writes it, instead of refusing.

    Raises:
        UserError: another process is writing it.
    """

    def __init__(self, path: Path, *, wait: bool = False):
        self.path = path
        self._partial = path.with_name(path.name + PARTIAL)
        self._file = self._opened_alone(wait)
        self._published = False

    def _opened_alone(self, wait: bool) -> BinaryIO:
        while True:
            file = open(self._partial, "wb", 1 << 20, opener=_as_it_is)  # noqa: SIM115  # stays
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                file.close()
                raise UserError(f"{self.path}: another process is writing it right now") from None
            except OSError:  # some network file systems have no locks
                pass
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self._partial.stat()):
                    file.truncate()
                    return file
            file.close()  # it got its name, or was taken away, while we waited

    @property
    def file(self) -> BinaryIO:
        """The open file, for what writes files itself or goes back to their beginning."""
        return self._file

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes to the partial file."""
        self._file.write(data)

    def close(self) -> None:
        """Bring it to the disk; nothing can be written afterwards."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def publish(self) -> None:
        """Give it its name, in place of what had the name before."""
        os.replace(self._partial, self.path)
        self._published = True
        self._file.close()

    def discard(self) -> None:
        """Remove it, unless it has its name already."""
        if not self._published:  # else another process may have one of this name by now
            self._partial.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk refuses the last flush, too
            self._file.close()


def _as_it_is(path: str, flags: int) -> int:
    """Open a file without emptying it: another process may be writing it."""
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Replace `path` by `parts`, one after the other.

    A reader, or a crash, sees the old or the new, never half; of two writers the last one wins.

    Raises:
        OSError: the file system's own (full, read-only), with `path` in it, which is as it was.
    """
    file = PartialFile(path, wait=True)
    try:
        for part in parts:
            file.write(part)
        file.close()
        file.publish()
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say where
        raise
    finally:
        file.discard()


def why_no_directory(path: Path) -> str | None:
    """Say what would keep `path` from being made, or from being written into where it exists.

    Returns None where nothing is seen that would.
    """
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        return "is a file; name a directory" if nearest == path else f"{nearest} is a file"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} cannot be written (permissions, or a read-only file system)"
    return None


def why_no_file(path: Path) -> str | None:
    """Say what would keep `path` from being written as a file; None where nothing is seen."""
    if path.is_dir():
        return "is a directory; name a file"
    return why_no_directory(path.parent if path.exists() else path)


def sync_directory(directory: Path) -> None:
    """Bring the names in `directory` to the disk; a crash can undo a rename that is not there."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Bring everything in `directory` to the disk: contents, and names at every level."""
    for path in directory.rglob("*"):
        if path.is_file():
            sha256(path, sync=True)
        else:
            sync_directory(path)
    sync_directory(directory)


def sha256(path: Path, *, sync: bool = False) -> str:
    """Compute a file's checksum, in hexadecimal.

    Args:
        sync: also bring its contents to the disk.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return digest
