"""Files of vectors that grow, and the columns of tables."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow.parquet
import pytest

from recipes.inference.outputs import (
    Columns,
    CsvTable,
    NpyMatrix,
    ParquetTable,
    flattened,
    written,
)
from recipes.inference.record_files import Record


def test_a_matrix_has_room_for_the_number_of_its_rows(tmp_path):
    """The header is as long for no row as for as many as a disk can hold."""
    with (tmp_path / "x.npy").open("wb") as file:
        matrix = NpyMatrix(file, 3)
        empty = file.tell()
        matrix.rows = 10**12
        matrix.finish()
        assert file.tell() == empty
    with (tmp_path / "x.npy").open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file)[0] == (10**12, 3)
        assert file.tell() == empty


def test_a_matrix_in_parts_is_what_numpy_saves(tmp_path):
    rows = np.random.default_rng(0).random((10, 5), np.float32)
    with written(tmp_path / "x.npy") as file:
        matrix = NpyMatrix(file, 5)
        for part in (rows[:4], rows[4:]):
            matrix.write([(Record("x"), row) for row in part])
        matrix.finish()
    np.save(tmp_path / "y.npy", rows)
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "y.npy").read_bytes()


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        with written(path) as file:
            file.write(b"new")
            raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and path.read_text() == "old"


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match="No space") as error:
        with written(tmp_path / "x"):
            raise OSError(28, "No space left on device")
    assert error.value.filename == str(tmp_path / "x") and not list(tmp_path.iterdir())


def test_the_first_record_that_could_be_read_decides_the_columns():
    columns = Columns(("value",), fixed=True)
    broken = Record("1", fault="broken")
    read, more = Record("2", {"a": 1}, ("x",)), Record("3", {"a": 1, "b": 2}, ("x",))
    fitted = columns.fitted([broken, read, more])
    assert columns.every == ("a", "value", "error")
    assert fitted[:2] == [broken, read]
    assert fitted[2].fault == "column 'b' is not in the first record, whose columns the table has"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_that_a_later_chunk_shows_are_those_of_all_rows(kind, tmp_path):
    """The first chunk has nothing that could be read, and a later record a computed column."""
    columns = Columns(("value",), fixed=True)
    path = tmp_path / "x"
    read, taken = {"id": "7", "text": "a"}, {"id": "8", "text": "b", "error": "mine"}
    chunks = [
        [Record(f"{line}", fault="broken") for line in (1, 2)],
        [Record("3", taken, ("b",)), Record("4", read, ("a",))],
        [Record("5", {"id": "9", "new": "c"}, ("c",))],
    ]
    with written(path) as file:
        if kind == "csv":
            table = CsvTable(file, columns, lambda vector: {"value": vector[0]})
        else:
            table = ParquetTable(file, columns, "value", 1)
        for chunk in chunks:
            table.write([(r, None if r.fault else [0.5]) for r in columns.fitted(chunk)])
        table.finish()
    if kind == "csv":
        header, *found = csv.reader(path.read_text().splitlines())
    else:
        content = pyarrow.parquet.read_table(path)
        header = content.column_names
        rows = [
            [v[0] if isinstance(v, list) else v for v in r.values()] for r in content.to_pylist()
        ]
        found = [["" if v is None else str(v) for v in row] for row in rows]
    assert header == ["id", "text", "value", "error"]
    assert found[:2] == [["", "", "", "1: broken"], ["", "", "", "2: broken"]]
    assert found[2][:3] == ["8", "b", ""] and "column 'error' has the name" in found[2][3]
    assert found[3] == ["7", "a", "0.5", ""]
    assert found[4][:3] == ["9", "", ""] and "column 'new' is not in the first" in found[4][3]


@pytest.mark.parametrize("chunks", [0, 2])
def test_a_table_without_a_readable_record_has_the_faults(chunks, tmp_path):
    with written(tmp_path / "x") as file:
        table = CsvTable(file, Columns(("value",), fixed=True), lambda vector: {})
        for number in range(chunks):
            table.write([(Record(f"{number}", fault="broken"), None)])
        table.finish()
    rows = "".join(f",{number}: broken\n" for number in range(chunks))
    assert (tmp_path / "x").read_text() == f"value,error\n{rows}"


def test_dictionaries_are_opened_where_a_column_is_named_so():
    row = {"id": {"x": 1}, "shares": {"a": 0.5, "b.c": 0.5}}
    assert flattened(row, ["shares.a", "shares.b.c"]) == {
        "id": {"x": 1},
        "shares.a": 0.5,
        "shares.b.c": 0.5,
    }
