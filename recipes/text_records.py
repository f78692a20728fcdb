"""Records of one stretch of input: JSON Lines, plain text, Parquet, a hub dataset, python-docs.

Faults are of two kinds. A record that cannot be used (broken JSON, no text, not UTF-8) is skipped,
counted by reason and remembered with its place. A file that cannot be read to its end (a truncated
gzip, a damaged Parquet footer) is an error that names it: nobody knows what is missing.

One stretch starts and ends at a byte, a row group or a shard, so that many processes can read one
input; every record belongs to exactly one stretch, wherever the cuts fall.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from recipes.cli import UserError

MAX_RECORD_BYTES = 16 << 20
"""Longer lines and documents are skipped, so that a file without newlines cannot fill memory."""

BAD_RECORDS_TOLERATED = 1000
"""Bad records of one portion before their share is looked at: they often come in a row."""

EMPTY = "empty"
"""The reason for skipping a document without text, which is no fault of the input."""

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class Span:
    """A stretch of one input that can be read alone.

    Attributes:
        kind: `jsonl`, `text`, `parquet`, `hub` or `python-docs`.
        name: path, dataset name, or `python-docs`.
        start, stop: bytes of an uncompressed file, row groups, or shards of a hub dataset;
            `stop` None is the end. A hub span is shard `start` of `stop` shards.
        size: bytes on disk (a nominal number for the hub).
        config, split: of a hub dataset.
    """

    kind: str
    name: str
    start: int = 0
    stop: int | None = None
    size: int = 0
    config: str | None = None
    split: str | None = None

    @property
    def compressed(self) -> bool:
        return self.kind in ("jsonl", "text") and Path(self.name).suffix.lower() in COMPRESSIONS


@dataclass
class Skipped:
    """What was read and what was skipped.

    Attributes:
        records: records read, the skipped ones included.
        counts: skipped records by reason.
        examples: place of the first skipped record by reason.
    """

    records: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """Skipped records, those that are merely empty not counted."""
        return sum(count for reason, count in self.counts.items() if reason != EMPTY)

    def add(self, reason: str, span: Span, position: int) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if reason not in self.examples:
            self.examples[reason] = _place(span, position)

    def merge(self, other: Skipped) -> None:
        self.records += other.records
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
        self.examples = other.examples | self.examples

    def check(self, max_bad_fraction: float, tolerated: int = 0) -> None:
        """Refuse an input too much of which is unusable.

        Raises:
            UserError: more than `tolerated` records, and more than the fraction, are bad.
        """
        if self.bad > max(tolerated, max_bad_fraction * self.records):
            reasons = "; ".join(map(self.describe, self.counts))
            raise UserError(
                f"{self.bad:,} of {self.records:,} records are unusable "
                f"({self.bad / self.records:.1%}), more than --max-bad-fraction "
                f"{max_bad_fraction:g}: {reasons}"
            )

    def describe(self, reason: str) -> str:
        first = f" (first: {self.examples[reason]})" if reason in self.examples else ""
        return f"{self.counts[reason]:,} {reason}{first}"


def raw_records(span: Span, text_key: str) -> Iterator[tuple[int, Any]]:
    """(position, raw record) of every record of a span; nothing is parsed yet.

    Raises:
        UserError: the input is damaged or cannot be read to its end.
    """
    try:
        yield from _READERS[span.kind](span, text_key)
    except EOFError:
        raise UserError(f"{span.name}: truncated: its compressed data end too early") from None
    except (OSError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{span.name}: cannot be read: {error}") from error


def text_of(raw: Any, kind: str, text_key: str) -> str:
    """The document in a raw record: not blank, and UTF-8 can hold it.

    Raises:
        ValueError: there is none; the message is the reason.
    """
    if isinstance(raw, bytes | str) and len(raw) > MAX_RECORD_BYTES:
        raise ValueError(f"longer than {MAX_RECORD_BYTES >> 20} MiB")
    try:
        text = str(raw, "utf-8-sig") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if kind == "jsonl":
        text = _json_text(text, text_key)
    if text is None:
        raise ValueError(f"without {text_key!r}")
    if not isinstance(text, str):
        raise ValueError(f"with a {text_key!r} that is not text")
    if not text or text.isspace():
        raise ValueError(EMPTY)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise ValueError("with unpaired surrogates") from None
    return text


def _json_text(line: str, text_key: str) -> Any:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("not valid JSON") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record.get(text_key)


def _read_jsonl(span: Span, text_key: str) -> Iterator[tuple[int, bytes]]:
    for position, line in _lines(span):
        if span.stop is not None and position >= span.stop:
            return
        if not line.isspace():
            yield position, line


def _read_text(span: Span, text_key: str) -> Iterator[tuple[int, bytes]]:
    """Documents separated by blank lines; the last blank line before one decides whose it is."""
    lines: list[bytes] = []
    first = length = 0
    inside = span.start == 0  # from the second span on, what precedes a blank line is another's
    for position, line in _lines(span):
        if line.isspace():
            if lines:
                yield first, b"".join(lines).rstrip(b"\r\n")
                lines, length = [], 0
            if span.stop is not None and position >= span.stop:
                return
            inside = True
        elif inside:
            first = first if lines else position
            if length <= MAX_RECORD_BYTES:  # one line beyond marks the document as too long
                lines.append(line)
            length += len(line)
    if lines:
        yield first, b"".join(lines).rstrip(b"\r\n")


def _read_parquet(span: Span, text_key: str) -> Iterator[tuple[int, Any]]:
    import pyarrow  # slow to import, and most inputs do not need it
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(span.name)
        if text_key not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            raise UserError(f"{span.name}: no column {text_key!r}; it has {columns}")
        stop = file.num_row_groups if span.stop is None else span.stop
        position = sum(file.metadata.row_group(i).num_rows for i in range(span.start))
        for batch in file.iter_batches(256, row_groups=range(span.start, stop), columns=[text_key]):
            for value in batch.column(0).to_pylist():
                yield position, value
                position += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"{span.name}: cannot be read: {error}") from error


def _read_hub(span: Span, text_key: str) -> Iterator[tuple[int, Any]]:
    dataset = open_hub(span.name, span.config, span.split)
    shard = dataset.shard(num_shards=span.stop, index=span.start)
    try:
        for position, example in enumerate(shard):
            yield position, example.get(text_key)
    except Exception as error:  # whatever the network, the file format or the loader raises
        raise UserError(f"{span.name}, shard {span.start}: cannot be read: {error}") from error


def _read_python_docs(span: Span, text_key: str) -> Iterator[tuple[int, str]]:
    from recipes.python_docs import python_documents

    yield from enumerate(python_documents())


_READERS = {
    "jsonl": _read_jsonl,
    "text": _read_text,
    "parquet": _read_parquet,
    "hub": _read_hub,
    "python-docs": _read_python_docs,
}


def open_hub(name: str, config: str | None, split: str | None) -> Any:
    """A `datasets.IterableDataset` of a hub dataset, streamed.

    Raises:
        UserError: the hub cannot be reached, or has no such dataset, config or split.
    """
    import datasets  # seconds to import

    try:
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the loader passes on what dozens of libraries raise
        raise UserError(f"{name}: no such path here, and as a hub dataset: {error}") from error


def _lines(span: Span) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) from the first line that starts at `span.start` or later.

    Of a line longer than MAX_RECORD_BYTES only the first MAX_RECORD_BYTES + 1 bytes are given.
    """
    with open_binary(Path(span.name)) as file:
        position = 0
        if span.start > 0:
            position = file.seek(span.start - 1)
            position += _skip_line(file)
        while line := file.readline(MAX_RECORD_BYTES + 1):
            yield position, line
            position += len(line)
            if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
                position += _skip_line(file)


