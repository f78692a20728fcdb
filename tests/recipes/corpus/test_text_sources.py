import gzip
import json

import pytest

from recipes.common.errors import UserError
from recipes.corpus.text_records import Skipped, Span
from recipes.corpus.text_sources import (
    LANE_RECORDS,
    MIN_PORTION_BYTES,
    Portion,
    find_inputs,
    hub_splits,
    is_hub_name,
    portions,
)


def write_lines(path, count, start=0):
    lines = (json.dumps({"text": f"document {n}"}) + "\n" for n in range(start, start + count))
    data = "".join(lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def texts(cut):
    return [text for portion in cut for text in portion.documents("text", Skipped())]


def test_a_directory_is_read_recursively_in_order_and_the_rest_is_reported(tmp_path):
    write_lines(tmp_path / "b.jsonl.gz", 2, 10)
    write_lines(tmp_path / "a" / "z.json", 2, 0)
    (tmp_path / "c.txt").write_text("plain\n\ntext")
    (tmp_path / "README.md").write_text("other")
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".hidden.txt").write_text("hidden")
    inputs = find_inputs([str(tmp_path)])
    assert texts([Portion(inputs.spans)]) == [
        "document 0", "document 1", "document 10", "document 11", "plain", "text",
    ]  # fmt: skip
    assert inputs.ignored.counts == {
        "hidden": {".txt": 1}, "of another kind": {".md": 1}, "empty": {".txt": 1},
    }  # fmt: skip
    assert inputs.ignored.first["of another kind"] == str(tmp_path / "README.md")


def test_all_faults_of_all_inputs_are_told_at_once(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "a.docx").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    names = ["missing.jsonl", "wikitext", "empty.jsonl", "nothing", "a.docx", "a.txt", "a.txt"]
    with pytest.raises(UserError) as caught:
        find_inputs([str(tmp_path / name) for name in names])
    faults = caught.value.faults
    assert len(faults) == 6
    expected = [
        "missing.jsonl: no such file",
        "wikitext: no such file",
        "empty.jsonl: empty file",
        "nothing: no files to read in it",
        "a.docx: not a known kind",
        "a.txt: given more than once",
    ]
    assert all(part in fault for part, fault in zip(expected, faults, strict=True))


def test_what_counts_as_the_name_of_a_hub_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "too").mkdir(parents=True)
    assert is_hub_name("allenai/c4")
    for path in ("here/too", "c4", "data/c4.jsonl.gz", "./allenai/c4", "/allenai/c4", "a/b/c"):
        assert not is_hub_name(path)


def test_a_large_file_is_cut_and_small_ones_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.corpus.text_sources.MIN_PORTION_BYTES", 64)
    write_lines(tmp_path / "large.jsonl", 2000)
    for n in range(10):
        write_lines(tmp_path / f"small-{n}.jsonl", 2, 2000 + 2 * n)
    spans = find_inputs([str(tmp_path)]).spans
    cut = portions(spans, 8)
    assert 7 <= len(cut) <= 10
    assert [len(portion.spans) for portion in cut][-1] == 10
    assert texts(cut) == [f"document {n}" for n in range(2020)]
    assert sum(portion.size for portion in cut) == sum(span.size for span in spans)


def test_a_small_input_is_one_portion_whatever_is_asked_for():
    span = Span("jsonl", "a.jsonl", size=MIN_PORTION_BYTES)
    assert portions([span], 256) == (Portion((span,)),)


def test_processes_share_a_compressed_file_by_lanes(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.corpus.text_sources.MIN_PORTION_BYTES", 64)
    write_lines(tmp_path / "a.jsonl.gz", 3000)
    cut = portions(find_inputs([str(tmp_path / "a.jsonl.gz")]).spans, 4)
    assert [(portion.lane, portion.lanes) for portion in cut] == [(n, 4) for n in range(4)]
    first_lane = texts(cut[:1])
    assert first_lane[0] == "document 0"
    assert first_lane[LANE_RECORDS] == f"document {4 * LANE_RECORDS}"
    assert sorted(texts(cut)) == sorted(f"document {n}" for n in range(3000))


def test_a_large_parquet_file_is_cut_at_row_groups(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet

    monkeypatch.setattr("recipes.corpus.text_sources.MIN_PORTION_BYTES", 64)
    documents = [f"document {n * 7919 % 100003}" for n in range(1000)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": documents}), path, row_group_size=100)
    cut = portions(find_inputs([str(path)]).spans, 5)
    assert len(cut) == 5
    assert texts(cut) == documents


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_limit_takes_the_first_records_of_all_inputs(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("recipes.corpus.text_sources.MIN_PORTION_BYTES", 64)
    write_lines(tmp_path / f"a.jsonl{suffix}", 600)
    write_lines(tmp_path / f"b.jsonl{suffix}", 600, 600)
    cut = portions(find_inputs([str(tmp_path)]).spans, 4, max_documents=700)
    assert len(cut) > 1
    expected = [f"document {n}" for n in range(700)]
    assert sorted(texts(cut)) == sorted(expected)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A dataset of two splits and three training shards, loaded from files in place of the hub."""
    datasets = pytest.importorskip("datasets")
    files = {"train": [], "validation": []}
    for number, split in enumerate(["train", "train", "train", "validation"]):
        path = tmp_path / f"{split}-{number}.jsonl"
        write_lines(path, 4, 4 * number)
        files[split].append(str(path))
    load = datasets.load_dataset

    def load_files(name, config, split, streaming):
        assert (name, config, streaming) == ("org/name", "en", True)
        cache = str(tmp_path / "cache")
        return load("json", data_files=files, split=split, streaming=True, cache_dir=cache)

    monkeypatch.setattr(datasets, "load_dataset", load_files)


def test_a_hub_dataset_is_streamed_shard_by_shard(hub):
    assert hub_splits("org/name", "en") == ["train", "validation"]
    spans = find_inputs(["org/name"], "en", "train").spans
    assert [(span.start, span.stop) for span in spans] == [(0, 3), (1, 3), (2, 3)]
    cut = portions(spans, 3)
    assert len(cut) == 3
    assert [texts([portion]) for portion in cut] == [
        [f"document {n}" for n in range(first, first + 4)] for first in (0, 4, 8)
    ]
    validation = find_inputs(["org/name"], "en", "validation").spans
    assert texts(portions(validation, 3)) == [f"document {n}" for n in range(12, 16)]


def test_a_missing_column_of_a_hub_dataset_is_a_bad_record(hub):
    skipped = Skipped()
    (portion,) = portions(find_inputs(["org/name"], "en", "validation").spans, 1)
    assert list(portion.documents("body", skipped)) == []
    assert skipped.describe("without 'body'") == (
        "4 without 'body' (first: org/name, shard 0 of 1, example 1), it has text: --text-key text?"
    )


def test_an_unreachable_hub_is_told_in_one_message(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match="org/name: no such path here, and as a hub dataset: no r"):
        find_inputs(["org/name"])
