"""Files that are whole or not there: written under another name, synced, then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from recipes.common.errors import UserError

PARTIAL = ".partial"
"""Ending of a file that is not finished; such files are never read."""
PATIENCE_SECONDS = 60.0
"""How long `write_whole` waits for another writer of the same file. One that is suspended, or whose
node died with the lock of a network file system, never ends."""
LOOK_SECONDS = 0.02


class PartialFile:
    """A file called `<path>.partial` until it is whole; only then does `path` change.

    One process at a time writes it: two would mix their bytes. On a file system without locks
    nothing keeps a second one away.

    Args:
        patience: seconds to wait for another process that writes it.

    Raises:
        UserError: another process is writing it.
    """

    def __init__(self, path: Path, *, patience: float = 0.0):
        self.path = path
        self._partial = path.with_name(path.name + PARTIAL)
        self._file = self._opened_alone(time.monotonic() + patience)

    def _opened_alone(self, deadline: float) -> BinaryIO:
        while True:
            file = open(self._partial, "wb", 1 << 20, opener=_as_it_is)  # noqa: SIM115  # stays
            locked = _lock(file)
            if locked is None or (locked and self._is_named(file)):
                file.truncate()
                return file
            file.close()
            # Where it was locked, its writer has just ended: the next try, for a second, is another
            # file.
            if time.monotonic() > (deadline + 1.0 if locked else deadline):
                raise UserError(f"{self.path}: another process is writing it right now")
            time.sleep(0 if locked else LOOK_SECONDS)

    def _is_named(self, file: BinaryIO) -> bool:
        """Say whether the partial name is this file's, and not that of another or of none."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), self._partial.stat())
        return False

    @property
    def file(self) -> BinaryIO:
        """The open file, for what writes files itself or goes back to their beginning."""
        return self._file

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes to the partial file."""
        self._file.write(data)

    def close(self) -> None:
        """Bring it to the disk; nothing is to be written afterwards."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def publish(self) -> None:
        """Give it its name, in place of what had the name before.

        Raises:
            FileNotFoundError: it was removed; what may be there under its partial name is
                another's.
        """
        if not self._is_named(self._file):
            raise FileNotFoundError(errno.ENOENT, "removed while it was written", str(self.path))
        os.replace(self._partial, self.path)
        self._file.close()

    def discard(self) -> None:
        """Remove it, unless it has its name already."""
        if not self._file.closed and self._is_named(self._file):  # else it is another process's
            self._partial.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk refuses the last flush, too
            self._file.close()


def _lock(file: BinaryIO) -> bool | None:
    """Lock a file unless another process has; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # of some network file systems
        return None
    return True


def _as_it_is(path: str, flags: int) -> int:
    """Open a file without emptying it: another process may be writing it."""
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Replace `path` by `parts`, one after the other.

    A reader, or a crash, sees the old or the new, never half; of two writers the last one wins.

    Raises:
        OSError: the file system's own (full, read-only), or that another process has been writing
            the file for `PATIENCE_SECONDS`; with `path` in it, which is as it was.
    """
    try:
        file = PartialFile(path, patience=PATIENCE_SECONDS)
    except UserError:
        said = (
            f"another process has been writing it for {PATIENCE_SECONDS:.0f} seconds; if there is "
            f"none any more, remove {path.name}{PARTIAL}"
        )
        raise TimeoutError(errno.ETIMEDOUT, said, str(path)) from None
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
