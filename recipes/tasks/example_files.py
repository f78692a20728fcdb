r"""Files of examples to classify or score, read record by record.

CSV, tab-separated and JSON Lines files, plain or compressed (.gz .bz2 .xz .zst). Tab-separated
ones are read as GLUE's are meant: a quote is a character like any other, and only \n or
\r\n ends a line. In CSV files quotes enclose fields (RFC 4180). Blank lines are passed over.

A record that cannot be used is counted; more than 1% of them are an error, because the file is then
damaged or read as something it is not.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import pyarrow
import zstandard

from recipes.common.compressed import COMPRESSIONS, open_binary
from recipes.common.errors import UserError

BAD_RECORDS_TOLERATED = 0.01  # share of a set
Item = TypeVar("Item")
JSON_LINES = (".jsonl", ".ndjson", ".json")


class ExampleSet(Protocol):
    """What sets of all kinds of tasks can do."""

    def __len__(self) -> int: ...

    def front(self, count: int) -> Self:
        """Return the first so many."""

    def parts(self, name: str) -> Iterator[bytes]:
        """Yield what a checksum is of, the set's name included."""


@dataclass(frozen=True)
class Examples:
    """A set of N examples.

    Attributes:
        first: N texts.
        second: the other halves of the pairs; None for single texts.
        labels: [N], int64 class indices or floating-point scores; None for a test set.
    """

    first: list[str]
    second: list[str] | None
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.first)

    def front(self, count: int) -> Self:
        """The first so many."""
        return type(self)(
            self.first[:count],
            None if self.second is None else self.second[:count],
            None if self.labels is None else self.labels[:count],
        )

    def parts(self, name: str) -> Iterator[bytes]:
        """Yield what a checksum is of, the set's name included."""
        yield repr((name, self.first, self.second)).encode()
        yield b"" if self.labels is None else self.labels.tobytes()


@dataclass(frozen=True)
class RecordSet(Generic[Item]):
    """A set of records that are more than texts and a label."""

    all: list[Item]

    def __len__(self) -> int:
        return len(self.all)

    def front(self, count: int) -> Self:
        """The first so many."""
        return type(self)(self.all[:count])

    def parts(self, name: str) -> Iterator[bytes]:
        """Yield what a checksum is of, the set's name included."""
        yield repr(name).encode()
        for each in self.all:
            yield repr(each).encode()


class Reading:
    """One set while it is read: what fits is kept, what does not is counted.

    Args:
        name: in messages, usually the file's.
        label: makes a label of what the file has; raises ValueError with the reason.
    """

    def __init__(self, name: str, label: Callable[[Any], Any]):
        self.name = name
        self.label = label
        self.texts: list[Sequence[str]] = []
        self.labels: list[Any] = []
        self.bad = 0
        self.first_fault = ""

    def add(self, line: int | str, values: Sequence[Any]) -> None:
        """Take a record: its texts, then its label, at a line from 1, or at a place in its file."""
        *texts, label = values
        try:
            for text in texts:
                if not isinstance(text, str):
                    raise ValueError(f"{text!r} is no text")
                text.encode()  # raises for half a surrogate pair, which JSON can spell
            self.labels.append(self.label(label))
            self.texts.append(texts)
        except ValueError as reason:
            self.reject(line, str(reason))

    def reject(self, line: int | str, reason: str) -> None:
        """Count a record that cannot be used, and keep the first reason."""
        self.bad += 1
        self.first_fault = self.first_fault or f"{self.name}:{line}: {reason}"

    def check(self, notes: list[str], tolerated: float = BAD_RECORDS_TOLERATED) -> None:
        """Note what was skipped.

        Raises:
            UserError: there is no record, or more than the share `tolerated` cannot be used.
        """
        records = self.bad + len(self.texts)
        if not records:
            raise UserError(f"{self.name}: no examples in it")
        share = f"{self.bad:,} of {records:,} records cannot be used"
        if self.bad > tolerated * records:
            limit = f"more than {tolerated:.0%}" if tolerated else "and a test set needs all"
            raise UserError(f"{self.first_fault}; {share}, {limit}")
        if self.bad:
            notes.append(f"{self.first_fault}; {share} and were skipped")

    def examples(self, dtype: type | None) -> Examples:
        """Return the set; `dtype` is that of its labels, None for a test set without."""
        columns = [list(column) for column in zip(*self.texts, strict=True)]
        labels: np.ndarray | None = None if dtype is None else np.array(self.labels, dtype=dtype)
        return Examples(columns[0], columns[1] if len(columns) == 2 else None, labels)


