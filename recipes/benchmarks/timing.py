"""The clock of all measurements: seconds and rates of repeats, in turns, and their spread."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

WARM_UP_CALLS = 3
MAX_CALLS = 1000


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and largest value, and the number of repeats."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repeats": len(values),
    }


def ratios(of: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """Return the spread of the ratios within each round of alternating measurements.

    What slows a machine down for a while slows both down, so their ratio stays.
    """
    return spread([a / b for a, b in zip(of, to, strict=True)])


def rates(work: Callable[[], float], repeats: int) -> dict[str, float]:
    """Measure the rates of `work`, which returns how much it did: median, min and max per second.

    An untimed pass comes first, for caches and lazy imports.
    """
    work()
    measured = []
    for _ in range(repeats):
        begin = time.perf_counter()
        amount = work()
        measured.append(amount / (time.perf_counter() - begin))
    return spread(measured)


def synchronize(device: torch.device) -> None:
    """Wait for everything that was queued on `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Measure the time of one of `calls` calls in a row.

    On a GPU by CUDA events, so that the host's work counts only where the device waits for it."""
    synchronize(device)
    if device.type == "cuda":
        began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
        ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
        began.record()
        for _ in range(calls):
            work()
        ended.record()
        ended.synchronize()
        milliseconds: float = began.elapsed_time(ended)
        return milliseconds / 1000 / calls
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    repeats: int,
    seconds: float = 0.0,
    go_on: Callable[[dict[str, list[float]]], bool] = lambda times: True,
) -> dict[str, list[float]]:
    """Measure the seconds per call of contenders that take turns: A B C A B C ...

    Args:
        repeats: rounds that count; the calls before them, which compile and fill caches, do not.
        seconds: how long one turn lasts at least, in calls in a row, where a call is too short for
            the clock.
        go_on: asked after every round, with the times so far.

    Returns:
        One time per round for each; round i of all of them ran within the same moments.
    """
    calls = {}
    for name, work in contenders.items():
        for _ in range(WARM_UP_CALLS):
            work()
        once = seconds_per_call(work, device)
        calls[name] = min(MAX_CALLS, max(1, round(seconds / max(once, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, work in contenders.items():
            times[name].append(seconds_per_call(work, device, calls[name]))
        if not go_on(times):
            break
    return times


def release_memory() -> None:
    """Give back the device memory of what is out of scope."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
