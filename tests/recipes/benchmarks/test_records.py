"""The record, whatever happens while it is made."""

import json
import time

import torch

from recipes.benchmarks import records
from recipes.benchmarks.presentation import where
from recipes.benchmarks.records import NotHere, Record


def test_what_went_wrong_is_in_the_record_with_its_kind(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "release_memory", lambda: None)
    record = Record("probe", tmp_path)

    def fail(error):
        raise error

    assert record.attempt("good", lambda x: x + 1, 1) == 2
    assert record.attempt("missing", fail, NotHere("no such package")) is None
    assert record.attempt("large", fail, torch.cuda.OutOfMemoryError("CUDA out of memory")) is None
    assert record.attempt("broken", fail, KeyError("name")) is None
    assert record["not_run"] == {"missing": "no such package", "large": "out of memory"}
    assert record["failures"] == {"broken": "KeyError: 'name'"}
    said = capsys.readouterr().err
    assert "Traceback" in said and "large: out of memory" in said


def test_a_record_is_readable_after_every_save_and_says_what_it_is(tmp_path):
    record = Record("probe", tmp_path / "new")
    record["points"] = [1]
    record.save()
    found = json.loads(record.path.read_bytes())
    assert found["complete"] is False and found["points"] == [1]
    for key in ("date", "cpu", "device", "git_revision", "sources_sha256", "threads"):
        assert found[key]
    assert found["versions"]["torch"] == torch.__version__
    if not torch.cuda.is_available():
        assert record.path.name == "probe_cpu.json" and found["size"] == "toy"
        assert "TOY SIZE" in where(found)


def test_minutes_end(tmp_path, monkeypatch):
    now = time.monotonic()
    record = Record("probe", tmp_path, minutes=2.0)
    monkeypatch.setattr(records.time, "monotonic", lambda: now + 119)
    assert not record.out_of_time("first")
    monkeypatch.setattr(records.time, "monotonic", lambda: now + 121)
    assert record.out_of_time("second")
    assert record["not_run"] == {"second": "no time left"}
    assert not Record("probe", tmp_path).out_of_time("without a limit")


def test_one_thing_is_measured_even_where_no_time_is_left(tmp_path):
    record = Record("probe", tmp_path, minutes=1e-9)
    assert [record.out_of_time(what) for what in ("first", "second")] == [False, True]
    assert record["not_run"] == {"second": "no time left"}
