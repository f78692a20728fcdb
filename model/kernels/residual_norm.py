"""Triton kernels for the operations around the matmuls: one pass over memory in each direction.

Masks of dropout are hashes (`hashed_dropout`): computed where they are needed, never stored.
Sums are fp32 (fp64 for fp64 tensors, which gradient checks use), and nothing adds in an order that
depends on scheduling, so results repeat to the bit on one kind of device.

`TRITON_INTERPRET=1`, set before this module is imported, runs the kernels on the CPU.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.hashed_dropout import threshold

# Of the embedding widths and feed-forwards here one row is one to four tiles of this many columns.
_GLU_COLUMNS = 1024
_VOCABULARY_COLUMNS = 4096
# Arguments that differ from layer to layer: one compiled kernel serves all values, 1 included.
_NUMBERS = ("site", "first_column")


@triton.jit
def _mix(x):
    """MurmurHash3's finalizer, uint32."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _kept(key, site, columns, THRESHOLD: tl.constexpr):
    """`hashed_dropout.keep_mask` for one row: key int64, columns int32 [N]."""
    low, high = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    a = _mix(low ^ (site.to(tl.uint32) * 0x9E3779B9))
    b = _mix(high ^ a)
    x = (columns.to(tl.uint32) * 0x9E3779B9) ^ a
    x = (x ^ (x >> 16)) * 0x85EBCA6B + b
    return (x ^ (x >> 13)) * 0xC2B2AE35 >= THRESHOLD


@triton.jit(do_not_specialize=_NUMBERS)
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
        x = tl.where(_kept(tl.load(Keys + row), site, columns, THRESHOLD), x * scale, 0.0)
    z = (x + tl.load(Residual + at, inside, 0.0).to(ACC)).to(Z.dtype.element_ty)
    tl.store(Z + at, z, inside)
    # The backward pass has the rounded sum, so the statistics must be of the rounded one.
    z = z.to(ACC)
    mean = tl.sum(z) / COLUMNS
    centred = tl.where(inside, z - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred) / COLUMNS + eps)
    tl.store(Y + at, (centred * rstd * weight + norm_bias).to(Y.dtype.element_ty), inside)
    tl.store(Mean + row, mean)
    tl.store(Rstd + row, rstd)


@triton.jit(do_not_specialize=_NUMBERS)
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
        rstd = tl.load(Rstd + row)
        centred = tl.load(Z + at, inside, 0.0).to(ACC) - tl.load(Mean + row)
        normal = tl.where(inside, centred * rstd, 0.0)
        d_weight += dy * normal
        d_norm_bias += dy
        dy *= weight
        along = tl.sum(dy * normal) / COLUMNS
        dz = (dy - tl.sum(dy) / COLUMNS - normal * along) * rstd
        tl.store(DZ + at, dz.to(DZ.dtype.element_ty), inside)
        if THRESHOLD:
            kept = _kept(tl.load(Keys + row), site, columns, THRESHOLD)
            dz = tl.where(kept, dz * scale, 0.0)
            tl.store(DX + at, dz.to(DX.dtype.element_ty), inside)
        d_bias += tl.where(inside, dz, 0.0)
    partial = Partial + program * 3 * COLUMNS + columns
    tl.store(partial, d_weight, inside)
    tl.store(partial + COLUMNS, d_norm_bias, inside)
    tl.store(partial + 2 * COLUMNS, d_bias, inside)


