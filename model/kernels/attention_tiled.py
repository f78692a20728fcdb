"""Triton kernels of attention for long sequences: cut into tiles, as FlashAttention-2 does it.

See arXiv 2307.08691. The forward pass keeps a log-sum per row; the backward pass is one kernel over
queries and one over keys.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_parts import (
    accumulators,
    biased_scores,
    dot,
    fill_rows,
    load_tile,
    options,
    store_tile,
)


@triton.jit
def _place(Offsets, tiles, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """Find this program's head, sequence and tile, the sequence's bounds, and the tile's rows."""
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
    O = Out + head * D  # noqa: E741  # the paper's name
    slope = tl.load(Slopes + head).to(ACC) if ALIBI else 0.0
    if end - start > tiles * QUERIES:
        first, step = start + tile * QUERIES, tiles * QUERIES
        fill_rows(O, first, end, step, HEADS * D, columns, D, QUERIES, float("nan"))
    elif start + tile * QUERIES < end:
        q = load_tile(Q, query, end, HEADS * 3 * D, columns, D)
        largest = tl.full([QUERIES], float("-inf"), ACC)
        total = tl.zeros([QUERIES], ACC)
        out = tl.zeros([QUERIES, BLOCK_D], ACC)
        for first in range(start, end, KEYS):
            key = first + tl.arange(0, KEYS)
            k = load_tile(Q + D, key, end, HEADS * 3 * D, columns, D)
            v = load_tile(Q + 2 * D, key, end, HEADS * 3 * D, columns, D)
            scores = biased_scores(q, k, query, key, end, slope, scale, ACC)
            above = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp2(scores - above[:, None])
            shrink = tl.exp2(largest - above)
            total = total * shrink + tl.sum(weights, 1)
            out = out * shrink[:, None] + dot(weights.to(v.dtype), v, ACC)
            largest = above
        store_tile(O, query, end, HEADS * D, columns, D, out * (1.0 / total)[:, None])
        tl.store(LogSums + head * tokens + query, largest + tl.log2(total), query < end)
    tail = last + (sequence * tiles + tile) * QUERIES
    fill_rows(O, tail, tokens, sequences * tiles * QUERIES, HEADS * D, columns, D, QUERIES, 0.0)


