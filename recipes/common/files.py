"""Files that are whole or not there: written under another name, synced, then renamed."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""Ending of a file that is not finished; such files are never read."""


class PartialFile:
    """A file called `<path>.partial` until it is whole; only then does `path` change."""

    def __init__(self, path: Path):
        self.path = path
        self._partial = path.with_name(path.name + PARTIAL)
        self._file = self._partial.open("wb", buffering=1 << 20)

    @property
    def file(self) -> BinaryIO:
        """The open file, for what writes files itself or goes back to their beginning."""
        return self._file

    def write(self, data: bytes | memoryview) -> None:
        """Append to it."""
        self._file.write(data)

    def close(self) -> None:
        """Bring it to the disk; nothing can be written afterwards."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def publish(self) -> None:
        """Give it its name, in place of what had the name before."""
        os.replace(self._partial, self.path)

    def discard(self) -> None:
        """Remove it, unless it has its name already."""
        with suppress(OSError):  # a full disk refuses the last flush, too
            self._file.close()
        self._partial.unlink(missing_ok=True)


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Replace `path` by `parts`, one after the other.

    A reader, or a crash, sees the old or the new, never half.

    Raises:
        OSError: the file system's own (full, read-only), with `path` in it, which is as it was.
    """
    file = PartialFile(path)
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
