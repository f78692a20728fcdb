"""Triton kernels of dropout(LayerNorm(x + bias)), one pass over memory each way."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .column_sums import column_sums
from .dropout import kept_units
from .hashed_dropout import threshold
from .launch import FUSED, VARYING, accumulator, multiprocessors, triton_accumulator
from .residual_norm import norm_of_row, through_norm, warps_and_programs


@triton.jit
def _biased(X, Bias, at, columns, inside, ACC: tl.constexpr, BIASED: tl.constexpr):
    """Load x + bias, rounded as PyTorch rounds it between its two operators."""
    x = tl.load(X + at, inside, 0.0)
    if BIASED:
        x = (x.to(ACC) + tl.load(Bias + columns, inside, 0.0).to(ACC)).to(X.dtype.element_ty)
    return x.to(ACC)


@triton.jit(do_not_specialize=VARYING)
def _norm_dropout_forward(
    X, Bias, Weight, NormBias, Keys, Y, Mean, Rstd,
    site, eps, scale,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, THRESHOLD: tl.constexpr, ACC: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < COLUMNS
    at = row * COLUMNS + columns
    weight = tl.load(Weight + columns, inside, 0.0).to(ACC)
    norm_bias = tl.load(NormBias + columns, inside, 0.0).to(ACC)
    z = _biased(X, Bias, at, columns, inside, ACC, BIASED)
    y, mean, rstd = norm_of_row(z, weight, norm_bias, eps, inside, COLUMNS)
    if THRESHOLD:
        y = tl.where(kept_units(tl.load(Keys + row), site, columns, THRESHOLD), y * scale, 0.0)
    tl.store(Y + at, y.to(Y.dtype.element_ty), inside)
    tl.store(Mean + row, mean)
    tl.store(Rstd + row, rstd)


@triton.jit(do_not_specialize=VARYING)
def _norm_dropout_backward(
    DY, X, Bias, Mean, Rstd, Weight, Keys, DX, Partial,
    rows, site, scale,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, THRESHOLD: tl.constexpr, ACC: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    """Each program takes every n-th row and leaves its sums for three parameters' gradients."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < COLUMNS
    weight = tl.load(Weight + columns, inside, 0.0).to(ACC)
    d_weight = tl.zeros([BLOCK], ACC)
    d_norm_bias = tl.zeros([BLOCK], ACC)
    d_bias = tl.zeros([BLOCK], ACC)
    for row in range(program, rows, programs):
        at = row * COLUMNS + columns
        dy = tl.load(DY + at, inside, 0.0).to(ACC)
        if THRESHOLD:
            kept = kept_units(tl.load(Keys + row), site, columns, THRESHOLD)
            dy = tl.where(kept, dy * scale, 0.0)
        z = _biased(X, Bias, at, columns, inside, ACC, BIASED)
        mean, rstd = tl.load(Mean + row), tl.load(Rstd + row)
        dz, normal = through_norm(dy, z, mean, rstd, weight, inside, COLUMNS)
        d_weight += dy * normal
        d_norm_bias += dy
        tl.store(DX + at, dz.to(DX.dtype.element_ty), inside)
        d_bias += tl.where(inside, dz, 0.0)
    partial = Partial + program * 3 * COLUMNS + columns
    tl.store(partial, d_weight, inside)
    tl.store(partial + COLUMNS, d_norm_bias, inside)
    tl.store(partial + 2 * COLUMNS, d_bias, inside)


class NormDropout(torch.autograd.Function):
    """Gives `operations.norm_dropout` its gradient; keeps the input and two numbers per row."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        probability: float,
        keys: Tensor | None,
        site: int,
    ) -> Tensor:
        x = x.contiguous()
        columns = x.shape[-1]
        rows = x.numel() // columns
        y = torch.empty_like(x)
        mean, rstd = torch.empty(2, rows, dtype=accumulator(x), device=x.device).unbind()
        ctx.options = dict(
            site=site,
            scale=1.0 / (1.0 - probability),
            COLUMNS=columns,
            BLOCK=triton.next_power_of_2(columns),
            THRESHOLD=threshold(probability),
            ACC=triton_accumulator(x),
            BIASED=bias is not None,
            num_warps=2 if columns <= 1024 else 4,
            **FUSED,
        )
        _norm_dropout_forward[(rows,)](
            x, bias, weight, norm_bias, keys, y, mean, rstd, eps=eps, **ctx.options
        )
        ctx.save_for_backward(x, bias, mean, rstd, weight, keys)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, mean, rstd, weight, keys = ctx.saved_tensors
        rows, columns = mean.shape[0], x.shape[-1]
        dx = torch.empty_like(x)
        warps, programs = warps_and_programs(columns)
        programs = min(rows, programs * multiprocessors(x.device))
        partial = torch.empty(programs, 3, columns, dtype=mean.dtype, device=x.device)
        _norm_dropout_backward[(programs,)](
            dy.contiguous(), x, bias, mean, rstd, weight, keys, dx, partial,
            rows=rows, **ctx.options | dict(num_warps=warps),
        )  # fmt: skip
        d_weight, d_norm_bias, d_bias = column_sums(partial, weight.dtype)
        d_bias = None if bias is None else d_bias
        return dx, d_bias, d_weight, d_norm_bias, None, None, None, None
