import bz2
import gzip
import json
import lzma

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.common.errors import UserError
from recipes.corpus.text_readers import raw_records
from recipes.corpus.text_records import MAX_RECORD_BYTES, Skipped, Span, text_of
from recipes.corpus.text_sources import Portion

TEXTS = ["First document.\nTwo lines.", "Zweites, größer.", "第三"]

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def json_lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def read(path, kind="jsonl", text_key="text", **span):
    skipped = Skipped()
    portion = Portion((Span(kind, str(path), **span),))
    return list(portion.documents(text_key, skipped)), skipped


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_compression_gives_the_same_documents(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](json_lines(TEXTS)))
    assert read(path)[0] == TEXTS


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    # Many different documents, so that whole ones come out before the end is missed.
    data = COMPRESS[suffix](json_lines(f"document {n * 7919 % 100003}" for n in range(20000)))
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match=r"a\.jsonl\.\w+: truncated"):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"this was never compressed, whatever its name says")
    with pytest.raises(UserError, match=r"a\.jsonl\.\w+: cannot be read"):
        read(path)


def test_zstd_frames_are_read_one_after_the_other(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(COMPRESS[".zst"](json_lines([text])) for text in TEXTS))
    assert read(path)[0] == TEXTS


def test_bad_records_are_skipped_counted_and_located(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "good"}',
        b'{"text": "half',
        b'{"no": "text"}',
        b'{"text": 7}',
        b'{"text": "\xff"}',
        b'["text"]',
        b"",
        b'{"text": "  "}',
        b'{"text": "\\ud800"}',
        b'{"text": "last"}',
    ]
    path.write_bytes(b"\n".join(lines))  # the last line has no newline
    texts, skipped = read(path)
    assert texts == ["good", "last"]
    places = {
        "not valid JSON": 2,
        "without 'text'": 3,
        "with a 'text' that is not text": 4,
        "not UTF-8": 5,
        "not a JSON object": 6,
        "empty": 8,
        "with unpaired surrogates": 9,
    }
    assert skipped.counts == dict.fromkeys(places, 1)
    assert skipped.examples == {reason: f"{path}:{line}" for reason, line in places.items()}
    assert skipped.records == 9  # the blank line is no record
    assert skipped.bad == 6  # an empty document is no fault


def test_a_line_without_end_is_skipped_without_being_held(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["x" * (MAX_RECORD_BYTES + 10), "after"]))
    raw = [record for _, record in raw_records(Span("jsonl", str(path)), "text")]
    assert [len(record) for record in raw] == [MAX_RECORD_BYTES + 1, len(json_lines(["after"]))]
    texts, skipped = read(path)
    assert texts == ["after"]
    assert skipped.counts == {"longer than 16 MiB": 1}


def test_a_document_of_too_many_lines_is_skipped_without_being_held(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 999_999 + b"\n")
    with open(path, "ab") as file:
        for _ in range(20):
            file.write(b"y" * 999_999 + b"\n")
        file.write(b"\nafter\n")
    texts, skipped = read(path, "text")
    assert texts == ["after"]
    assert skipped.counts == {"longer than 16 MiB": 1}


def test_plain_text_is_split_at_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff\n\none\ntwo\r\n \t\r\n\nthree\n\n\nfour".encode())
    assert read(path, "text")[0] == ["one\ntwo", "three", "four"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["\n", "a\n", "bc\n", " \n", "def\n", "\r\n"]), max_size=25),
    st.booleans(),
    st.integers(1, 12),
    st.sampled_from(["text", "text-line", "jsonl"]),
)
def test_every_record_belongs_to_exactly_one_stretch(tmp_path_factory, lines, ends, step, kind):
    path = tmp_path_factory.mktemp("cut") / "a"
    data = "".join(lines).encode() + (b"" if ends else b"last")
    path.write_bytes(data)
    whole = list(raw_records(Span(kind, str(path)), "text"))
    cut = [
        record
        for start in range(0, len(data), step)
        for record in raw_records(Span(kind, str(path), start, start + step), "text")
    ]
    assert cut == whole


