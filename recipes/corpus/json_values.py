"""Cuts a stream of JSON into its values: the elements of one array, or values without an array.

To find where a value ends it looks at brackets and quotes alone; the caller parses the value. So
memory holds one value, a broken value harms no other, and a value that is too long is passed over
without being held.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

CHUNK = 1 << 16

_BETWEEN = re.compile(rb"[^\s,]")  # the first byte of the next value
_WITHIN = re.compile(rb'["{}\[\]]')
_SCALAR_END = re.compile(rb'[\s,"{}\[\]]')  # of a value without brackets or quotes
_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)  # to its quote or the chunk's end


def json_values(file: BinaryIO, longest: int) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, bytes) for the elements of arrays and for the values outside of arrays.

    A value longer than `longest` is cut to `longest` + 1 bytes.

    Raises:
        EOFError: the stream ends within a value or an array.
    """
    reader = _Reader(longest)
    offset = 0
    while chunk := file.read(CHUNK):
        if offset == 0 and chunk.startswith(b"\xef\xbb\xbf"):
            chunk = b"   " + chunk[3:]
        yield from reader.feed(chunk, offset)
        offset += len(chunk)
    if reader.scalar:
        yield reader.start, bytes(reader.value)
    elif reader.start >= 0:
        raise EOFError("a JSON value or array in it does not end")
    if reader.in_array:
        raise EOFError("a JSON value or array in it does not end")


class _Reader:
    """Takes chunks of the stream and gives the values that end in them."""

    def __init__(self, longest: int):
        self.longest = longest
        self.in_array = False
        self.start = -1  # of the value that has begun; -1 between values
        self.value = bytearray()
        self.depth = 0  # brackets open in it
        self.scalar = False
        self.in_string = False
        self.escaped = False  # the chunk ended behind a backslash

    def feed(self, chunk: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
        """Yield the values that end in a chunk, which begins at `offset` of the stream."""
        at = 0
        while at < len(chunk):
            if self.start < 0:
                at = self._begin(chunk, at, offset)
                continue
            end, whole = self._end(chunk, at)
            if (room := self.longest + 1 - len(self.value)) > 0:
                self.value += chunk[at : min(end, at + room)]
            at = end
            if whole:
                yield self.start, bytes(self.value)
                self.start, self.scalar = -1, False
                self.value.clear()

    def _begin(self, chunk: bytes, at: int, offset: int) -> int:
        """Find the first byte of the next value; pass through the brackets of the array."""
        found = _BETWEEN.search(chunk, at)
        if not found:
            return len(chunk)
        at, byte = found.start(), found.group()
        if byte == b"[" and not self.in_array:
            self.in_array = True
            return at + 1
        if byte == b"]" and self.in_array:
            self.in_array = False
            return at + 1
        self.start = offset + at
        self.scalar = byte not in b'{["'
        return at

    def _end(self, chunk: bytes, at: int) -> tuple[int, bool]:
        """Find where the value's part in the chunk ends, and whether the value ends there."""
        if self.scalar:  # its first byte may be a bracket that closes nothing
            found = _SCALAR_END.search(chunk, at if self.value else at + 1)
            return (found.start(), True) if found else (len(chunk), False)
        if self.escaped:
            self.escaped = False
            return at + 1, False
        while True:
            if self.in_string:
                at = _STRING.match(chunk, at).end()  # type: ignore[union-attr]  # always matches
                if at == len(chunk):
                    return at, False
                if chunk[at : at + 1] == b"\\":  # the last byte, without what it escapes
                    self.escaped = True
                    return at + 1, False
                at += 1
                self.in_string = False
            elif found := _WITHIN.search(chunk, at):
                at, byte = found.end(), found.group()
                self.in_string = byte == b'"'
                self.depth += (byte in b"{[") - (byte in b"}]")
            else:
                return len(chunk), False
            if self.depth == 0 and not self.in_string:
                return at, True
