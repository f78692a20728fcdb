"""A stand-in for a GPU that records CUDA graphs (see `recipes.engine.micro_steps.Device`)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Replays:
    """A device whose recordings are the work itself: replayed by calling it again, with its inputs
    where they were at the recording. Fields: what goes wrong with it, and what was seen.
    """

    fails_at: int | None = None
    """Recording that raises, from 0."""
    wrong: bool = False
    graph_seconds: float = 0.5
    free: int = 100
    free_later: int | None = None
    recorded: int = 0
    replays: int = 0
    released: int = 0
    held: int = 0
    """Recorded passes that something still held when memory was given back."""
    micro_batches: list[int] = field(default_factory=list)
    """Of each recording, which micro-batch of its step it came in."""
    engine: Any = None
    _passes: list[Any] = field(default_factory=list)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graphed: Any = work.__self__  # type: ignore[attr-defined]
        self._passes.append(weakref.ref(graphed))
        if self.recorded == self.fails_at:
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA says more")
        self.recorded += 1
        if self.engine is not None:
            accumulation = self.engine.gradient_accumulation_steps()
            self.micro_batches.append(self.engine.micro_steps % accumulation)

        def replay() -> None:
            self.replays += 1
            work()
            if self.wrong:
                graphed._result.mul_(1.01)

        return replay

    def seconds(self, work: Callable[[], object]) -> float:
        work()
        return self.graph_seconds if self.recorded else 1.0

    def peak_bytes(self, work: Callable[[], object]) -> int:
        work()
        return 50

    def free_bytes(self) -> int:
        if self.free_later is not None and self.recorded > 2:
            return self.free_later
        return self.free

    def release(self) -> None:
        self.released += 1
        gc.collect()  # a pass and what replays it here hold each other
        self.held = sum(each() is not None for each in self._passes)

    def forget(self) -> None:
        """Let go of the engine and the passes, which another process cannot be sent."""
        self.engine = None
        self._passes.clear()
