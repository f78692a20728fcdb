"""Which rank is slow.

In data-parallel training all ranks finish a step together, so the wall time of a step says nothing.
The forward pass has no communication with other data-parallel ranks: a slow GPU shows there, and a
slow disk in the wait for batches.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from recipes.engine.world import World, told_by_all

SLOW = 1.5
"""How many times the median forward pass makes a rank slow."""
PATIENCE = 3
"""A rank is named when it was slow in so many windows in a row: anything can be slow once."""


class RankTimes:
    """Seconds that each rank needs per step for its forward passes and for its batches."""

    def __init__(self, world: World):
        self.world = world
        self._forward: list[Any] = []
        self._wait = 0.0
        self._steps = 0
        self._slow: Counter[str] = Counter()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Time the forward pass inside a `with`; does not wait for the device."""
        if self.world.device.type == "cuda":
            began, ended = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has none
                for _ in range(2)
            )
            began.record()
            yield
            ended.record()
            self._forward.append((began, ended))
        else:
            start = time.perf_counter()
            yield
            self._forward.append(time.perf_counter() - start)

    def step(self, data_wait_seconds: float) -> None:
        """Count a step and the seconds that it waited for its batches."""
        self._wait += data_wait_seconds
        self._steps += 1

    def window(self) -> dict[str, float]:
        """The slowest rank against the median since the last window. Call on every rank.

        Rank 0 prints who is slow.
        """
        mine = (self._forward_seconds() / self._steps, self._wait / self._steps)
        self._forward, self._wait, self._steps = [], 0.0, 0
        where = f"rank {self.world.rank} ({socket.gethostname()}, {self.world.device})"
        everyone = told_by_all((where, *mine), self.world)
        if self.world.rank == 0:
            slow = slow_ranks(everyone)
            self._slow = Counter({where: self._slow[where] + 1 for where in slow})
            for where, line in slow.items():
                if self._slow[where] % PATIENCE == 0:
                    print(line, flush=True)
        forward = [seconds for _, seconds, _ in everyone]
        return {
            "time/forward_seconds_median": statistics.median(forward),
            "time/forward_seconds_slowest": max(forward),
            "time/data_wait_seconds_slowest": max(wait for *_, wait in everyone),
        }

    def _forward_seconds(self) -> float:
        if self.world.device.type != "cuda":
            return float(sum(self._forward))
        torch.cuda.synchronize(self.world.device)
        return float(sum(began.elapsed_time(ended) for began, ended in self._forward)) / 1000


def slow_ranks(ranks: list[tuple[str, float, float]]) -> dict[str, str]:
    """Name, in a line each, the ranks whose forward pass takes over `SLOW` times the median.

    Args:
        ranks: name, forward seconds per step, seconds per step spent waiting for batches.
    """
    typical = statistics.median_low(seconds for _, seconds, _ in ranks)
    return {
        where: f"{where} is slow: forward {1000 * seconds:,.1f} ms a step, "
        f"median {1000 * typical:,.1f} ms"
        for where, seconds, _ in ranks
        if seconds > SLOW * typical
    }