class ResidualNorm(torch.autograd.Function):
    """`operations.residual_norm`. Keeps the sum before the norm and two numbers per row."""

    @staticmethod
    def forward(ctx: Any, x, bias, residual, weight, norm_bias, eps, probability, keys, site):
        ctx.set_materialize_grads(False)
        x, residual = x.contiguous(), residual.contiguous()
        columns = x.shape[-1]
        rows = x.numel() // columns
        z, y = torch.empty_like(x), torch.empty_like(x)
        mean, rstd = torch.empty(2, rows, dtype=_accumulator(x), device=x.device).unbind()
        ctx.options = dict(
            site=site,
            scale=1.0 / (1.0 - probability),
            COLUMNS=columns,
            BLOCK=triton.next_power_of_2(columns),
            THRESHOLD=threshold(probability),
            ACC=_triton_accumulator(x),
            num_warps=2 if columns <= 1024 else 4,
        )
        _residual_norm_forward[(rows,)](
            x, bias, residual, weight, norm_bias, keys, z, y, mean, rstd, eps=eps, **ctx.options
        )
        ctx.save_for_backward(z, mean, rstd, weight, keys)
        ctx.dtypes = weight.dtype, norm_bias.dtype, bias.dtype
        return y, y.detach()  # two outputs, one memory

    @staticmethod
    def backward(ctx: Any, dy, dy2):
        z, mean, rstd, weight, keys = ctx.saved_tensors
        dropping = bool(ctx.options["THRESHOLD"])
        rows, columns = mean.shape[0], z.shape[-1]
        given = [d.contiguous() for d in (dy, dy2) if d is not None]
        if not given:
            return (None,) * 9
        dz = torch.empty_like(z)
        dx = torch.empty_like(z) if dropping else dz
        programs = min(rows, 6 * _multiprocessors(z.device))
        partial = torch.empty(programs, 3, columns, dtype=mean.dtype, device=z.device)
        _residual_norm_backward[(programs,)](
            given[0], given[-1], z, mean, rstd, weight, keys, dz, dx, partial,
            rows=rows, TWO=len(given) == 2, **ctx.options,
        )  # fmt: skip
        sums = zip(partial.sum(0), ctx.dtypes, strict=True)
        d_weight, d_norm_bias, d_bias = (total.to(dtype) for total, dtype in sums)
        return dx, d_bias, dz, d_weight, d_norm_bias, None, None, None, None


@triton.jit
def _gelu_and_slope(gate, ACC: tl.constexpr):
    """GELU in its erf form, and its derivative, which share one exponential.

    In fp32 the normal distribution is Abramowitz and Stegun's 7.1.26 (absolute error below 1.5e-7):
    with the library's erf these kernels would wait for arithmetic, not for memory.
    """
    bell = tl.exp(-0.5 * gate * gate)
    if ACC == tl.float64:
        cdf = 0.5 * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    else:
        t = 1.0 / (1.0 + 0.2316419 * tl.abs(gate))
        tail = 0.530702715 * t - 0.726576013
        tail = ((tail * t + 0.71070687) * t - 0.142248368) * t + 0.127414796
        tail = tail * t * bell
        cdf = tl.where(gate < 0, tail, 1.0 - tail)
    return gate * cdf, cdf + gate * 0.3989422804014327 * bell


@triton.jit(do_not_specialize=_NUMBERS)
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
        kept = _kept(tl.load(Keys + row), site, columns + first_column, THRESHOLD)
        inner = tl.where(kept, inner * scale, 0.0)
    tl.store(Inner + row * columns_in_all + columns, inner.to(Inner.dtype.element_ty), inside)


@triton.jit(do_not_specialize=_NUMBERS)
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
        kept = _kept(tl.load(Keys + row), site, columns + first_column, THRESHOLD)
        d_inner = tl.where(kept, d_inner * scale, 0.0)
    gelu, slope = _gelu_and_slope(gate, ACC)
    tl.store(DGate + at, (d_inner * value * slope).to(DGate.dtype.element_ty), inside)
    tl.store(DValue + at, (d_inner * gelu).to(DValue.dtype.element_ty), inside)


def _launch_gated_gelu(kernel, gate: Tensor, others: tuple[Tensor | None, ...], columns, options):
    probability, site, first_column = options
    rows = gate.numel() // gate.shape[-1]
    kernel[(rows, triton.cdiv(columns, _GLU_COLUMNS))](
        *others,
        row_stride=gate.stride(-2),
        columns_in_all=columns,
        site=site,
        first_column=first_column,
        scale=1.0 / (1.0 - probability),
        BLOCK=min(_GLU_COLUMNS, triton.next_power_of_2(columns)),
        THRESHOLD=threshold(probability),
        ACC=_triton_accumulator(gate),
        num_warps=4,
    )


class GatedGelu(torch.autograd.Function):
    """`operations.gated_gelu` on the output of one matmul; the gradient is one tensor, too."""

    @staticmethod
    def forward(ctx: Any, gate_and_value, probability, keys, site, first_column):
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
    def backward(ctx: Any, d_inner):
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
    """`operations.gated_gelu` where gate and value come out of two matmuls."""

    @staticmethod
    def forward(ctx: Any, gate, value, probability, keys, site, first_column):
        gate, value = gate.contiguous(), value.contiguous()
        inner = torch.empty_like(gate)
        ctx.options = probability, site, first_column
        ctx.save_for_backward(gate, value, keys)
        _launch_gated_gelu(
            _gated_gelu_forward, gate, (gate, value, keys, inner), gate.shape[-1], ctx.options
        )
        return inner

    @staticmethod
    def backward(ctx: Any, d_inner):
        gate, value, keys = ctx.saved_tensors
        d_gate, d_value = torch.empty_like(gate), torch.empty_like(value)
        tensors = (gate, value, keys, d_inner.contiguous(), d_gate, d_value)
        _launch_gated_gelu(_gated_gelu_backward, gate, tensors, gate.shape[-1], ctx.options)
        return d_gate, d_value, None, None, None, None


