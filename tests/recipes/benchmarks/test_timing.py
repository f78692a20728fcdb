"""The clock: medians, turns, and what does not count."""

import pytest
import torch

from recipes.benchmarks import timing
from recipes.benchmarks.timing import alternate, ratios, spread

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
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    amounts = iter([1e9, 6.0, 8.0, 4.0])  # the first pass is not timed
    assert timing.rates(lambda: next(amounts), repeats=3) == spread([3.0, 8.0, 1.0])


def test_contenders_take_turns_and_warm_up_does_not_count(monkeypatch):
    """A clock that each call moves on: the first calls of each are the slowest."""
    now, seen = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def contender(name, seconds):
        def work():
            first = seen.count(name) < timing.WARM_UP_CALLS
            now[0] += 100.0 if first else seconds
            seen.append(name)

        return work

    contenders = {"a": contender("a", 1.0), "b": contender("b", 2.0)}
    times = alternate(contenders, CPU, repeats=3, seconds=4.0)
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}
    ended = alternate(contenders, CPU, repeats=3, go_on=lambda times: len(times["b"]) < 2)
    assert ended == {"a": [1.0] * 2, "b": [2.0] * 2}
    del seen[-2 * 2 - 2 * (timing.WARM_UP_CALLS + 1) :]
    # Turns of four seconds, after the calls that warm up and the one that is timed for this.
    warm = timing.WARM_UP_CALLS + 1
    assert "".join(seen) == "a" * warm + "b" * warm + 3 * ("aaaa" + "bb")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_time_on_a_gpu_is_that_of_the_work():
    """The host queues the work in microseconds; what counts is when the device is through."""
    device = torch.device("cuda")
    matrix = torch.randn(8192, 8192, device=device)
    few = timing.seconds_per_call(lambda: matrix @ matrix, device, calls=3)
    assert few > 1e-3
