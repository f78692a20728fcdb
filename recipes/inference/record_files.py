"""Reads the records that a model is used on, one by one; none is passed over.

Lines of text, JSON Lines, CSV and tab-separated values, in a file, plain or compressed, or on
standard input. A record that cannot be used keeps its place, with the reason, so that what is
written can have a row for each. In JSON Lines, CSV and TSV an empty line is no record; in text it
is an empty text, so that row n of the output belongs to line n of the input.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from recipes.common.compressed import COMPRESSIONS, open_binary
from recipes.common.errors import UserError
from recipes.common.json_content import Json
from recipes.corpus.text_records import is_unicode
from recipes.tasks.example_files import UniqueKeys, csv_records, naming, no_columns, positions

STDIN = "-"
ENDINGS = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
TEXT_COLUMN = "text"
"""Name of what a line of text becomes."""
MAX_BYTES = 1 << 24
"""Largest line or CSV field; a larger one is nearly always a file read as what it is not."""
NO_UNICODE = "not Unicode, save it as UTF-8"
TOO_LONG = f"longer than {MAX_BYTES >> 20} MiB"


@dataclass(frozen=True)
class Record:
    """One record."""

    place: str
    """Where it is: the file's name and the line, from 1."""
    fields: Json = field(default_factory=dict)
    """All that it holds, by column; what could be read of one that cannot be used."""
    texts: tuple[str, ...] = ()
    """What the model reads, a text for each text column."""
    fault: str | None = None
    """Why it cannot be used."""


@dataclass(frozen=True)
class Records:
    """The records of an input that is open, to be gone through once."""

    format: str
    """One of the values of `ENDINGS`."""
    first: Record | None
    """The first of them; None of an empty input."""
    every: Iterator[Record]
    """All of them, the first included."""