@triton.jit(do_not_specialize=_NUMBERS)
def _dropout(
    X, Keys, Y, columns_in_all, site, scale,
    BLOCK: tl.constexpr, THRESHOLD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < columns_in_all
    at = row * columns_in_all + columns
    kept = _kept(tl.load(Keys + row), site, columns, THRESHOLD)
    y = tl.where(kept, tl.load(X + at, inside, 0.0).to(ACC) * scale, 0.0)
    tl.store(Y + at, y.to(Y.dtype.element_ty), inside)


class Dropout(torch.autograd.Function):
    """`operations.dropout`. Keeps nothing: the gradient passes through the same mask."""

    @staticmethod
    def forward(ctx: Any, x, probability, keys, site):
        ctx.options = probability, site
        ctx.save_for_backward(keys)
        return _drop(x, probability, keys, site)

    @staticmethod
    def backward(ctx: Any, dy):
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
        ACC=_triton_accumulator(x),
        num_warps=4,
    )
    return y


@triton.jit
def _cross_entropy_forward(
    Logits, Labels, Losses, LogSums,
    columns_in_all, ignored, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits = Logits + row * columns_in_all
    label = tl.load(Labels + row)
    largest = tl.full([BLOCK], float("-inf"), ACC)
    total = tl.zeros([BLOCK], ACC)
    for first in range(0, columns_in_all, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        x = tl.load(logits + columns, columns < columns_in_all, float("-inf")).to(ACC)
        above = tl.maximum(largest, x)
        # Lanes that have seen nothing yet: -inf - -inf is no number.
        base = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp(largest - base) + tl.exp(x - base)
        largest = above
    peak = tl.max(largest)
    log_sum = peak + tl.log(tl.sum(total * tl.exp(largest - peak)))
    counts = label != ignored
    picked = tl.load(logits + tl.where(counts, label, 0)).to(ACC)
    tl.store(Losses + row, tl.where(counts, log_sum - picked, 0.0))
    tl.store(LogSums + row, log_sum)


@triton.jit
def _cross_entropy_backward(
    Logits, Labels, LogSums, DLosses,
    columns_in_all, ignored, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient in the place of the logits."""
    row = tl.program_id(0).to(tl.int64)
    logits = Logits + row * columns_in_all
    label = tl.load(Labels + row)
    scale = tl.where(label != ignored, tl.load(DLosses + row).to(ACC), 0.0)
    log_sum = tl.load(LogSums + row)
    for first in range(0, columns_in_all, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < columns_in_all
        x = tl.load(logits + columns, inside, float("-inf")).to(ACC)
        d = (tl.exp(x - log_sum) - tl.where(columns == label, 1.0, 0.0)) * scale
        tl.store(logits + columns, d.to(Logits.dtype.element_ty), inside)


class CrossEntropy(torch.autograd.Function):
    """Losses [K] of logits [K, V], for which the backward pass needs no memory but the logits'."""

    @staticmethod
    def forward(ctx: Any, logits, labels, ignored):
        logits = logits.contiguous()
        rows, columns = logits.shape
        losses, log_sums = torch.empty(
            2, rows, dtype=_accumulator(logits), device=logits.device
        ).unbind()
        ctx.options = dict(
            columns_in_all=columns,
            ignored=ignored,
            BLOCK=min(_VOCABULARY_COLUMNS, triton.next_power_of_2(columns)),
            ACC=_triton_accumulator(logits),
            num_warps=8,
        )
        _cross_entropy_forward[(rows,)](logits, labels, losses, log_sums, **ctx.options)
        ctx.save_for_backward(logits, labels, log_sums)
        ctx.used = False
        return losses

    @staticmethod
    def backward(ctx: Any, d_losses):
        if ctx.used:
            raise RuntimeError("the logits are gone: their memory holds the gradient already")
        ctx.used = True
        logits, labels, log_sums = ctx.saved_tensors
        _cross_entropy_backward[(logits.shape[0],)](
            logits, labels, log_sums, d_losses.contiguous(), **ctx.options
        )
        return logits, None, None


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _triton_accumulator(tensor: Tensor) -> tl.dtype:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 1
