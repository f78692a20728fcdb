"""A Triton kernel that sums the rows of partial sums, in an order that depends on nothing."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import FUSED, triton_accumulator

_ROWS, _COLUMNS = 32, 32


@triton.jit
def _column_sums(
    Partial, Sums, rows, columns_in_all,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLUMNS], ACC)
    for first in range(0, rows, ROWS):
        inside = (first + row < rows)[:, None] & (columns < columns_in_all)[None, :]
        at = (first + row).to(tl.int64)[:, None] * columns_in_all + columns[None, :]
        total += tl.load(Partial + at, inside, 0.0)
    sums = tl.sum(total, 0).to(Sums.dtype.element_ty)
    tl.store(Sums + columns, sums, columns < columns_in_all)


def column_sums(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over the first dimension, in the precision of `partial`, in one launch.

    Args:
        partial: fp32 or fp64 [N, ...], contiguous.
        dtype: of the result.

    Returns:
        [...], rounded once.
    """
    sums = torch.empty(partial.shape[1:], dtype=dtype, device=partial.device)
    columns = sums.numel()
    _column_sums[(triton.cdiv(columns, _COLUMNS),)](
        *(partial, sums, partial.shape[0], columns),
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        ACC=triton_accumulator(partial),
        num_warps=4,
        **FUSED,
    )
    return sums
