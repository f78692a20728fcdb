"""What the short and the tiled attention kernels are made of.

Legend for the kernels: a *tile* is [rows, columns] of a row-major tensor in memory; the rows are
tokens, the columns one head's D dimensions, rounded up to a power of two (BLOCK_D).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import FUSED, accumulator, triton_accumulator

_LOG2_E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def load_tile(Base, row, rows_end, row_stride, columns, COLUMNS: tl.constexpr):
    """Load [rows, columns] of a row-major tensor, with zeros where it ends."""
    inside = (row < rows_end)[:, None] & (columns < COLUMNS)[None, :]
    at = row.to(tl.int64)[:, None] * row_stride + columns[None, :]
    return tl.load(Base + at, inside, 0.0)


@triton.jit
def store_tile(Base, row, rows_end, row_stride, columns, COLUMNS: tl.constexpr, tile):
    inside = (row < rows_end)[:, None] & (columns < COLUMNS)[None, :]
    at = row.to(tl.int64)[:, None] * row_stride + columns[None, :]
    tl.store(Base + at, tile.to(Base.dtype.element_ty), inside)


@triton.jit
def fill_rows(Base, first, rows_end, step, row_stride, columns, COLUMNS: tl.constexpr, ROWS, value):
    """Write `value` into rows [first, rows_end), `ROWS` at a time, advancing by `step`."""
    for begin in range(first, rows_end, step):
        row = begin + tl.arange(0, ROWS)
        tile = tl.full([ROWS, columns.shape[0]], value, tl.float32)
        store_tile(Base, row, rows_end, row_stride, columns, COLUMNS, tile)


@triton.jit
def dot(a, b, ACC: tl.constexpr):
    if INTERPRETED:  # the interpreter multiplies the bit patterns of bf16 numbers
        a, b = a.to(ACC), b.to(ACC)
    # fp32 is meant as fp32: no TF32.
    return tl.dot(a, b, input_precision="ieee", out_dtype=ACC)


@triton.jit
def biased_scores(q, k, query, key, keys_end, slope, scale, ACC: tl.constexpr):
    """Compute log2(e) times the scores, for exp2 to give the weights; -inf behind the end."""
    scores = dot(q, tl.trans(k), ACC) * (scale * _LOG2_E)
    distance = tl.abs(query[:, None] - key[None, :]).to(ACC)
    scores -= (slope * _LOG2_E) * distance
    return tl.where((key < keys_end)[None, :], scores, float("-inf"))


def options(qkv: Tensor, slopes: Tensor | None) -> dict[str, Any]:
    """Return the launch options that follow from QKV [T, H, 3, D] and whether there are slopes."""
    head_dim = qkv.shape[3]
    return dict(
        scale=1.0 / math.sqrt(head_dim),
        HEADS=qkv.shape[1],
        D=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),  # tl.dot needs at least 16
        ALIBI=slopes is not None,
        ACC=triton_accumulator(qkv),
        **FUSED,
    )


def accumulators(qkv: Tensor, *shape: int) -> Tensor:
    """Make uninitialised memory for sums, on the device of `qkv`."""
    return torch.empty(shape, dtype=accumulator(qkv), device=qkv.device)
