"""Records of every format, in place, with what is wrong with them."""

from __future__ import annotations

import gzip
import sys

import pytest

from recipes.common.errors import UserError
from recipes.inference import record_files
from recipes.inference.record_files import TOO_LONG, Record, format_of, open_records


def read(path, content: bytes, columns=("text",)) -> list[Record]:
    path.write_bytes(content)
    return list(open_records(str(path), None, columns).every)


def test_formats_go_by_the_ending():
    names = ["a.txt", "a.b.CSV.gz", "a.tsv.zst", "a.json", "a.gz", "a", "a.pdf", "-"]
    assert [format_of(n) for n in names] == ["text", "csv", "tsv", "jsonl", None, None, None, None]


def test_every_line_of_text_is_a_text(tmp_path):
    content = "\ufeffone\r\n\n two \u2028three\x0bfour\rfive\n\ufefflast".encode()
    found = read(tmp_path / "a.txt", content)
    assert [record.texts for record in found] == [
        ("one",),
        ("",),
        (" two \u2028three\x0bfour\rfive",),
        ("\ufefflast",),
    ]
    assert [record.place for record in found] == [f"{tmp_path / 'a.txt'}:{n}" for n in range(1, 5)]


def test_rows_that_do_not_fit_the_header_are_faults(tmp_path):
    content = b"id\ttext\n1\ta\n2\n\n3\tb\tc\n4\t\xe9\n5\td"
    found = read(tmp_path / "a.tsv", content)
    assert [record.fault for record in found] == [
        None,
        "1 columns, not 2",
        "3 columns, not 2",
        "not UTF-8, save it as UTF-8",
        None,
    ]
    assert found[0].fields == {"id": "1", "text": "a"} and found[4].texts == ("d",)


def test_fields_in_quotes_hold_what_they_hold(tmp_path):
    content = b'\xef\xbb\xbfid,text\r\n1,"a, ""b""\nc"\r\n\r\n2,\xe9\r\n3,d\r\n'
    found = read(tmp_path / "a.csv", content)
    assert [record.texts for record in found] == [('a, "b"\nc',), (), ("d",)]
    assert [record.fault for record in found] == [None, "not UTF-8, save it as UTF-8", None]
    assert [int(record.place.rpartition(":")[2]) for record in found] == [2, 5, 6]


def test_a_key_that_is_there_twice_is_a_fault(tmp_path):
    [record] = read(tmp_path / "a.jsonl", b'{"text": "a", "text": "b"}')
    assert record.fault == "'text' is there twice"


@pytest.mark.parametrize("ending", ["txt", "jsonl", "tsv"])
def test_a_line_that_is_too_long_is_a_fault_and_the_next_one_is_read(tmp_path, monkeypatch, ending):
    """The longest that is read, a byte more, and far more."""
    monkeypatch.setattr(record_files, "MAX_BYTES", 100)
    begin, end = {"txt": ("", ""), "jsonl": ('{"text": "', '"}'), "tsv": ("", "")}[ending]
    full = 100 - len(begin) - len(end)
    lengths = [1, full, full + 1, 1000, 2, full + 101, 3]
    lines = [f"{begin}{'x' * length}{end}" for length in lengths]
    content = "\n".join(["text", *lines] if ending == "tsv" else lines).encode()
    found = read(tmp_path / f"a.{ending}.gz", gzip.compress(content))
    expected = [None if length <= full else TOO_LONG for length in lengths]
    assert [record.fault for record in found] == expected
    assert [len(record.texts[0]) for record in found if record.texts] == [1, full, 2, 3]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_names_of_columns_are_unique(tmp_path, ending):
    separator = {"csv": ",", "tsv": "\t"}[ending]
    with pytest.raises(UserError, match="2 columns are named 'id'"):
        read(tmp_path / f"a.{ending}", separator.join(["id", "text", "id"]).encode() + b"\n")


def test_a_truncated_file_is_an_error(tmp_path):
    whole = gzip.compress(b"text\n" * 100_000)
    (tmp_path / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read: its compressed data end too early"):
        list(open_records(str(tmp_path / "a.txt.gz"), None, ("text",)).every)


def test_numbers_that_json_has_no_word_for_are_faults(tmp_path):
    """Python reads them; written as they are, they make lines that no other reader takes."""
    lines = ['{"text": "a", "x": NaN}', '{"text": "b", "x": [1e999]}', '{"text": "c", "x": null}']
    found = read(tmp_path / "a.jsonl", "\n".join(lines).encode())
    assert ["no word" in (record.fault or "") for record in found] == [True, True, False]


def test_a_header_in_another_encoding_is_said_and_not_shown(tmp_path):
    for ending in ("csv", "tsv"):
        with pytest.raises(UserError, match=f"a.{ending}:1: not UTF-8, save it as UTF-8"):
            read(tmp_path / f"a.{ending}", "text,label\nhello,good\n".encode("utf-16"))


def test_a_standard_input_that_is_closed_is_said(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it where the shell gave none
    with pytest.raises(UserError, match="standard input is closed"):
        open_records("-", None, ("text",))