def label_name(label: object) -> str:
    """Return a label's name without surrounding blanks; raises ValueError if it has none."""
    if isinstance(label, list | dict):
        kind = "list" if isinstance(label, list) else "dictionary"
        raise ValueError(f"label {label!r} is a {kind}, not one name or number")
    missing = label is None or (isinstance(label, float) and not math.isfinite(label))
    name = "" if missing else str(label).strip()
    if not name:
        raise ValueError("no label")
    return name


def class_index(index: dict[str, int]) -> Callable[[Any], int]:
    """Return a function from a label to `index[its name]`; it raises ValueError for others."""

    def look_up(label: object) -> int:
        name = label_name(label)
        if name not in index:
            raise ValueError(f"label {name!r} is none of {', '.join(map(repr, index))}")
        return index[name]

    return look_up


def score(label: Any) -> float:
    """Return a label as a finite number; raises ValueError if it is none."""
    try:
        # True is 1 for Python; who asks for numbers did not mean it.
        value = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        comma = isinstance(label, str) and re.fullmatch(r"\s*[-+]?\d+,\d+\s*", label)
        way_out = ": decimals stand behind a point, 0.5, not 0,5" if comma else ""
        raise ValueError(f"label {label!r} is not a number{way_out}")
    return value


def score_within(low: float, high: float) -> Callable[[Any], float]:
    """Return a `score` that also raises ValueError for numbers not from `low` to `high`."""

    def read(label: object) -> float:
        value = score(label)
        if not low <= value <= high:
            raise ValueError(f"label {label!r} is not from {low:g} to {high:g}")
        return value

    return read


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Raise whatever a file's readers raise as a UserError with its name."""
    try:
        yield
    except (
        OSError,  # damaged gzip and bz2 files too
        EOFError,
        UnicodeDecodeError,
        csv.Error,
        zlib.error,
        lzma.LZMAError,
        zstandard.ZstdError,
        pyarrow.ArrowException,
    ) as error:
        if isinstance(error, UnicodeDecodeError):
            raise UserError(f"{path}: cannot be read: {error}; save it as UTF-8") from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path}: cannot be read: {reason}") from error


