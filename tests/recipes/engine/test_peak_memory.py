"""The peak of a part is measured, and the peak of the run is not lost by it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from recipes.engine import peak_memory


@dataclass
class Allocator:
    """Counts as torch's does; what it has reserved it keeps."""

    held: int = 0
    peak: int = 0
    reserved: int = 0

    def take(self, count: int) -> None:
        self.held += count
        self.peak = max(self.peak, self.held)
        self.reserved = max(self.reserved, self.held)

    def reset(self) -> None:
        self.peak = self.held


@pytest.fixture
def memory(monkeypatch) -> Allocator:
    memory = Allocator()
    for name, answer in (
        ("memory_allocated", lambda: memory.held),
        ("max_memory_allocated", lambda: memory.peak),
        ("max_memory_reserved", lambda: memory.reserved),
        ("reset_peak_memory_stats", memory.reset),
    ):
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(peak_memory, "_earlier", (0, 0))
    return memory


@pytest.mark.parametrize(("before", "part", "peak"), [(900, 50, 1000), (5, 450, 550)])
def test_a_part_is_measured_by_itself_and_the_larger_peak_is_the_runs(memory, before, part, peak):
    memory.take(100)
    memory.take(before)
    memory.take(-before)

    def work() -> None:
        memory.take(part)
        memory.take(-part)

    assert peak_memory.bytes_of(work) == part
    assert peak_memory.peak_bytes() == (peak, peak)
    memory.take(2000)
    assert peak_memory.peak_bytes() == (2100, 2100)
