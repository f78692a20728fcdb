"""The kinds of files against one another, and against what breaks them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipes.common.errors import UserError
from recipes.tasks.example_files import Reading, label_name, naming, read_file

# What a tab-separated file cannot hold: its separators.
TEXT = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]))
LABEL = st.text("abc", min_size=1, max_size=2)


def read(path: Path, *columns: str) -> Reading:
    reading = Reading(str(path), label_name)
    with naming(path):
        read_file(path, columns or ("text", "label"), reading)
    return reading


def kept(reading: Reading) -> list[tuple]:
    return [(*t, label) for t, label in zip(reading.texts, reading.labels, strict=True)]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.tuples(TEXT, TEXT, LABEL)))
def test_every_kind_of_file_gives_back_what_was_written(tmp_path, rows):
    names = ["text", "other", "label"]
    lines = ["\t".join(row) for row in [names, *rows]]
    (tmp_path / "x.tsv").write_bytes("\n".join(lines).encode())
    with gzip.open(tmp_path / "x.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    with open(tmp_path / "x.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    for name in ("x.tsv", "x.jsonl.gz", "x.csv"):
        reading = read(tmp_path / name, *names)
        assert kept(reading) == rows, name
        assert reading.bad == 0


def test_csv_quotes_hold_commas_and_line_ends(tmp_path):
    file = tmp_path / "x.csv"
    file.write_bytes(b'label,text\r\n1,"a, ""b""\nc"\r\n\r\n0,d,e\r\n1,f\r\n')
    reading = read(file)
    assert kept(reading) == [('a, "b"\nc', "1"), ("f", "1")]
    assert (reading.bad, reading.first_fault) == (1, f"{file}:5: 3 columns, not 2")


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (['"a\nb",1', '"a 3" disk",1', "c,1"], 4),  # the record before it has two lines
        (["a,1", '"never closed,1', "b,2", "c,3"], 3),
    ],
)
def test_a_wrong_quote_is_named_by_the_line_where_its_record_begins(tmp_path, rows, line):
    file = tmp_path / "x.csv"
    file.write_text("\n".join(["text,label", *rows]) + "\n")
    with pytest.raises(
        UserError, match=f"x.csv:{line}: cannot be read: .*a quote is written twice"
    ):
        read(file)


def test_csv_fields_may_be_long_documents(tmp_path):
    document = "word " * 100_000
    (tmp_path / "x.csv").write_text(f"text,label\n{document},1\n")
    assert kept(read(tmp_path / "x.csv")) == [(document, "1")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"\xff", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        (b'{"text": "a"}', "no column 'label'; there are 'text'"),
        (b'{"text": null, "label": 1}', "None is no text"),
        (b'{"text": "a", "label": null}', "no label"),
        (b'{"text": "a", "label": NaN}', "no label"),
        (b'{"text": "a", "label": [1, 2]}', "label [1, 2] is a list, not one name or number"),
        (b'{"text": "a", "label": {}}', "label {} is a dictionary, not one name or number"),
        (b'{"text": "a", "label": 1, "text": "b"}', "'text' is there twice"),
        (b'{"text": "a", "label": " "}', "no label"),
        (b'{"text": "\\ud800", "label": 1}', "'utf-8' codec can't encode"),
    ],
)
def test_unusable_json_lines_are_counted_with_their_reason(tmp_path, line, reason):
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a", "label": true}\n\n' + line + b"\n")
    reading = read(file)
    assert kept(reading) == [("a", "True")]
    assert reading.bad == 1
    assert reading.first_fault.startswith(f"{file}:3: {reason}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", b'text,label\n"never closed,1\nb,2\n'),
        ("x.csv", b"text,label\n\xff,1\n"),
        ("x.tsv", b"\xff\tlabel\n"),
        ("x.tsv.gz", gzip.compress(b"text\tlabel\na\t1\n" * 99, mtime=0)[:-12]),
        ("x.tsv.gz", b"not compressed"),
        ("x.tsv.zst", b"not compressed"),
        ("x.tsv.xz", b"not compressed"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}(:2)?: cannot be read"):
        read(tmp_path / name)


def test_a_file_of_unknown_kind_is_told_the_known_ones(tmp_path):
    for name in ("x.xlsx", "x.gz", "x"):
        with pytest.raises(UserError, match=r"of no known kind; \.csv, \.tsv, \.jsonl"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("suffix", "separator", "name"),
    [
        (".csv", ";", "semicolons"),
        (".csv", "\t", "tabs"),
        (".csv", "|", "bars"),
        (".tsv", ",", "commas"),
    ],
)
def test_another_separator_is_recognised(tmp_path, suffix, separator, name):
    file = tmp_path / f"x{suffix}"
    file.write_text(f"text{separator}label\na{separator}1\n")
    with pytest.raises(UserError, match=f"no column 'text'.*; its fields stand between {name}"):
        read(file)
