"""Triton kernel of dropout by itself, and the masks that the other kernels compute alike.

A mask is a hash (see `hashed_dropout`): computed where it is needed, never stored.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .hashed_dropout import threshold
from .launch import FUSED, VARYING, triton_accumulator


@triton.jit
def _mix(x):
    """Apply MurmurHash3's finalizer to uint32 numbers."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def kept_units(key, site, columns, THRESHOLD: tl.constexpr):
    """Compute `hashed_dropout.keep_mask` for one row: key int64, columns int32 [N]."""
    low, high = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    a = _mix(low ^ (site.to(tl.uint32) * 0x9E3779B9))
    b = _mix(high ^ a)
    x = (columns.to(tl.uint32) * 0x9E3779B9) ^ a
    x = (x ^ (x >> 16)) * 0x85EBCA6B + b
    return (x ^ (x >> 13)) * 0xC2B2AE35 >= THRESHOLD


@triton.jit(do_not_specialize=VARYING)
def _dropout(
    X, Keys, Y, columns_in_all, site, scale,
    BLOCK: tl.constexpr, THRESHOLD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < columns_in_all
    at = row * columns_in_all + columns
    kept = kept_units(tl.load(Keys + row), site, columns, THRESHOLD)
    y = tl.where(kept, tl.load(X + at, inside, 0.0).to(ACC) * scale, 0.0)
    tl.store(Y + at, y.to(Y.dtype.element_ty), inside)


class Dropout(torch.autograd.Function):
    """Gives `operations.dropout` its gradient, which computes the mask anew: none is stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float, keys: Tensor, site: int) -> Tensor:
        ctx.options = probability, site
        ctx.save_for_backward(keys)
        return _drop(x, probability, keys, site)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        probability, site = ctx.options
        (keys,) = ctx.saved_tensors
        return _drop(dy, probability, keys, site), None, None, None


def _drop(x: Tensor, probability: float, keys: Tensor, site: int) -> Tensor:
    x = x.contiguous()
    y, columns = torch.empty_like(x), x.shape[-1]
    _dropout[(x.numel() // columns,)](
        *(x, keys, y, columns, site, 1.0 / (1.0 - probability)),
        BLOCK=triton.next_power_of_2(columns),
        THRESHOLD=threshold(probability),
        ACC=triton_accumulator(x),
        num_warps=4,
        **FUSED,
    )
    return y
