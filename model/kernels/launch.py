"""What all launches of Triton kernels here have in common.

`TRITON_INTERPRET=1`, set before a file with kernels is imported, runs them on the CPU.
"""

from __future__ import annotations

import functools

import torch
import triton.language as tl
from torch import Tensor

# Arguments that differ from layer to layer or from batch to batch: one compiled kernel serves all
# values, 1 and multiples of 16 included.
VARYING = ("site", "first_column", "rows", "chunks")

# Multiplications and additions of one expression are fused, as they always were: Triton announces
# another default, which would change the rounding, and so the bits of a resumed run.
FUSED = dict(enable_fp_fusion=True)


def accumulator(tensor: Tensor) -> torch.dtype:
    """Return the dtype for sums over `tensor`: fp32, or fp64 for fp64 (gradient checks)."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def triton_accumulator(tensor: Tensor) -> tl.dtype:
    """Return `accumulator` as Triton names it."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Count a GPU's multiprocessors; 1 for the CPU, where one program runs at a time."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 1
