"""Launches at the smallest size: a stand-in replays graphs on the CPU."""

from __future__ import annotations

from typing import Any

from benchmark_scenarios import run_benchmark
from replays import Replays

SMALLEST: dict[str, Any] = dict(TOY_ROWS=[("probe-tiny", 2)], PARITY_STEPS=12, REPEATS=2)


def stand_in(record: Any) -> Replays:
    return Replays()


def test_both_ways_are_compared_and_timed(tmp_path):
    record = run_benchmark(tmp_path, "launches", device=stand_in, **SMALLEST)
    [row] = record["rows"]
    assert (row["steps"], row["equal_steps"], row["largest_relative_difference"]) == (12, 12, 0)
    assert row["step_seconds"].keys() == {"one by one", "graphs"}
    assert row["ratio"]["repeats"] == 2 and row["trial"].endswith("equal to the bit: used")


class Clock:
    """Each look at it is 2,800 seconds later."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic(self) -> float:
        self.now += 2_800
        return self.now


def test_as_many_steps_as_there_is_time_for_are_compared(tmp_path):
    """In half of 1,000 minutes, less what imports take, 11 steps are begun."""
    changed = dict(SMALLEST, PARITY_STEPS=99, time=Clock())
    record = run_benchmark(tmp_path, "launches", "--minutes", "1000", device=stand_in, **changed)
    [row] = record["rows"]
    assert (row["steps"], row["equal_steps"]) == (11, 11)
    assert row["ratio"]["repeats"] == 2


def test_without_time_a_step_and_a_round_are_what_is_done(tmp_path):
    changed = dict(SMALLEST, PARITY_STEPS=10_000, REPEATS=10_000)
    record = run_benchmark(tmp_path, "launches", "--minutes", "1e-6", device=stand_in, **changed)
    assert record["not_run"] == {"probe-tiny, 2 sequences": "no graph in 1 steps"}
    [row] = record["rows"]
    assert row["step_seconds"]["one by one"]["repeats"] == 1


def test_without_a_gpu_launches_alone_are_timed(tmp_path):
    record = run_benchmark(tmp_path, "launches", **SMALLEST)
    [row] = record["rows"]
    assert record["not_run"] == {"probe-tiny, 2 sequences": "CUDA graphs need a GPU"}
    assert row["step_seconds"].keys() == {"one by one"} and "ratio" not in row
