"""Triton kernels for packed bidirectional attention with ALiBi, forward and backward.

What makes them fast at an encoder's lengths is what they leave out. Up to 128 tokens one program
holds a whole (sequence, head): its keys and values are loaded once, the softmax sees whole rows, so
there is no online rescaling, and the backward pass is one kernel that keeps nothing from the
forward pass but the QKV tensor. Longer sequences are tiled in the way of FlashAttention-2
(arXiv 2307.08691): the forward pass keeps a log-sum per row, the backward pass is one kernel over
queries and one over keys.

The QKV tensor is read where Megatron's matmul leaves it, [T, head, (q, k, v), D], and its gradient
is written in that layout: nothing is permuted, split or concatenated. No program adds to what
another one writes, so the backward pass repeats to the bit. Rows behind the last sequence are
written as zeros. A sequence longer than the promised maximum gives NaN: the host cannot look
without waiting for the device, and cutting it would be silently wrong.

`TRITON_INTERPRET=1`, set before this module is imported, runs the kernels on the CPU.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.attention import is_whole

_LOG2_E = tl.constexpr(1.4426950408889634)
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _tile(Base, row, rows_end, row_stride, columns, COLUMNS: tl.constexpr):
    """[rows, columns] of a row-major tensor; zeros outside."""
    inside = (row < rows_end)[:, None] & (columns < COLUMNS)[None, :]
    at = row.to(tl.int64)[:, None] * row_stride + columns[None, :]
    return tl.load(Base + at, inside, 0.0)


@triton.jit
def _store_tile(Base, row, rows_end, row_stride, columns, COLUMNS: tl.constexpr, tile):
    inside = (row < rows_end)[:, None] & (columns < COLUMNS)[None, :]
    at = row.to(tl.int64)[:, None] * row_stride + columns[None, :]
    tl.store(Base + at, tile.to(Base.dtype.element_ty), inside)


@triton.jit
def _fill(Base, first, rows_end, step, row_stride, columns, COLUMNS: tl.constexpr, ROWS, value):
    """Write `value` into rows [first, rows_end), `ROWS` at a time, advancing by `step`."""
    for begin in range(first, rows_end, step):
        row = begin + tl.arange(0, ROWS)
        tile = tl.full([ROWS, columns.shape[0]], value, tl.float32)
        _store_tile(Base, row, rows_end, row_stride, columns, COLUMNS, tile)


@triton.jit
def _dot(a, b, ACC: tl.constexpr):
    if _INTERPRETED:  # the interpreter multiplies the bit patterns of bf16 numbers
        a, b = a.to(ACC), b.to(ACC)
    # fp32 is meant as fp32: no TF32.
    return tl.dot(a, b, input_precision="ieee", out_dtype=ACC)


@triton.jit
def _scores(q, k, query, key, keys_end, slope, scale, ACC: tl.constexpr):
    """Scores times log2(e), so that exp2 gives the weights; -inf on keys behind the sequence."""
    scores = _dot(q, tl.trans(k), ACC) * (scale * _LOG2_E)
    distance = tl.abs(query[:, None] - key[None, :]).to(ACC)
    scores -= (slope * _LOG2_E) * distance
    return tl.where((key < keys_end)[None, :], scores, float("-inf"))


@triton.jit
def _forward_whole(
    QKV, Slopes, Offsets, Out,
    sequences, tokens, scale,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr, QUERIES: tl.constexpr, ALIBI: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    sequence, head = program // HEADS, program % HEADS  # heads of a sequence side by side
    start, end = tl.load(Offsets + sequence), tl.load(Offsets + sequence + 1)
    last = tl.load(Offsets + sequences)
    columns = tl.arange(0, BLOCK_D)
    Q = QKV + head * 3 * D
    O = Out + head * D  # noqa: E741
    slope = tl.load(Slopes + head).to(ACC) if ALIBI else 0.0
    key = start + tl.arange(0, KEYS)
    if end - start > KEYS:
        _fill(O, start, end, QUERIES, HEADS * D, columns, D, QUERIES, float("nan"))
    else:
        k = _tile(Q + D, key, end, HEADS * 3 * D, columns, D)
        v = _tile(Q + 2 * D, key, end, HEADS * 3 * D, columns, D)
        for first in range(start, end, QUERIES):
            query = first + tl.arange(0, QUERIES)
            q = _tile(Q, query, end, HEADS * 3 * D, columns, D)
            scores = _scores(q, k, query, key, end, slope, scale, ACC)
            weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
            total = tl.sum(weights, 1)
            out = _dot(weights.to(v.dtype), v, ACC) * (1.0 / total)[:, None]
            _store_tile(O, query, end, HEADS * D, columns, D, out)
    tail = last + sequence * QUERIES
    _fill(O, tail, tokens, sequences * QUERIES, HEADS * D, columns, D, QUERIES, 0.0)


@triton.jit
def _backward_whole(
    QKV, Slopes, Offsets, DOut, DQKV,
    sequences, tokens, scale,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr, QUERIES: tl.constexpr, ALIBI: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    sequence, head = program // HEADS, program % HEADS
    start, end = tl.load(Offsets + sequence), tl.load(Offsets + sequence + 1)
    last = tl.load(Offsets + sequences)
    columns = tl.arange(0, BLOCK_D)
    Q, DQ = QKV + head * 3 * D, DQKV + head * 3 * D
    DO = DOut + head * D
    slope = tl.load(Slopes + head).to(ACC) if ALIBI else 0.0
    key = start + tl.arange(0, KEYS)
    k = _tile(Q + D, key, end, HEADS * 3 * D, columns, D)
    v = _tile(Q + 2 * D, key, end, HEADS * 3 * D, columns, D)
    dk = tl.zeros([KEYS, BLOCK_D], ACC)
    dv = tl.zeros([KEYS, BLOCK_D], ACC)
    for first in range(start, end, QUERIES):
        query = first + tl.arange(0, QUERIES)
        q = _tile(Q, query, end, HEADS * 3 * D, columns, D)
        do = _tile(DO, query, end, HEADS * D, columns, D)
        scores = _scores(q, k, query, key, end, slope, scale, ACC)
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        weights = weights * (1.0 / tl.sum(weights, 1))[:, None]
        dv += _dot(tl.trans(weights.to(do.dtype)), do, ACC)
        d_weights = _dot(do, tl.trans(v), ACC)
        # The whole row is here: no need for the output to know its product with the gradient.
        delta = tl.sum(weights * d_weights, 1)
        d_scores = (weights * (d_weights - delta[:, None])).to(k.dtype)
        _store_tile(DQ, query, end, HEADS * 3 * D, columns, D, _dot(d_scores, k, ACC) * scale)
        dk += _dot(tl.trans(d_scores), q, ACC)
    _store_tile(DQ + D, key, end, HEADS * 3 * D, columns, D, dk * scale)
    _store_tile(DQ + 2 * D, key, end, HEADS * 3 * D, columns, D, dv)
    tail, step = last + sequence * QUERIES, sequences * QUERIES
    for part in tl.static_range(3):
        _fill(DQ + part * D, tail, tokens, step, HEADS * 3 * D, columns, D, QUERIES, 0.0)


@triton.jit
def _place(Offsets, tiles, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """Which tile of which head of which sequence this program has, and the sequence's bounds."""
    program = tl.program_id(0)
    head, rest = program % HEADS, program // HEADS
    sequence, tile = rest // tiles, rest % tiles
    start, end = tl.load(Offsets + sequence), tl.load(Offsets + sequence + 1)
    return head, sequence, tile, start, end, start + tile * ROWS + tl.arange(0, ROWS)