@triton.jit
def _backward_queries(
    QKV, Slopes, Offsets, Out, LogSums, DOut, DQKV, Deltas,
    sequences, tokens, tiles, scale,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr, QUERIES: tl.constexpr, ALIBI: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the queries, and the row sums that the keys' kernel needs."""
    head, sequence, tile, start, end, query = _place(Offsets, tiles, HEADS, QUERIES)
    last = tl.load(Offsets + sequences)
    columns = tl.arange(0, BLOCK_D)
    Q, DQ = QKV + head * 3 * D, DQKV + head * 3 * D
    slope = tl.load(Slopes + head).to(ACC) if ALIBI else 0.0
    if start + tile * QUERIES < end:
        q = load_tile(Q, query, end, HEADS * 3 * D, columns, D)
        do = load_tile(DOut + head * D, query, end, HEADS * D, columns, D)
        out = load_tile(Out + head * D, query, end, HEADS * D, columns, D)
        delta = tl.sum(do.to(ACC) * out.to(ACC), 1)
        at = head * tokens + query
        tl.store(Deltas + at, delta, query < end)
        log_sum = tl.load(LogSums + at, query < end, 0.0)
        dq = tl.zeros([QUERIES, BLOCK_D], ACC)
        for first in range(start, end, KEYS):
            key = first + tl.arange(0, KEYS)
            k = load_tile(Q + D, key, end, HEADS * 3 * D, columns, D)
            v = load_tile(Q + 2 * D, key, end, HEADS * 3 * D, columns, D)
            scores = biased_scores(q, k, query, key, end, slope, scale, ACC)
            weights = tl.exp2(scores - log_sum[:, None])
            d_weights = dot(do, tl.trans(v), ACC)
            d_scores = weights * (d_weights - delta[:, None])
            dq += dot(d_scores.to(k.dtype), k, ACC)
        store_tile(DQ, query, end, HEADS * 3 * D, columns, D, dq * scale)
    tail, step = last + (sequence * tiles + tile) * QUERIES, sequences * tiles * QUERIES
    for part in tl.static_range(3):
        fill_rows(DQ + part * D, tail, tokens, step, HEADS * 3 * D, columns, D, QUERIES, 0.0)


@triton.jit
def _backward_keys(
    QKV, Slopes, Offsets, LogSums, DOut, DQKV, Deltas,
    tokens, tiles, scale,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr, QUERIES: tl.constexpr, ALIBI: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the keys and values. Here a tile is of keys."""
    head, _sequence, tile, start, end, key = _place(Offsets, tiles, HEADS, KEYS)
    columns = tl.arange(0, BLOCK_D)
    Q, DQ = QKV + head * 3 * D, DQKV + head * 3 * D
    slope = tl.load(Slopes + head).to(ACC) if ALIBI else 0.0
    if start + tile * KEYS < end:
        k = load_tile(Q + D, key, end, HEADS * 3 * D, columns, D)
        v = load_tile(Q + 2 * D, key, end, HEADS * 3 * D, columns, D)
        dk = tl.zeros([KEYS, BLOCK_D], ACC)
        dv = tl.zeros([KEYS, BLOCK_D], ACC)
        for first in range(start, end, QUERIES):
            query = first + tl.arange(0, QUERIES)
            q = load_tile(Q, query, end, HEADS * 3 * D, columns, D)
            do = load_tile(DOut + head * D, query, end, HEADS * D, columns, D)
            at = head * tokens + query
            # Rows behind the sequence: their gradient is zero, their weights must be finite.
            log_sum = tl.load(LogSums + at, query < end, float("inf"))
            delta = tl.load(Deltas + at, query < end, 0.0)
            scores = biased_scores(q, k, query, key, end, slope, scale, ACC)
            weights = tl.exp2(scores - log_sum[:, None])
            dv += dot(tl.trans(weights.to(do.dtype)), do, ACC)
            d_weights = dot(do, tl.trans(v), ACC)
            d_scores = weights * (d_weights - delta[:, None])
            dk += dot(tl.trans(d_scores.to(q.dtype)), q, ACC)
        store_tile(DQ + D, key, end, HEADS * 3 * D, columns, D, dk * scale)
        store_tile(DQ + 2 * D, key, end, HEADS * 3 * D, columns, D, dv)


# As in `attention_short`: chosen by the instructions and barriers of the compiled code.
def _tiles(qkv: Tensor, *, keys: bool = False) -> dict[str, Any]:
    """Return the tiles of the kernels over queries, or of the one over keys."""
    if qkv.element_size() > 2:
        return dict(QUERIES=32, KEYS=32, num_warps=8, num_stages=1)
    if qkv.shape[3] > 64:
        return dict(QUERIES=64, KEYS=64, num_warps=8, num_stages=1)
    if keys:
        return dict(QUERIES=128, KEYS=128, num_warps=8, num_stages=1)
    return dict(QUERIES=128, KEYS=64, num_warps=4, num_stages=2)


def forward(
    qkv: Tensor, offsets: Tensor, slopes: Tensor | None, max_length: int
) -> tuple[Tensor, Tensor]:
    """Turn QKV [T, H, 3, D] into the output [T, H, D] and log-sums (base 2), fp32 [H, T]."""
    tokens, heads, _, head_dim = qkv.shape
    sequences = offsets.shape[0] - 1
    out = qkv.new_empty(tokens, heads, head_dim)
    log_sums = accumulators(qkv, heads, tokens).zero_()  # rows behind the last sequence, too
    tiled = _tiles(qkv)
    tiles = triton.cdiv(max_length, tiled["QUERIES"])
    _forward_tiled[(sequences * tiles * heads,)](
        *(qkv, slopes, offsets, out, log_sums, sequences, tokens, tiles),
        **options(qkv, slopes),
        **tiled,
    )
    return out, log_sums


def backward(
    d_out: Tensor,
    qkv: Tensor,
    offsets: Tensor,
    slopes: Tensor | None,
    out: Tensor,
    log_sums: Tensor,
    max_length: int,
) -> Tensor:
    """Return the gradient of `qkv`, in its layout; `d_out` [T, H, D] is contiguous."""
    tokens, heads = qkv.shape[:2]
    sequences = offsets.shape[0] - 1
    d_qkv = torch.empty_like(qkv)
    deltas = accumulators(qkv, heads, tokens)
    tiled = _tiles(qkv)
    tiles = triton.cdiv(max_length, tiled["QUERIES"])
    _backward_queries[(sequences * tiles * heads,)](
        *(qkv, slopes, offsets, out, log_sums, d_out, d_qkv, deltas, sequences, tokens, tiles),
        **options(qkv, slopes),
        **tiled,
    )
    tiled = _tiles(qkv, keys=True)
    tiles = triton.cdiv(max_length, tiled["KEYS"])
    _backward_keys[(sequences * tiles * heads,)](
        *(qkv, slopes, offsets, log_sums, d_out, d_qkv, deltas, tokens, tiles),
        **options(qkv, slopes),
        **tiled,
    )
    return d_qkv
