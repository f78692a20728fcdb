"""What joining a run does to this process."""

from __future__ import annotations

import ctypes
import resource

import pytest
import torch

from recipes.engine.world import keep_freed_memory


def test_memory_that_was_freed_is_taken_again_without_page_faults():
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not mallopt(-3, 2**30):
        pytest.skip("this C library maps blocks of 40 MB whatever it is told")
    keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.empty(10_000_000).fill_(1) for _ in range(2)]  # 40 MB, 9,800 pages each
        del blocks
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert [faults() for _ in range(6)][-1] < 5_000