def read_file(path: Path, columns: Sequence[str], reading: Reading) -> None:
    """Read a file of the kind that its name says.

    Args:
        columns: those of the texts, then the label's.

    Raises:
        UserError: the kind is unknown, or the file has a header that lacks a column.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    match suffixes[-1:]:
        case [".tsv"]:
            read_tsv(path, columns, reading)
        case [".csv"]:
            _read_csv(path, columns, reading)
        case [suffix] if suffix in JSON_LINES:
            read_json_lines(path, columns, reading)
        case _:
            raise UserError(
                f"{path}: of no known kind; .csv, .tsv, .jsonl, .ndjson and .json are, "
                f"also with {', '.join(sorted(COMPRESSIONS))}"
            )


def read_tsv(
    path: Path,
    columns: Sequence[str],
    reading: Reading,
    header: Sequence[str] | None = None,
    keep: Callable[[Sequence[str]], bool] | None = None,
) -> None:
    """Read tab-separated lines, blank ones passed over.

    Args:
        header: names of the columns, for a file that does not begin with them.
        keep: of the fields of a line, whether it belongs to this set.

    Raises:
        UserError: the header lacks a column.
    """
    with open_binary(path) as file:
        # A binary file ends lines at \n alone; text files and str.splitlines also do at what
        # sentences of these data sets contain (\r, \x0b, \x85, \u2028).
        start = 1
        if header is None:
            first = file.readline().decode("utf-8-sig").rstrip("\r\n")
            if not first:
                return
            header, start = first.split("\t"), 2
        picked = positions(path, header, columns)
        for number, raw in enumerate(file, start):
            try:
                line = raw.removesuffix(b"\n").removesuffix(b"\r").decode()
            except UnicodeDecodeError:
                reading.reject(number, "not UTF-8, save it as UTF-8")
                continue
            fields = line.split("\t")
            if not line or (keep and not keep(fields)):
                continue
            if len(fields) != len(header):
                reading.reject(number, f"{len(fields)} columns, not {len(header)}")
                continue
            reading.add(number, [fields[i] for i in picked])


def _read_csv(path: Path, columns: Sequence[str], reading: Reading) -> None:
    csv.field_size_limit(1 << 24)  # the default, 128 KiB, is less than a long document
    with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="") as file:
        records = csv_records(path, file)
        _, header = next(records, (0, None))
        if header is None:
            return
        picked = positions(path, header, columns)
        for begin, fields in records:
            if len(fields) == len(header):
                reading.add(begin, [fields[i] for i in picked])
            elif fields:
                reading.reject(begin, f"{len(fields)} columns, not {len(header)}")


def csv_records(path: Path, file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield every record with the line where it begins; a quote that never ends is named by it."""
    records = csv.reader(file, strict=True)
    while True:
        begin = records.line_num + 1
        try:
            yield begin, next(records)
        except StopIteration:
            return
        except csv.Error as error:
            way_out = ""
            if "field larger" not in str(error):
                way_out = '; within a field in quotes, a quote is written twice: "a 3"" disk"'
            raise UserError(f"{path}:{begin}: cannot be read: {error}{way_out}") from None


def read_json_lines(path: Path, columns: Sequence[str], reading: Reading) -> None:
    """Read JSON objects, one on a line, blank lines passed over; columns are their keys."""
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(
                    line.removeprefix(b"\xef\xbb\xbf"), object_pairs_hook=UniqueKeys
                )
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, UniqueKeys):
                reading.reject(number, "not a JSON object")
            elif twice := [column for column in columns if column in record.twice]:
                reading.reject(number, f"{twice[0]!r} is there twice")
            elif missing := [column for column in columns if column not in record]:
                reading.reject(number, no_columns(missing, record))
            else:
                reading.add(number, [record[column] for column in columns])


class UniqueKeys(dict[str, Any]):
    """A JSON object; of a key that is there twice, only the last value would be seen."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.twice = {key for key in keys if keys.count(key) > 1} if len(self) < len(keys) else ()


def positions(path: Path, header: Sequence[str], columns: Sequence[str]) -> list[int]:
    missing = [column for column in columns if column not in header]
    if missing:
        raise UserError(f"{path}: {no_columns(missing, header)}{_other_separator(header)}")
    if twice := [column for column in columns if header.count(column) > 1]:
        raise UserError(
            f"{path}: {header.count(twice[0])} columns are named {twice[0]!r}; rename all but one"
        )
    return [header.index(column) for column in columns]


def _other_separator(header: Sequence[str]) -> str:
    """Say what to do about a header that is one field for us and several for its author."""
    for separator, name in {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}.items():
        if len(header) == 1 and separator in header[0]:
            return f"; its fields stand between {name}: .csv has commas between them, .tsv tabs"
    return ""


def no_columns(missing: Sequence[str], there: Iterable[str]) -> str:
    """Say that columns are missing, and which there are."""
    names = ", ".join(map(repr, there))
    return f"no column {', '.join(map(repr, missing))}; there are {names if names else 'none'}"