def format_of(source: str) -> str | None:
    """The format that a file's name says; None where none is known, and for standard input."""
    suffixes = [suffix.lower() for suffix in Path(source).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return ENDINGS.get(suffixes[-1]) if suffixes else None


def open_records(source: str, format: str | None, columns: Sequence[str]) -> Records:
    """Open an input and read its first record.

    Args:
        source: a file, or "-" for standard input, which is JSON Lines if its first line is a JSON
            object, and lines of text otherwise.
        format: one of the values of `ENDINGS`; None for what the name or that line says.
        columns: those of the texts; lines of text are one text each, whatever is given.

    Raises:
        UserError: no such file, of no known kind, or it has no such columns.
    """
    name = "standard input" if source == STDIN else source
    with naming(name):
        if source == STDIN and sys.stdin is None:
            raise UserError("standard input is closed; name a file, or give it one")
        lines = _lines(sys.stdin.buffer if source == STDIN else open_binary(Path(source)))
        if format is None and source == STDIN:
            beginning = next(lines, b"")
            lines = itertools.chain([beginning] if beginning else [], lines)
            format = "jsonl" if isinstance(_json_object(beginning), dict) else "text"
        format = format or format_of(source)
        if format is None:
            raise UserError(
                f"{source}: of no known kind; {', '.join(ENDINGS)} are, also with "
                f"{', '.join(sorted(COMPRESSIONS))}; --format says what else it is"
            )
        found = _READERS[format](name, lines, columns)
        first = next(found, None)
    if first is None:
        return Records(format, None, iter(()))
    if format == "text" and len(columns) > 1:
        raise UserError(
            f"{name}: lines of text, and the model takes {' and '.join(columns)}: give .csv, .tsv "
            "or .jsonl with these columns, or name others by --text-columns"
        )
    missing = [column for column in columns if column not in first.fields]
    if first.fields and missing and format != "text":
        raise UserError(f"{first.place}: {no_columns(missing, first.fields)} (--text-columns)")
    return Records(format, first, itertools.chain([first], _named(name, found)))


def _named(name: str, records: Iterator[Record]) -> Iterator[Record]:
    with naming(name):
        yield from records


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines with their ends; one longer than MAX_BYTES is cut to a byte more than these."""
    while line := file.readline(MAX_BYTES + 1):
        yield line
        while len(line) > MAX_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_BYTES + 1) or b"\n"


def _text(name: str, lines: Iterable[bytes], columns: Sequence[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        try:
            text = _decoded(line, number)
        except ValueError as reason:
            yield Record(f"{name}:{number}", fault=str(reason))
        else:
            yield Record(f"{name}:{number}", {TEXT_COLUMN: text}, (text,))


def _json_lines(name: str, lines: Iterable[bytes], columns: Sequence[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            found = _json_object(line)
            if isinstance(found, str):
                yield Record(f"{name}:{number}", fault=found)
            else:
                twice = f"{min(found.twice)!r} is there twice" if found.twice else None
                yield _record(f"{name}:{number}", dict(found), columns, twice)


def _json_object(line: bytes) -> UniqueKeys | str:
    """The object that a line is, or why it cannot be used."""
    if _too_long(line):
        return TOO_LONG
    try:
        found = json.loads(line.removeprefix(codecs.BOM_UTF8), object_pairs_hook=UniqueKeys)
    except UnicodeError:
        return NO_UNICODE
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, UniqueKeys):
        return "not a JSON object"
    try:
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeError:  # half a surrogate pair, which JSON can spell and no file can hold
        return NO_UNICODE
    except ValueError:  # Python reads NaN, Infinity and 1e999; others do not read what it writes
        return "holds NaN or an infinite number, for which JSON has no word; write null"
    except RecursionError:
        return "holds lists within lists, too many to be written"
    return found


def _tsv(name: str, lines: Iterable[bytes], columns: Sequence[str]) -> Iterator[Record]:
    header: list[str] | None = None
    for number, line in enumerate(lines, 1):
        place = f"{name}:{number}"
        try:
            text = _decoded(line, number)
        except ValueError as reason:
            if header is None:
                raise UserError(f"{place}: {reason}") from None
            yield Record(place, fault=str(reason))
            continue
        fields = text.split("\t")
        if header is None:
            header = fields
            _check(name, header, columns)
        elif text:
            yield _row(place, header, fields, columns)


def _csv(name: str, lines: Iterable[bytes], columns: Sequence[str]) -> Iterator[Record]:
    csv.field_size_limit(MAX_BYTES)
    # A carriage return alone ends a line too; what is not UTF-8 is found field by field.
    parts = (
        part
        for line in lines
        for part in io.StringIO(line.decode(errors="surrogateescape"), newline="")
    )
    first = next(parts, "").removeprefix("\ufeff")
    records = csv_records(Path(name), itertools.chain([first] if first else [], parts))
    header = next((fields for _, fields in records if fields), None)
    if header is not None:
        if not all(map(is_unicode, header)):
            raise UserError(f"{name}:1: not UTF-8, save it as UTF-8")
        _check(name, header, columns)
        for number, fields in records:
            if not all(map(is_unicode, fields)):
                yield Record(f"{name}:{number}", fault="not UTF-8, save it as UTF-8")
            elif fields:
                yield _row(f"{name}:{number}", header, fields, columns)


def _check(name: str, header: Sequence[str], columns: Sequence[str]) -> None:
    """Raises UserError where the columns of the texts are not there, or two have one name."""
    positions(Path(name), header, columns)
    positions(Path(name), header, list(dict.fromkeys(header)))


def _row(place: str, header: list[str], fields: list[str], columns: Sequence[str]) -> Record:
    if len(fields) != len(header):
        fault = f"{len(fields)} columns, not {len(header)}"
        return Record(place, dict(zip(header, fields, strict=False)), fault=fault)
    return _record(place, dict(zip(header, fields, strict=True)), columns)


def _record(place: str, fields: Json, columns: Sequence[str], fault: str | None = None) -> Record:
    if missing := [column for column in columns if column not in fields]:
        fault = fault or no_columns(missing, fields)
        return Record(place, fields, fault=fault)
    texts = tuple(fields[column] for column in columns)
    for text in texts:
        if not isinstance(text, str):
            fault = fault or f"{text!r} is no text"
    return Record(place, fields, () if fault else texts, fault)


def _decoded(line: bytes, number: int) -> str:
    """The text of a line without its end; raises ValueError with the reason."""
    if _too_long(line):
        raise ValueError(TOO_LONG)
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    try:
        return (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8, save it as UTF-8") from None


def _too_long(line: bytes) -> bool:
    return len(line.removesuffix(b"\n")) > MAX_BYTES


_READERS: dict[str, Callable[[str, Iterable[bytes], Sequence[str]], Iterator[Record]]] = {
    "text": _text,
    "jsonl": _json_lines,
    "csv": _csv,
    "tsv": _tsv,
}
FORMATS = tuple(_READERS)
