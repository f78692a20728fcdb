"""Triton kernels of dropout(gelu(gate) * value): one pass over memory in each direction."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dropout import kept_units
from .hashed_dropout import threshold
from .launch import FUSED, VARYING, triton_accumulator

# Of the feed-forwards here one row is three or more tiles of this many columns.
_COLUMNS = 1024


@triton.jit
def _gelu_and_slope(gate, ACC: tl.constexpr):
    """Compute GELU in its erf form and its derivative, which share one exponential.

    In fp32 the normal distribution is Abramowitz and Stegun's 7.1.26 (absolute error below 1.5e-7),
    of operations that a GPU has instructions for: a power of two, and 1/d as 1/sqrt(d*d), which
    needs no care for small or large d. With a full division, or the library's erf, these kernels
    would wait for arithmetic, not for memory.
    """
    if tl.float64 == ACC:
        bell = tl.exp(-0.5 * gate * gate)
        cdf = 0.5 * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    else:
        bell = tl.exp2(gate * gate * -0.7213475204444817)  # log2(e) / 2
        d = 1.0 + 0.2316419 * tl.abs(gate)
        t = tl.rsqrt(d * d)
        tail = 0.530702715 * t - 0.726576013
        tail = ((tail * t + 0.71070687) * t - 0.142248368) * t + 0.127414796
        tail = tail * t * bell
        cdf = tl.where(gate < 0, tail, 1.0 - tail)
    return gate * cdf, cdf + gate * 0.3989422804014327 * bell


@triton.jit(do_not_specialize=VARYING)
def _gated_gelu_forward(
    Gate, Value, Keys, Inner,
    row_stride, columns_in_all, site, first_column, scale,
    BLOCK: tl.constexpr, THRESHOLD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < columns_in_all
    gate = tl.load(Gate + row * row_stride + columns, inside, 0.0).to(ACC)
    value = tl.load(Value + row * row_stride + columns, inside, 0.0).to(ACC)
    gelu, _ = _gelu_and_slope(gate, ACC)
    inner = gelu * value
    if THRESHOLD:
        kept = kept_units(tl.load(Keys + row), site, columns + first_column, THRESHOLD)
        inner = tl.where(kept, inner * scale, 0.0)
    tl.store(Inner + row * columns_in_all + columns, inner.to(Inner.dtype.element_ty), inside)


@triton.jit(do_not_specialize=VARYING)
def _gated_gelu_backward(
    Gate, Value, Keys, DInner, DGate, DValue,
    row_stride, columns_in_all, site, first_column, scale,
    BLOCK: tl.constexpr, THRESHOLD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < columns_in_all
    at = row * row_stride + columns
    gate = tl.load(Gate + at, inside, 0.0).to(ACC)
    value = tl.load(Value + at, inside, 0.0).to(ACC)
    d_inner = tl.load(DInner + row * columns_in_all + columns, inside, 0.0).to(ACC)
    if THRESHOLD:
        kept = kept_units(tl.load(Keys + row), site, columns + first_column, THRESHOLD)
        d_inner = tl.where(kept, d_inner * scale, 0.0)
    gelu, slope = _gelu_and_slope(gate, ACC)
    tl.store(DGate + at, (d_inner * value * slope).to(DGate.dtype.element_ty), inside)
    tl.store(DValue + at, (d_inner * gelu).to(DValue.dtype.element_ty), inside)


def _launch_gated_gelu(
    kernel: Any,
    gate: Tensor,
    others: tuple[Tensor | None, ...],
    columns: int,
    options: tuple[float, int, int],
) -> None:
    probability, site, first_column = options
    rows = gate.numel() // gate.shape[-1]
    kernel[(rows, triton.cdiv(columns, _COLUMNS))](
        *others,
        row_stride=gate.stride(-2),
        columns_in_all=columns,
        site=site,
        first_column=first_column,
        scale=1.0 / (1.0 - probability),
        BLOCK=min(_COLUMNS, triton.next_power_of_2(columns)),
        THRESHOLD=threshold(probability),
        ACC=triton_accumulator(gate),
        num_warps=4,
        **FUSED,
    )


class GatedGelu(torch.autograd.Function):
    """Compute `operations.gated_gelu` where one matmul gives gate and value side by side.

    Their gradient is one tensor as well.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gate_and_value: Tensor,
        probability: float,
        keys: Tensor | None,
        site: int,
        first_column: int,
    ) -> Tensor:
        both = gate_and_value.contiguous()
        columns = both.shape[-1] // 2
        inner = both.new_empty(*both.shape[:-1], columns)
        ctx.options = probability, site, first_column
        ctx.save_for_backward(both, keys)
        gate, value = both[..., :columns], both[..., columns:]
        _launch_gated_gelu(
            _gated_gelu_forward, gate, (gate, value, keys, inner), columns, ctx.options
        )
        return inner

    @staticmethod
    def backward(ctx: Any, d_inner: Tensor) -> tuple[Tensor | None, ...]:
        both, keys = ctx.saved_tensors
        columns = both.shape[-1] // 2
        d_both = torch.empty_like(both)
        gate = both[..., :columns]
        tensors = (
            *(gate, both[..., columns:], keys, d_inner.contiguous()),
            *(d_both[..., :columns], d_both[..., columns:]),
        )
        _launch_gated_gelu(_gated_gelu_backward, gate, tensors, columns, ctx.options)
        return d_both, None, None, None, None


class GatedGeluApart(torch.autograd.Function):
    """Compute `operations.gated_gelu` where the gate and the value are tensors of two matmuls."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        value: Tensor,
        probability: float,
        keys: Tensor | None,
        site: int,
        first_column: int,
    ) -> Tensor:
        gate, value = gate.contiguous(), value.contiguous()
        inner = torch.empty_like(gate)
        ctx.options = probability, site, first_column
        ctx.save_for_backward(gate, value, keys)
        _launch_gated_gelu(
            _gated_gelu_forward, gate, (gate, value, keys, inner), gate.shape[-1], ctx.options
        )
        return inner

    @staticmethod
    def backward(ctx: Any, d_inner: Tensor) -> tuple[Tensor | None, ...]:
        gate, value, keys = ctx.saved_tensors
        d_gate, d_value = torch.empty_like(gate), torch.empty_like(value)
        tensors = (gate, value, keys, d_inner.contiguous(), d_gate, d_value)
        _launch_gated_gelu(_gated_gelu_backward, gate, tensors, gate.shape[-1], ctx.options)
        return d_gate, d_value, None, None, None, None
