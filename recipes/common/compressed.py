"""Opens files, decompressed if their ending says so; what follows the compressed data is counted.

Python's own readers stop silently at the first unknown byte behind the compressed data (.bz2, .xz),
or pass over zeros (.gz); the zstandard package's reader takes a truncated file for a whole one.

Here a file is a row of compressed members. A member that does not end is an error. Bytes behind the
last one are counted; too many of them are an error too: then the beginning of a member is probably
damaged, and nobody knows what it held.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 1 << 16
TRAILING_BYTES = 4096
"""Bytes behind the end that are passed over, zeros not counted; in a larger file 1% of it."""


def _zstd() -> Any:
    import zstandard  # here, because most inputs do not need it

    return zstandard.ZstdDecompressor().decompressobj()


_DECOMPRESSORS: dict[str, tuple[Callable[[], Any], tuple[bytes, ...]]] = {
    # A function that makes a reader of one member, and the bytes that a member begins with.
    ".gz": (lambda: zlib.decompressobj(wbits=31), (b"\x1f\x8b",)),
    ".bz2": (bz2.BZ2Decompressor, (b"BZh",)),
    ".xz": (lzma.LZMADecompressor, (b"\xfd7zXZ\0",)),
    # The other frames are skippable ones, which decompress to nothing.
    ".zst": (
        _zstd,
        (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))),
    ),
}
COMPRESSIONS = tuple(_DECOMPRESSORS)


def open_binary(path: Path, trailing: dict[str, int] | None = None) -> BinaryIO:
    """Open a file for reading; a truncated one raises EOFError, a damaged one OSError.

    Args:
        trailing: gets the number of bytes behind the compressed data, by path, once the file has
            been read to its end. Without it, such bytes are damage.
    """
    ending = path.suffix.lower()
    if ending not in _DECOMPRESSORS:
        return path.open("rb", buffering=1 << 20)
    return io.BufferedReader(_Decompressed(path, *_DECOMPRESSORS[ending], trailing), 1 << 20)


class _Decompressed(io.RawIOBase):
    def __init__(
        self,
        path: Path,
        make: Callable[[], Any],
        magic: tuple[bytes, ...],
        trailing: dict[str, int] | None,
    ):
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._make = make
        self._magic = magic
        self._trailing = trailing
        self._member: Any = make()  # None once the last one has ended
        self._compressed = b""  # read from the file and not yet decompressed
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            if not self._fill():
                return 0
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size

    def _fill(self) -> bool:
        if self._member is None:
            return False
        compressed = self._compressed or self._file.read(CHUNK)
        if not compressed:
            raise EOFError("its compressed data end too early")
        try:
            self._pending = memoryview(self._member.decompress(compressed))
        except Exception as error:  # each library has a kind of its own
            raise OSError(str(error)) from None
        self._compressed = b""
        if self._member.eof:
            self._compressed = self._member.unused_data
            self._member = self._make() if self._another_member() else None
        return True

    def _another_member(self) -> bool:
        """Find out whether another member follows; zeros between members are padding."""
        longest = max(map(len, self._magic))
        padding = 0
        while True:
            stripped = self._compressed.lstrip(b"\0")
            padding += len(self._compressed) - len(stripped)
            self._compressed = stripped
            if len(stripped) >= longest or not (more := self._file.read(CHUNK)):
                break
            self._compressed += more
        if self._compressed.startswith(self._magic):
            return True
        behind = len(self._compressed)
        while more := self._file.read(CHUNK):
            behind += len(more)
        size = self._path.stat().st_size
        if behind > (0 if self._trailing is None else max(TRAILING_BYTES, size // 100)):
            raise OSError(
                f"{behind:,} of its {size:,} bytes lie behind the end of the compressed data, and "
                "are not compressed themselves"
            )
        if self._trailing is not None and behind + padding:
            self._trailing[str(self._path)] = behind + padding
        return False

    def close(self) -> None:
        self._file.close()
        super().close()