def _skip_line(file: BinaryIO) -> int:
    skipped = 0
    while part := file.readline(1 << 20):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def open_binary(path: Path) -> BinaryIO:
    """A file opened for reading, decompressed by its suffix; a truncated one raises EOFError."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path)  # type: ignore[return-value]
        case ".bz2":
            return bz2.open(path)  # type: ignore[return-value]
        case ".xz":
            return lzma.open(path)  # type: ignore[return-value]
        case ".zst":
            return io.BufferedReader(_ZstdFile(path), 1 << 20)
        case _:
            return open(path, "rb", buffering=1 << 20)


class _ZstdFile(io.RawIOBase):
    """A zstd file that notices its truncation: zstandard's own reader takes it for the end."""

    def __init__(self, path: Path):
        import zstandard

        self._file = open(path, "rb")
        self._decompressor = zstandard.ZstdDecompressor()
        self._error = zstandard.ZstdError
        self._frame: Any = None
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
        compressed = self._frame.unused_data if self._frame and self._frame.eof else b""
        compressed = compressed or self._file.read(1 << 16)
        if not compressed:
            if self._frame and not self._frame.eof:
                raise EOFError
            return False
        if self._frame is None or self._frame.eof:  # a file may hold several frames
            self._frame = self._decompressor.decompressobj()
        try:
            self._pending = memoryview(self._frame.decompress(compressed))
        except self._error as error:
            raise OSError(str(error)) from None
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _place(span: Span, position: int) -> str:
    """Where a record is, for people: counting lines is worth it, as few places are asked for."""
    match span.kind:
        case "jsonl" | "text":
            with open_binary(Path(span.name)) as file:
                line, left = 1, position
                while left > 0 and (chunk := file.read(min(left, 1 << 20))):
                    line += chunk.count(b"\n")
                    left -= len(chunk)
            return f"{span.name}:{line}"
        case "hub":
            return f"{span.name}, shard {span.start} of {span.stop}, example {position + 1}"
        case _:
            return f"{span.name}, record {position + 1}"
