"""Writes what was computed: a row for each record, in files that are whole or not there."""

from __future__ import annotations

import csv
import io
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet

from recipes.common.errors import UserError
from recipes.common.files import PartialFile, why_no_file
from recipes.common.json_content import Json
from recipes.inference.record_files import Record

ERROR = "error"
"""Column that says why there is nothing for a record."""

Row = Json
Chunk = Sequence[tuple[Record, Any]]
"""Records with what the model computed for them, such as fp32 [values]; None where one cannot be
used."""
Answer = Callable[[Any], Row]
"""From what was computed for a record to the columns that are made of it."""


def row_of(record: Record, values: Any, answer: Answer) -> Row:
    """What the record holds, and what the values say, or why there are none."""
    if values is None:
        return {**record.fields, ERROR: f"{record.place}: {record.fault}"}
    return {**record.fields, **answer(values)}


def file_fault(path: Path, endings: Iterable[str]) -> str | None:
    """Say what is against an output file; None where nothing is seen."""
    if path.suffix.lower() not in endings:
        return f"--output {path}: written are {' and '.join(endings)}, by the file's ending"
    if refusal := why_no_file(path):
        return f"--output {path}: {refusal}"
    return None


class Columns:
    """Keeps a record's own columns apart from those that are computed.

    Args:
        computed: names of the columns that are computed.
        fixed: whether the output is a table, whose columns are those of the first record.
    """

    def __init__(self, computed: Iterable[str], *, fixed: bool):
        self.computed = (*computed, ERROR)
        self.fixed = fixed
        self._own: tuple[str, ...] | None = None

    @property
    def known(self) -> bool:
        """Whether a record has shown what a table's columns are; they stay so."""
        return self._own is not None

    @property
    def every(self) -> tuple[str, ...]:
        """The columns of a table, once it has a record."""
        return (*(self._own or ()), *self.computed)

    def check(self, first: Record | None) -> None:
        """Raises UserError where the first record has a column that is computed."""
        if first is not None and (fault := self._fault(first)):
            raise UserError(f"{first.place}: {fault}")

    def fitted(self, chunk: Sequence[Record]) -> list[Record]:
        """The chunk, with the records refused that the output has no place for."""
        return [self._fitted(record) for record in chunk]

    def _fitted(self, record: Record) -> Record:
        if self._own is None and record.fields:
            self._own = tuple(name for name in record.fields if name not in self.computed)
        if not (fault := self._fault(record)):
            return record
        own = {name: value for name, value in record.fields.items() if name not in self.computed}
        return Record(record.place, own, fault=fault)

    def _fault(self, record: Record) -> str | None:
        if taken := [name for name in self.computed if name in record.fields]:
            return f"column {taken[0]!r} has the name of one that is computed; rename it"
        if self.fixed and self._own is not None:
            if new := [name for name in record.fields if name not in self._own]:
                return f"column {new[0]!r} is not in the first record, whose columns the table has"
        return None


