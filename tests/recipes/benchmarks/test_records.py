"""The clock, the spread and the record."""

import json
import time

import pytest
import torch

from recipes.benchmarks import records
from recipes.benchmarks.records import NotHere, Record, alternate, ratios, spread

CPU = torch.device("cpu")


def test_spread_and_ratios_by_hand():
    assert spread([3.0, 1.0, 8.0]) == {"median": 3.0, "min": 1.0, "max": 8.0, "repeats": 3}
    # The second round was slow for both: their ratio is that of the other rounds.
    assert ratios([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == {
        "median": 2.0,
        "min": 2.0,
        "max": 3.0,
        "repeats": 3,
    }


def test_rates_are_amounts_over_their_own_time(monkeypatch):
    clock = iter([10.0, 12.0, 20.0, 21.0, 30.0, 34.0])
    monkeypatch.setattr(records.time, "perf_counter", lambda: next(clock))
    amounts = iter([1e9, 6.0, 8.0, 4.0])  # the first pass is not timed
    assert records.rates(lambda: next(amounts), repeats=3) == spread([3.0, 8.0, 1.0])


def test_contenders_take_turns_and_warm_up_does_not_count(monkeypatch):
    """A clock that each call moves on: the first calls of each are the slowest."""
    now, seen = [0.0], []
    monkeypatch.setattr(records.time, "perf_counter", lambda: now[0])

    def contender(name, seconds):
        def work():
            first = seen.count(name) < records.WARM_UP_CALLS
            now[0] += 100.0 if first else seconds
            seen.append(name)

        return work

    contenders = {"a": contender("a", 1.0), "b": contender("b", 2.0)}
    times = alternate(contenders, CPU, repeats=3, seconds=4.0)
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}
    ended = alternate(contenders, CPU, repeats=3, go_on=lambda times: len(times["b"]) < 2)
    assert ended == {"a": [1.0] * 2, "b": [2.0] * 2}
    del seen[-2 * 2 - 2 * (records.WARM_UP_CALLS + 1) :]
    # Turns of four seconds, after the calls that warm up and the one that is timed for this.
    warm = records.WARM_UP_CALLS + 1
    assert "".join(seen) == "a" * warm + "b" * warm + 3 * ("aaaa" + "bb")


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
    for key in ("date", "cpu", "device", "git_revision", "threads"):
        assert found[key]
    assert found["versions"]["torch"] == torch.__version__
    if not torch.cuda.is_available():
        assert record.path.name == "probe_cpu.json" and found["size"] == "toy"
        assert "TOY SIZE" in records.where(found)


def test_minutes_end(tmp_path, monkeypatch):
    now = time.monotonic()
    record = Record("probe", tmp_path, minutes=2.0)
    monkeypatch.setattr(records.time, "monotonic", lambda: now + 119)
    assert not record.out_of_time("first")
    monkeypatch.setattr(records.time, "monotonic", lambda: now + 121)
    assert record.out_of_time("second")
    assert record["not_run"] == {"second": "no time left"}
    assert not Record("probe", tmp_path).out_of_time("without a limit")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_time_on_a_gpu_is_that_of_the_work():
    """The host queues the work in microseconds; what counts is when the device is through."""
    device = torch.device("cuda")
    matrix = torch.randn(8192, 8192, device=device)
    few = records.seconds_per_call(lambda: matrix @ matrix, device, calls=3)
    assert few > 1e-3
