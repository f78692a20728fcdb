"""Triton kernels of LayerNorm(residual + dropout(x + bias)), one pass over memory each way.

Sums are fp32 (fp64 for fp64 tensors), and nothing adds in an order that depends on scheduling, so
results repeat to the bit on one kind of device.
"""

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


@triton.jit
def norm_of_row(z, weight, norm_bias, eps, inside, COLUMNS: tl.constexpr):
    """Compute LayerNorm of one row, and the mean and 1/deviation that it has used."""
    mean = tl.sum(z) / COLUMNS
    centred = tl.where(inside, z - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred) / COLUMNS + eps)
    return centred * rstd * weight + norm_bias, mean, rstd


@triton.jit
def through_norm(dy, z, mean, rstd, weight, inside, COLUMNS: tl.constexpr):
    """Compute the gradient over z from that over LayerNorm(z), and z without mean and scale."""
    normal = tl.where(inside, (z - mean) * rstd, 0.0)
    dy *= weight
    along = tl.sum(dy * normal) / COLUMNS
    return (dy - tl.sum(dy) / COLUMNS - normal * along) * rstd, normal


@triton.jit(do_not_specialize=VARYING)
def _residual_norm_forward(
    X, Bias, Residual, Weight, NormBias, Keys, Z, Y, Mean, Rstd,
    site, eps, scale,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, THRESHOLD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < COLUMNS
    at = row * COLUMNS + columns
    # Before the sums over the row, whose barriers no load is moved across.
    weight = tl.load(Weight + columns, inside, 0.0).to(ACC)
    norm_bias = tl.load(NormBias + columns, inside, 0.0).to(ACC)
    x = tl.load(X + at, inside, 0.0).to(ACC) + tl.load(Bias + columns, inside, 0.0).to(ACC)
    if THRESHOLD:
        x = tl.where(kept_units(tl.load(Keys + row), site, columns, THRESHOLD), x * scale, 0.0)
    z = (x + tl.load(Residual + at, inside, 0.0).to(ACC)).to(Z.dtype.element_ty)
    tl.store(Z + at, z, inside)
    # The backward pass has the rounded sum, so the statistics must be of the rounded one.
    y, mean, rstd = norm_of_row(z.to(ACC), weight, norm_bias, eps, inside, COLUMNS)
    tl.store(Y + at, y.to(Y.dtype.element_ty), inside)
    tl.store(Mean + row, mean)
    tl.store(Rstd + row, rstd)


@triton.jit(do_not_specialize=VARYING)
def _residual_norm_backward(
    DY1, DY2, Z, Mean, Rstd, Weight, Keys, DZ, DX, Partial,
    rows, site, scale,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, THRESHOLD: tl.constexpr, ACC: tl.constexpr,
    TWO: tl.constexpr,
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
        dy = tl.load(DY1 + at, inside, 0.0).to(ACC)
        if TWO:
            dy += tl.load(DY2 + at, inside, 0.0).to(ACC)
        z = tl.load(Z + at, inside, 0.0).to(ACC)
        mean, rstd = tl.load(Mean + row), tl.load(Rstd + row)
        dz, normal = through_norm(dy, z, mean, rstd, weight, inside, COLUMNS)
        d_weight += dy * normal
        d_norm_bias += dy
        tl.store(DZ + at, dz.to(DZ.dtype.element_ty), inside)
        if THRESHOLD:
            kept = kept_units(tl.load(Keys + row), site, columns, THRESHOLD)
            dz = tl.where(kept, dz * scale, 0.0)
            tl.store(DX + at, dz.to(DX.dtype.element_ty), inside)
        d_bias += tl.where(inside, dz, 0.0)
    partial = Partial + program * 3 * COLUMNS + columns
    tl.store(partial, d_weight, inside)
    tl.store(partial + COLUMNS, d_norm_bias, inside)
    tl.store(partial + 2 * COLUMNS, d_bias, inside)


def warps_and_programs(columns: int) -> tuple[int, int]:
    """Return the warps of a program of the backward pass, and the programs of a multiprocessor.

    One warp holds a whole row of up to 1,024 columns: it waits at no barrier, and eight of them, as
    many as there are registers for, keep twice the bytes under way that memory needs. Wider rows
    would spill. Chosen by the compiled code, not timed.
    """
    return (1, 8) if columns <= 1024 else (4, 3)


class ResidualNorm(torch.autograd.Function):
    """Gives `operations.residual_norm` its gradient; keeps the sum and two numbers per row."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor,
        residual: Tensor,
        weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        probability: float,
        keys: Tensor | None,
        site: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        x, residual = x.contiguous(), residual.contiguous()
        columns = x.shape[-1]
        rows = x.numel() // columns
        z, y = torch.empty_like(x), torch.empty_like(x)
        mean, rstd = torch.empty(2, rows, dtype=accumulator(x), device=x.device).unbind()
        ctx.options = dict(
            site=site,
            scale=1.0 / (1.0 - probability),
            COLUMNS=columns,
            BLOCK=triton.next_power_of_2(columns),
            THRESHOLD=threshold(probability),
            ACC=triton_accumulator(x),
            num_warps=2 if columns <= 1024 else 4,
            **FUSED,
        )
        _residual_norm_forward[(rows,)](
            x, bias, residual, weight, norm_bias, keys, z, y, mean, rstd, eps=eps, **ctx.options
        )
        ctx.save_for_backward(z, mean, rstd, weight, keys)
        return y, y.detach()  # two outputs, one memory

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dy2: Tensor | None) -> tuple[Tensor | None, ...]:
        z, mean, rstd, weight, keys = ctx.saved_tensors
        dropping = bool(ctx.options["THRESHOLD"])
        rows, columns = mean.shape[0], z.shape[-1]
        given = [d.contiguous() for d in (dy, dy2) if d is not None]
        if not given:
            return (None,) * 9
        dz = torch.empty_like(z)
        dx = torch.empty_like(z) if dropping else dz
        warps, programs = warps_and_programs(columns)
        programs = min(rows, programs * multiprocessors(z.device))
        partial = torch.empty(programs, 3, columns, dtype=mean.dtype, device=z.device)
        _residual_norm_backward[(programs,)](
            given[0], given[-1], z, mean, rstd, weight, keys, dz, dx, partial,
            rows=rows, TWO=len(given) == 2, **ctx.options | dict(num_warps=warps),
        )  # fmt: skip
        d_weight, d_norm_bias, d_bias = column_sums(partial, weight.dtype)
        return dx, d_bias, dz, d_weight, d_norm_bias, None, None, None, None
