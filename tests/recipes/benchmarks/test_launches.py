"""Launches at the smallest size: a stand-in replays graphs on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmark_scenarios import run_benchmark

SMALLEST: dict[str, Any] = dict(TOY_ROWS=[("probe-tiny", 2)], PARITY_STEPS=12, REPEATS=2)


class Replays:
    """A device whose recordings are the work itself."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def seconds(self, work: Callable[[], object]) -> float:
        work()
        return 1.0

    def peak_bytes(self, work: Callable[[], object]) -> int:
        work()
        return 1

    def free_bytes(self) -> int:
        return 2

    def release(self) -> None:
        pass


def stand_in(record: Any) -> Replays:
    return Replays()


def test_both_ways_are_compared_and_timed(tmp_path):
    record = run_benchmark(tmp_path, "launches", device=stand_in, **SMALLEST)
    [row] = record["rows"]
    assert (row["steps"], row["equal_steps"], row["largest_relative_difference"]) == (12, 12, 0)
    assert row["step_seconds"].keys() == {"one by one", "graphs"}
    assert row["ratio"]["repeats"] == 2 and row["trial"].endswith("equal to the bit: used")


def test_without_a_gpu_launches_alone_are_timed(tmp_path):
    record = run_benchmark(tmp_path, "launches", **SMALLEST)
    [row] = record["rows"]
    assert record["not_run"] == {"probe-tiny, 2 sequences": "CUDA graphs need a GPU"}
    assert row["step_seconds"].keys() == {"one by one"} and "ratio" not in row