@contextmanager
def written(path: Path | None) -> Iterator[BinaryIO]:
    """A file that gets its name when the block ends well; standard output where there is no path.

    Makes the file's directory.

    Raises:
        UserError: another process is writing the file.
        OSError: the file system's own; what had the name before is then as it was.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = PartialFile(path)
    try:
        yield partial.file
        partial.close()
        partial.publish()
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say where
        raise
    finally:
        partial.discard()


class RecordWriter(Protocol):
    """Appends records to a file."""

    def write(self, chunk: Chunk) -> None:
        """Append a row for each."""

    def finish(self) -> None:
        """Write what comes last."""


class JsonLines:
    """A JSON object per line."""

    def __init__(self, file: BinaryIO, answer: Answer):
        self.file = file
        self.answer = answer

    def write(self, chunk: Chunk) -> None:
        """Append a line for each."""
        rows = (row_of(record, values, self.answer) for record, values in chunk)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.file.write("".join(lines).encode())

    def finish(self) -> None:
        """Do nothing: lines need no end."""


class Table(ABC):
    """A file whose columns stand at its beginning.

    Rows are held back until a record shows the columns: those before it could not be read, so that
    nothing but their faults is kept.
    """

    def __init__(self, columns: Columns):
        self.columns = columns
        self._held: list[tuple[Record, Any]] = []
        self._begun = False

    def write(self, chunk: Chunk) -> None:
        """Append a row for each, as soon as the columns are known."""
        self._held.extend(chunk)
        if self.columns.known:
            self._release()

    def finish(self) -> None:
        """Write what is held back; the beginning of the file, if there was no row."""
        if self._held or not self._begun:
            self._release()

    def _release(self) -> None:
        held, self._held = self._held, []
        self._append(held)
        self._begun = True

    @abstractmethod
    def _append(self, chunk: Chunk) -> None:
        """Append a row for each; before the first ones the beginning of the file."""


class CsvTable(Table):
    """A CSV file (RFC 4180, but lines end in \\n); JSON of what is neither text nor missing."""

    def __init__(self, file: BinaryIO, columns: Columns, answer: Answer):
        super().__init__(columns)
        self.file = file
        self.answer = answer

    def _append(self, chunk: Chunk) -> None:
        text = io.StringIO(newline="")
        every = self.columns.every
        table = csv.DictWriter(text, every, extrasaction="ignore", lineterminator="\n")
        if not self._begun:
            table.writeheader()
        for record, values in chunk:
            row = flattened(row_of(record, values, self.answer), self.columns.computed)
            table.writerow({name: as_text(value) for name, value in row.items()})
        self.file.write(text.getvalue().encode())


def flattened(row: Row, columns: Iterable[str]) -> Row:
    """The row, with each dictionary under `name` opened where a column is called `name.key`."""
    opened = dict(row)
    for column in columns:
        name, dot, key = column.partition(".")
        if dot and isinstance(row.get(name), dict):
            opened.pop(name, None)
            opened[column] = row[name][key]
    return opened


def as_text(value: object) -> str | None:
    """A value of JSON as text; None stays None."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


class NpyMatrix:
    """An `.npy` file, float32 [rows, width], of which any number of rows can be appended."""

    def __init__(self, file: BinaryIO, width: int):
        self.file = file
        self.width = width
        self.rows = 0
        self._header()

    def write(self, chunk: Chunk) -> None:
        """Append a row for each, NaN where a record cannot be used."""
        missing = np.full(self.width, np.nan, np.float32)
        rows = [missing if values is None else values for _, values in chunk]
        self.file.write(np.stack(rows).astype("<f4").tobytes())
        self.rows += len(rows)

    def finish(self) -> None:
        """Write down how many rows there are."""
        end = self.file.tell()
        self.file.seek(0)
        self._header()
        self.file.seek(end)

    def _header(self) -> None:
        """Write the header; numpy leaves room in it for any number of rows."""
        shape = (self.rows, self.width)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)


class ParquetTable(Table):
    """A Parquet file: a record's own columns as text, the vector, and why there is none."""

    def __init__(self, file: BinaryIO, columns: Columns, vector: str, width: int):
        super().__init__(columns)
        self.file = file
        self.vector = vector
        self.width = width
        self._writer: Any = None  # pyarrow has no types

    def _append(self, chunk: Chunk) -> None:
        rows = [row_of(r, values, lambda vector: {self.vector: vector}) for r, values in chunk]
        vectors = pyarrow.list_(pyarrow.float32(), self.width)
        types = {name: pyarrow.string() for name in self.columns.every} | {self.vector: vectors}
        schema = pyarrow.schema(list(types.items()))
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self.file, schema)
        arrays = []
        for name, kind in types.items():
            values = [row.get(name) for row in rows]
            text = [as_text(value) for value in values] if name != self.vector else values
            arrays.append(pyarrow.array(text, kind))
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))

    def finish(self) -> None:
        """Write the end of the file."""
        super().finish()
        self._writer.close()