def test_parquet_reads_row_groups_and_names_a_missing_column(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    table = pa.table({"body": ["a", None, "c", "d", "e"], "n": [1, 2, 3, 4, 5]})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    texts, skipped = read(path, "parquet", "body")
    assert texts == ["a", "c", "d", "e"]
    assert skipped.examples == {"without 'body'": f"{path}, record 2"}
    assert read(path, "parquet", "body", start=1, stop=2)[0] == ["c", "d"]
    with pytest.raises(UserError, match="no column 'text'; it has body, n"):
        read(path, "parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read"):
        read(path, "parquet", "body")


def test_text_of_accepts_a_byte_order_mark():
    assert text_of(b'\xef\xbb\xbf{"text": "a"}', "jsonl", "text") == "a"


def test_bad_records_stop_the_reading_only_when_they_are_many(tmp_path):
    skipped = Skipped(records=5000, counts={"not UTF-8": 900, "empty": 4000})
    skipped.check(0.2)
    skipped.check(0.01, tolerated=1000)
    with pytest.raises(UserError, match=r"900 of 5,000 records are unusable \(18\.0%\)"):
        skipped.check(0.01)
    path = tmp_path / "a.jsonl"
    path.write_text("{\n" * 5000)
    portion, skipped = Portion((Span("jsonl", str(path)),)), Skipped()
    with pytest.raises(UserError, match=r"not valid JSON \(first: .*a\.jsonl:1\)"):
        list(portion.documents("text", skipped, max_bad_fraction=0.01))
    assert skipped.records == 1001


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_an_array_and_documents_over_several_lines(tmp_path, indent, suffix):
    path = tmp_path / f"a.json{suffix}"
    records = [{"id": n, "text": text} for n, text in enumerate(TEXTS)]
    path.write_bytes(COMPRESS[suffix](json.dumps(records, indent=indent).encode()))
    assert read(path, "json")[0] == TEXTS
    single = "\n".join(json.dumps(record, indent=2) for record in records)
    path.write_bytes(COMPRESS[suffix](single.encode()))
    assert read(path, "json")[0] == TEXTS


def test_bad_values_of_an_array_are_located_and_a_cut_one_is_an_error(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n{"text": "good"},\n{"text": },\n7,\n{"text": "last"}\n]')
    texts, skipped = read(path, "json")
    assert texts == ["good", "last"]
    assert skipped.examples == {"not valid JSON": f"{path}:3", "not a JSON object": f"{path}:4"}
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"a\.json: truncated: a JSON value"):
        read(path, "json")


@pytest.mark.parametrize("suffix", COMPRESS)
def test_columns_of_csv_files(tmp_path, suffix):
    path = tmp_path / f"a.csv{suffix}"
    data = (
        b'\xef\xbb\xbfid,text\r\n1,plain\r\n2,"two\nlines, a comma and ""quotes"""\r\n\r\n'
        b"3,too,many\r\n4,\xff\r\n5,\r\n6,last"
    )
    path.write_bytes(COMPRESS[suffix](data))
    texts, skipped = read(path, "csv")
    assert texts == ["plain", 'two\nlines, a comma and "quotes"', "last"]
    assert skipped.examples == {
        "with more or fewer columns than the first line": f"{path}:6",
        "not UTF-8": f"{path}:7",
        "empty": f"{path}:8",
    }
    with pytest.raises(UserError, match="no column 'body'; it has id, text: --text-key NAME,"):
        read(path, "csv", "body")


def test_quotes_that_do_not_pair_name_their_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,a\n2,"never closed\n3,b\n')
    with pytest.raises(UserError, match=r"a\.csv:3: the quotes of the record that begins here"):
        read(path, "csv")


def test_columns_between_tabs_where_a_quote_is_a_character(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b'text\tid\r\n"a, b\t1\r\n\r\nonly\r\n\xff\t3\r\nlast\t4')
    texts, skipped = read(path, "tsv")
    assert texts == ['"a, b', "last"]
    assert skipped.examples == {
        "with more or fewer columns than the first line": f"{path}:4",
        "not UTF-8": f"{path}:5",
    }
    with pytest.raises(UserError, match="no column 'body'; it has text, id"):
        read(path, "tsv", "body")


