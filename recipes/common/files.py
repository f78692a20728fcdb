"""Files that are whole or not there: written aside, brought to the disk, renamed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

PARTIAL = ".partial"
"""Ending of what is not finished; nothing with this name is ever read."""


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Replace `path` by `parts`, one after the other.

    A reader, or a crash, sees the old or the new, never half.

    Raises:
        OSError: the file system's own (full, read-only); `path` is then as it was.
    """
    aside = path.with_name(path.name + PARTIAL)
    try:
        with aside.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def why_no_directory(path: Path) -> str | None:
    """What would keep `path` from being made, or written into where it is; None: nothing seen."""
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        return "is a file; name a directory" if nearest == path else f"{nearest} is a file"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} cannot be written (permissions, or a read-only file system)"
    return None


def why_no_file(path: Path) -> str | None:
    """What would keep `path` from being written as a file, or None; as `why_no_directory`."""
    if path.is_dir():
        return "is a directory; name a file"
    return why_no_directory(path.parent if path.exists() else path)


def sync_directory(directory: Path) -> None:
    """Bring the names in `directory` to the disk: a rename before this can be lost in a crash."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path, *, sync: bool = False) -> str:
    """Checksum of a file, in hexadecimal; with `sync` its contents are on the disk afterwards."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return digest
