"""Files of vectors that grow, and the columns of tables."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.inference.outputs import Columns, NpyMatrix, flattened, written
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


def test_the_first_record_that_could_be_read_decides_the_columns():
    columns = Columns(("value",), fixed=True)
    broken = Record("1", fault="broken")
    read, more = Record("2", {"a": 1}, ("x",)), Record("3", {"a": 1, "b": 2}, ("x",))
    fitted = columns.fitted([broken, read, more])
    assert columns.every == ("a", "value", "error")
    assert fitted[:2] == [broken, read]
    assert fitted[2].fault == "column 'b' is not in the first record, whose columns the table has"


def test_dictionaries_are_opened_where_a_column_is_named_so():
    row = {"id": {"x": 1}, "shares": {"a": 0.5, "b.c": 0.5}}
    assert flattened(row, ["shares.a", "shares.b.c"]) == {
        "id": {"x": 1},
        "shares.a": 0.5,
        "shares.b.c": 0.5,
    }
