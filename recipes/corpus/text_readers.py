"""Reads the records of a span, with one reader for each kind of input.

A span starts and ends at a byte, a row group or a shard, so that many processes can read one input;
every record belongs to exactly one span, wherever the cuts are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from recipes.common.compressed import open_binary
from recipes.common.errors import UserError
from recipes.corpus.json_values import json_values
from recipes.corpus.text_records import (
    MAX_RECORD_BYTES,
    Skipped,
    Span,
    Unusable,
    key_hint,
    value_at,
)


def raw_records(
    span: Span, text_key: str, skipped: Skipped | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (position, raw record) for every record of a span; nothing is parsed yet.

    Args:
        skipped: notes the bytes behind the end of compressed data.

    Raises:
        UserError: the input is damaged or cannot be read to its end.
    """
    try:
        yield from _READERS[span.kind](span, text_key, skipped or Skipped())
    except EOFError as error:
        raise UserError(f"{span.name}: truncated: {error}") from None
    except OSError as error:
        raise UserError(f"{span.name}: cannot be read: {error}") from error


def _read_lines(span: Span, text_key: str, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    for position, line in _lines(span, skipped):
        if span.stop is not None and position >= span.stop:
            return
        if not line.isspace():
            yield position, line


def _read_text_lines(span: Span, text_key: str, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    for position, line in _read_lines(span, text_key, skipped):
        yield position, line.rstrip(b"\r\n")


def _read_paragraphs(span: Span, text_key: str, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    """Read documents between blank lines; one belongs to the span of the blank line before it."""
    lines: list[bytes] = []
    first = length = 0
    inside = span.start == 0  # else the lines before the first blank one are of the span before
    for position, line in _lines(span, skipped):
        if line.isspace():
            if lines:
                yield first, b"".join(lines).rstrip(b"\r\n")
                lines, length = [], 0
            if span.stop is not None and position >= span.stop:
                return
            inside = True
        elif inside:
            first = first if lines else position
            if length <= MAX_RECORD_BYTES:  # one line more marks the document as too long
                lines.append(line)
            length += len(line)
    if lines:
        yield first, b"".join(lines).rstrip(b"\r\n")


def _read_whole(span: Span, text_key: str, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    with open_binary(Path(span.name), skipped.trailing) as file:
        text = file.read(MAX_RECORD_BYTES + 1)
        while file.read(1 << 20):  # to the end, to notice a truncated file
            pass
    yield 0, text if len(text) > MAX_RECORD_BYTES else text.rstrip(b"\r\n")


def _read_json(span: Span, text_key: str, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    with open_binary(Path(span.name), skipped.trailing) as file:
        yield from json_values(file, MAX_RECORD_BYTES)


def _read_csv(span: Span, text_key: str, skipped: Skipped) -> Iterator[tuple[int, Any]]:
    """Read fields that may stand in quotes (RFC 4180); the position is a line number."""
    csv.field_size_limit(MAX_RECORD_BYTES + 1)  # one byte more marks the document as too long
    # Bytes that are not UTF-8 are kept, for `text_of` to find.
    file = io.TextIOWrapper(
        open_binary(Path(span.name), skipped.trailing),
        encoding="utf-8-sig",
        errors="surrogateescape",
        newline="",
    )
    with file:
        rows = csv.reader(file, strict=True)
        line = 1
        try:
            header = next(rows, [])
            column = _column(span, header, text_key)
            line = rows.line_num + 1
            for fields in rows:
                if len(fields) == len(header):
                    yield line, fields[column].encode("utf-8", "surrogateescape")
                elif fields:
                    yield line, Unusable(_OTHER_COLUMNS, f"{len(fields)} for {len(header)}")
                line = rows.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"{span.name}:{line}: the quotes of the record that begins here do not pair, so "
                f"nobody knows where it ends ({error})"
            ) from None


def _read_tsv(span: Span, text_key: str, skipped: Skipped) -> Iterator[tuple[int, Any]]:
    """Read fields between tabs; a quote is a character like any other."""
    header: Sequence[str] = ()
    for position, line in _lines(span, skipped):
        fields = line.rstrip(b"\r\n").split(b"\t")
        if not header:
            header = str(line, "utf-8-sig", "replace").rstrip("\r\n").split("\t")
            column = _column(span, header, text_key)
        elif len(line) > MAX_RECORD_BYTES:
            yield position, line
        elif len(fields) == len(header):
            yield position, fields[column]
        elif not line.isspace():
            yield position, Unusable(_OTHER_COLUMNS, f"{len(fields)} for {len(header)}")


_OTHER_COLUMNS = "with more or fewer columns than the first line"


def _column(span: Span, header: Sequence[str], text_key: str) -> int:
    if header.count(text_key) > 1:
        raise UserError(f"{span.name}: {header.count(text_key)} columns are named {text_key!r}")
    if text_key not in header:
        raise UserError(_no_column(span, header, text_key))
    return header.index(text_key)


def _no_column(span: Span, columns: Sequence[str], text_key: str) -> str:
    shown = [*columns[:20], "..."] if len(columns) > 20 else columns
    return f"{span.name}: no column {text_key!r}; " + (
        key_hint(shown, None) + ": --text-key NAME, or leave the file out of --input"
    )


def _read_parquet(span: Span, text_key: str, skipped: Skipped) -> Iterator[tuple[int, Any]]:
    import pyarrow  # here, because it is slow to import and most inputs do not need it
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(span.name)
        paths = (file.schema.column(i).path for i in range(len(file.schema)))
        leaves = [path for path in paths if ".list." not in path]
        if text_key not in [*file.schema_arrow.names, *leaves]:
            raise UserError(_no_column(span, leaves, text_key))
        nested = [] if text_key in file.schema_arrow.names else text_key.split(".")[1:]
        stop = file.num_row_groups if span.stop is None else span.stop
        position = sum(file.metadata.row_group(i).num_rows for i in range(span.start))
        for batch in file.iter_batches(256, row_groups=range(span.start, stop), columns=[text_key]):
            for value in batch.column(0).to_pylist():
                for part in nested:
                    value = value and value[part]
                yield position, value
                position += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"{span.name}: cannot be read: {error}") from error


def _read_hub(span: Span, text_key: str, skipped: Skipped) -> Iterator[tuple[int, Any]]:
    dataset = open_hub(span.name, span.config, span.split)
    shard = dataset.shard(num_shards=span.stop, index=span.start)
    try:
        for position, example in enumerate(shard):
            try:
                value = value_at(example, text_key)
            except Unusable as reason:
                value = reason
            yield position, value
    except Exception as error:  # whatever the network, the file format or the loader raises
        raise UserError(f"{span.name}, shard {span.start}: cannot be read: {error}") from error


def _read_python_docs(span: Span, text_key: str, skipped: Skipped) -> Iterator[tuple[int, str]]:
    from recipes.corpus.python_docs import python_documents

    yield from enumerate(python_documents())


_READERS = {
    "jsonl": _read_lines,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "text": _read_paragraphs,
    "text-line": _read_text_lines,
    "text-file": _read_whole,
    "parquet": _read_parquet,
    "hub": _read_hub,
    "python-docs": _read_python_docs,
}


def open_hub(name: str, config: str | None, split: str | None) -> Any:
    """Open a hub dataset as a `datasets.IterableDataset`, which is streamed.

    Raises:
        UserError: the hub cannot be reached, or has no such dataset, config or split.
    """
    import datasets  # here, because it takes seconds to import

    try:
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the loader passes on what dozens of libraries raise
        raise UserError(f"{name}: no such path here, and as a hub dataset: {error}") from error


def _lines(span: Span, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, line) from the first line that starts at `span.start` or later.

    A line longer than MAX_RECORD_BYTES is cut to MAX_RECORD_BYTES + 1 bytes.
    """
    with open_binary(Path(span.name), skipped.trailing) as file:
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