@triton.jit
def _forward_tiled(
    QKV, Slopes, Offsets, Out, LogSums,
    sequences, tokens, tiles, scale,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr, QUERIES: tl.constexpr, ALIBI: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    head, sequence, tile, start, end, query = _place(Offsets, tiles, HEADS, QUERIES)
    last = tl.load(Offsets + sequences)
    columns = tl.arange(0, BLOCK_D)
    Q = QKV + head * 3 * D
    O = Out + head * D  # noqa: E741
    slope = tl.load(Slopes + head).to(ACC) if ALIBI else 0.0
    if end - start > tiles * QUERIES:
        first, step = start + tile * QUERIES, tiles * QUERIES
        _fill(O, first, end, step, HEADS * D, columns, D, QUERIES, float("nan"))
    elif start + tile * QUERIES < end:
        q = _tile(Q, query, end, HEADS * 3 * D, columns, D)
        largest = tl.full([QUERIES], float("-inf"), ACC)
        total = tl.zeros([QUERIES], ACC)
        out = tl.zeros([QUERIES, BLOCK_D], ACC)
        for first in range(start, end, KEYS):
            key = first + tl.arange(0, KEYS)
            k = _tile(Q + D, key, end, HEADS * 3 * D, columns, D)
            v = _tile(Q + 2 * D, key, end, HEADS * 3 * D, columns, D)
            scores = _scores(q, k, query, key, end, slope, scale, ACC)
            above = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp2(scores - above[:, None])
            shrink = tl.exp2(largest - above)
            total = total * shrink + tl.sum(weights, 1)
            out = out * shrink[:, None] + _dot(weights.to(v.dtype), v, ACC)
            largest = above
        _store_tile(O, query, end, HEADS * D, columns, D, out * (1.0 / total)[:, None])
        tl.store(LogSums + head * tokens + query, largest + tl.log2(total), query < end)
    tail = last + (sequence * tiles + tile) * QUERIES
    _fill(O, tail, tokens, sequences * tiles * QUERIES, HEADS * D, columns, D, QUERIES, 0.0)


@triton.jit
def _backward_queries(
    QKV, Slopes, Offsets, Out, LogSums, DOut, DQKV, Deltas,
    sequences, tokens, tiles, scale,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr, QUERIES: tl.constexpr, ALIBI: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries; also the row sums that the keys' kernel needs."""
    head, sequence, tile, start, end, query = _place(Offsets, tiles, HEADS, QUERIES)
    last = tl.load(Offsets + sequences)
    columns = tl.arange(0, BLOCK_D)
    Q, DQ = QKV + head * 3 * D, DQKV + head * 3 * D
    slope = tl.load(Slopes + head).to(ACC) if ALIBI else 0.0
    if start + tile * QUERIES < end:
        q = _tile(Q, query, end, HEADS * 3 * D, columns, D)
        do = _tile(DOut + head * D, query, end, HEADS * D, columns, D)
        out = _tile(Out + head * D, query, end, HEADS * D, columns, D)
        delta = tl.sum(do.to(ACC) * out.to(ACC), 1)
        at = head * tokens + query
        tl.store(Deltas + at, delta, query < end)
        log_sum = tl.load(LogSums + at, query < end, 0.0)
        dq = tl.zeros([QUERIES, BLOCK_D], ACC)
        for first in range(start, end, KEYS):
            key = first + tl.arange(0, KEYS)
            k = _tile(Q + D, key, end, HEADS * 3 * D, columns, D)
            v = _tile(Q + 2 * D, key, end, HEADS * 3 * D, columns, D)
            scores = _scores(q, k, query, key, end, slope, scale, ACC)
            weights = tl.exp2(scores - log_sum[:, None])
            d_weights = _dot(do, tl.trans(v), ACC)
            d_scores = weights * (d_weights - delta[:, None])
            dq += _dot(d_scores.to(k.dtype), k, ACC)
        _store_tile(DQ, query, end, HEADS * 3 * D, columns, D, dq * scale)
    tail, step = last + (sequence * tiles + tile) * QUERIES, sequences * tiles * QUERIES
    for part in tl.static_range(3):
        _fill(DQ + part * D, tail, tokens, step, HEADS * 3 * D, columns, D, QUERIES, 0.0)


@triton.jit
def _backward_keys(
    QKV, Slopes, Offsets, LogSums, DOut, DQKV, Deltas,
    tokens, tiles, scale,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr, QUERIES: tl.constexpr, ALIBI: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys and values. Here the tiles are of keys."""
    head, sequence, tile, start, end, key = _place(Offsets, tiles, HEADS, KEYS)
    columns = tl.arange(0, BLOCK_D)
    Q, DQ = QKV + head * 3 * D, DQKV + head * 3 * D
    slope = tl.load(Slopes + head).to(ACC) if ALIBI else 0.0
    if start + tile * KEYS < end:
        k = _tile(Q + D, key, end, HEADS * 3 * D, columns, D)
        v = _tile(Q + 2 * D, key, end, HEADS * 3 * D, columns, D)
        dk = tl.zeros([KEYS, BLOCK_D], ACC)
        dv = tl.zeros([KEYS, BLOCK_D], ACC)
        for first in range(start, end, QUERIES):
            query = first + tl.arange(0, QUERIES)
            q = _tile(Q, query, end, HEADS * 3 * D, columns, D)
            do = _tile(DOut + head * D, query, end, HEADS * D, columns, D)
            at = head * tokens + query
            # Rows behind the sequence: their gradient is zero, their weights must be finite.
            log_sum = tl.load(LogSums + at, query < end, float("inf"))
            delta = tl.load(Deltas + at, query < end, 0.0)
            scores = _scores(q, k, query, key, end, slope, scale, ACC)
            weights = tl.exp2(scores - log_sum[:, None])
            dv += _dot(tl.trans(weights.to(do.dtype)), do, ACC)
            d_weights = _dot(do, tl.trans(v), ACC)
            d_scores = weights * (d_weights - delta[:, None])
            dk += _dot(tl.trans(d_scores.to(q.dtype)), q, ACC)
        _store_tile(DQ + D, key, end, HEADS * 3 * D, columns, D, dk * scale)
        _store_tile(DQ + 2 * D, key, end, HEADS * 3 * D, columns, D, dv)


def _options(qkv: Tensor, slopes: Tensor | None) -> dict[str, Any]:
    head_dim = qkv.shape[3]
    return dict(
        scale=1.0 / math.sqrt(head_dim),
        HEADS=qkv.shape[1],
        D=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),  # tl.dot needs at least 16
        ALIBI=slopes is not None,
        ACC=tl.float64 if qkv.dtype == torch.float64 else tl.float32,
    )


# Tiles follow from shape and GPU alone: tuning at run time would make the rounding differ between
# runs. Those of the backward pass are the ones with which ptxas spills least (see
# tests/model/compile_kernels.py) and, on Hopper, two programs fit into a multiprocessor: one loads
# while the other computes. Not one was timed on a GPU yet.
def _whole_options(qkv: Tensor, max_length: int, *, backward: bool) -> dict[str, Any]:
    keys = max(16, triton.next_power_of_2(max_length))
    options: dict[str, Any] = dict(KEYS=keys, QUERIES=min(keys, 64), num_warps=4, num_stages=1)
    if backward and keys > 64:
        options |= dict(QUERIES=32, num_warps=8)
        if _capability(qkv.device) >= (9, 0):
            options |= dict(QUERIES=16, maxnreg=128)
    elif backward:
        options |= dict(QUERIES=min(keys, 32))
    return options


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    """The one to compile for."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)
    arch = 90 if _INTERPRETED.value else int(triton.runtime.driver.active.get_current_target().arch)
    return divmod(arch, 10)


def _tiled_options(head_dim: int) -> dict[str, Any]:
    return dict(QUERIES=64, KEYS=64, num_warps=4 if head_dim <= 64 else 8, num_stages=2)


def _forward(
    qkv: Tensor, offsets: Tensor, slopes: Tensor | None, max_length: int
) -> tuple[Tensor, Tensor]:
    """The output, and what the backward pass needs besides `qkv`: the rows' log-sums (base 2) fp32
    [H, T] for long sequences, otherwise nothing, [0].
    """
    tokens, heads, _, head_dim = qkv.shape
    sequences = offsets.shape[0] - 1
    out = qkv.new_empty(tokens, heads, head_dim)
    options = _options(qkv, slopes)
    if is_whole(max_length, head_dim):
        _forward_whole[(sequences * heads,)](
            *(qkv, slopes, offsets, out, sequences, tokens),
            **options,
            **_whole_options(qkv, max_length, backward=False),
        )
        return out, _accumulators(qkv, 0)
    log_sums = _accumulators(qkv, heads, tokens).zero_()  # rows behind the last sequence, too
    tiled = _tiled_options(head_dim)
    tiles = triton.cdiv(max_length, tiled["QUERIES"])
    _forward_tiled[(sequences * tiles * heads,)](
        *(qkv, slopes, offsets, out, log_sums, sequences, tokens, tiles), **options, **tiled
    )
    return out, log_sums


def _backward(
    d_out: Tensor,
    qkv: Tensor,
    offsets: Tensor,
    slopes: Tensor | None,
    out: Tensor | None,
    log_sums: Tensor | None,
    max_length: int,
) -> Tensor:
    """Gradient of `qkv`, in its layout. `out` and `log_sums` may be None where one program holds a
    sequence.
    """
    tokens, heads, _, head_dim = qkv.shape
    sequences = offsets.shape[0] - 1
    d_out, d_qkv = d_out.contiguous(), torch.empty_like(qkv)
    options = _options(qkv, slopes)
    if is_whole(max_length, head_dim):
        _backward_whole[(sequences * heads,)](
            *(qkv, slopes, offsets, d_out, d_qkv, sequences, tokens),
            **options,
            **_whole_options(qkv, max_length, backward=True),
        )
        return d_qkv
    tiled = _tiled_options(head_dim)
    tiles = triton.cdiv(max_length, tiled["QUERIES"])
    grid = (sequences * tiles * heads,)
    deltas = _accumulators(qkv, heads, tokens)
    _backward_queries[grid](
        *(qkv, slopes, offsets, out, log_sums, d_out, d_qkv, deltas, sequences, tokens, tiles),
        **options,
        **tiled,
    )
    _backward_keys[grid](
        *(qkv, slopes, offsets, log_sums, d_out, d_qkv, deltas, tokens, tiles), **options, **tiled
    )
    return d_qkv


def _accumulators(qkv: Tensor, *shape: int) -> Tensor:
    dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    return torch.empty(shape, dtype=dtype, device=qkv.device)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    qkv, offsets, slopes, ctx.max_length = inputs
    kept = (None, None) if is_whole(ctx.max_length, qkv.shape[3]) else output
    ctx.save_for_backward(qkv, offsets, slopes, *kept)


# What torch.compile sees: two operators that it leaves alone.
attention_op = torch.library.custom_op("rapidbert::packed_attention", _forward, mutates_args=())
_backward_op = torch.library.custom_op(
    "rapidbert::packed_attention_backward", _backward, mutates_args=()
)


@attention_op.register_fake
def _(qkv, offsets, slopes, max_length):
    tokens, heads, _, head_dim = qkv.shape
    log_sums = (0,) if is_whole(max_length, head_dim) else (heads, tokens)
    return qkv.new_empty(tokens, heads, head_dim), _accumulators(qkv, *log_sums)


@_backward_op.register_fake
def _(d_out, qkv, offsets, slopes, out, log_sums, max_length):
    return torch.empty_like(qkv)


def _compiled_backward(ctx: Any, d_out: Tensor, _: Any) -> tuple:
    return _backward_op(d_out, *ctx.saved_tensors, ctx.max_length), None, None, None


attention_op.register_autograd(_compiled_backward, setup_context=_save)


class _Attention(torch.autograd.Function):
    """The same without the dispatcher, whose detours cost as much as two launches."""

    @staticmethod
    def forward(ctx: Any, qkv, offsets, slopes, max_length):
        output = _forward(qkv, offsets, slopes, max_length)
        _save(ctx, (qkv, offsets, slopes, max_length), output)
        return output[0]

    @staticmethod
    def backward(ctx: Any, d_out):
        qkv, offsets, slopes, out, log_sums = ctx.saved_tensors
        d_qkv = _backward(d_out, qkv, offsets, slopes, out, log_sums, ctx.max_length)
        return d_qkv, None, None, None


def attention(qkv: Tensor, offsets: Tensor, slopes: Tensor | None, max_length: int) -> Tensor:
    """Attention of every token to the tokens of its own sequence.

    Args:
        qkv: [T, H, 3, D], contiguous.
        offsets: int32 [S+1].
        slopes: fp32 [H] or None.
        max_length: at least as long as every sequence.

    Returns:
        [T, H, D].
    """
    if torch.compiler.is_compiling():
        return attention_op(qkv, offsets, slopes, max_length)[0]
    return _Attention.apply(qkv, offsets, slopes, max_length)