def test_what_a_document_of_plain_text_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"  one\r\ntwo\n\n \nthree\n\n")
    assert read(path, "text")[0] == ["  one\r\ntwo", "three"]
    assert read(path, "text-line")[0] == ["  one", "two", "three"]
    assert read(path, "text-file")[0] == ["  one\r\ntwo\n\n \nthree"]
    path.write_bytes(b"x" * (MAX_RECORD_BYTES + 1))
    assert read(path, "text-file")[1].counts == {"longer than 16 MiB": 1}


def test_keys_within_keys(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [{"data": {"text": "a"}}, {"data.text": "b"}, {"data": "c"}, {"data": {"text": None}}]
    path.write_text("\n".join(map(json.dumps, records)))
    texts, skipped = read(path, "jsonl", "data.text")
    assert texts == ["a", "b"]
    assert skipped.counts == {"without 'data.text'": 2}


def test_a_missing_key_is_told_with_those_that_are_there(tmp_path):
    path = tmp_path / "a.jsonl"
    record = {"id": "17", "meta": {"title": "A title"}, "body": "The longest of the texts."}
    path.write_text(json.dumps(record))
    skipped = read(path)[1]
    assert skipped.describe("without 'text'") == (
        f"1 without 'text' (first: {path}:1), it has id, meta.title, body: --text-key body?"
    )


def test_parquet_columns_within_columns(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    rows = [{"text": "a", "n": 1}, None, {"text": None, "n": 2}, {"text": "d", "n": 3}]
    table = pa.table({"data": rows, "tags": [["x"], [], ["y"], []]})
    pyarrow.parquet.write_table(table, path)
    texts, skipped = read(path, "parquet", "data.text")
    assert texts == ["a", "d"]
    assert skipped.counts == {"without 'data.text'": 2}
    with pytest.raises(UserError, match="no column 'text'; it has data.text, data.n"):
        read(path, "parquet")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_bytes_behind_the_compressed_data_are_counted_and_said(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](json_lines(TEXTS)) + b"garbage")
    texts, skipped = read(path)
    assert texts == TEXTS and skipped.bad == 0
    assert skipped.describe_all() == f"7 bytes behind the compressed data of {path}"
    lanes = [Skipped(trailing={str(path): 7}) for _ in range(2)]
    lanes[0].merge(lanes[1])  # processes that share a file see the same bytes
    assert lanes[0].trailing == {str(path): 7}


def test_an_array_of_strings_is_one_of_documents(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(TEXTS))
    assert read(path, "json")[0] == TEXTS


@pytest.mark.parametrize(
    "data, hint",
    [
        ("text".encode("utf-16"), "like UTF-16: iconv"),
        (gzip.compress(b"text", mtime=0), "like gzip: let"),
        ("Grüße".encode("latin-1"), "iconv -f WINDOWS-1252"),
    ],
)
def test_what_is_no_utf_8_is_recognised(tmp_path, data, hint):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert hint in read(path, "text-file")[1].describe("not UTF-8")


@pytest.mark.parametrize(
    ("line", "described"),
    [
        ('{"text": null, "id": 1}', "without 'text' (first: {}:1), 'text' is null"),
        ('{"text": "a"}{"text": "b"}', "(first: {}:1), several values on a line: --format json"),
        ('{"text": "a"} b', "not valid JSON (first: {}:1)"),
        (f'{{"text": "a", "id": {"9" * 5000}}}', "a number in it has thousands of digits"),
        ("[" * 100_000, "brackets too deep"),
    ],
)
def test_json_that_cannot_be_used_is_told_why(tmp_path, line, described):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{line}\n{{"text": "whole"}}\n')
    texts, skipped = read(path)
    assert texts == ["whole"] and skipped.bad == 1
    assert described.format(path) in skipped.describe_all()


def test_several_values_on_a_line_are_read_as_the_hint_says(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}{"text": "b"}')
    assert read(path, "json")[0] == ["a", "b"]
