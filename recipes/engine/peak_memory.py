"""The most memory that this process has had on its GPU: in all, and during a part of the run.

torch keeps one peak, which has to be set back before a part is measured; what it was until then is
kept here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_earlier = (0, 0)


def peak_bytes() -> tuple[int, int]:
    """Return the bytes that tensors, and that torch for them, had at most since the start."""
    now = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return max(_earlier[0], now[0]), max(_earlier[1], now[1])


def bytes_of(work: Callable[[], object]) -> int:
    """Do `work`, and return how many bytes its tensors had at once, beyond those held anyway."""
    global _earlier
    _earlier = peak_bytes()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - held
