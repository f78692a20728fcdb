"""Triton kernels of attention for sequences of which one program holds the whole.

Up to 128 tokens one program holds a whole (sequence, head): its keys and values are loaded once,
the softmax sees whole rows, so there is no online rescaling, and the backward pass is one kernel
that keeps nothing from the forward pass but the QKV tensor.
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
    O = Out + head * D  # noqa: E741  # the paper's name
    slope = tl.load(Slopes + head).to(ACC) if ALIBI else 0.0
    key = start + tl.arange(0, KEYS)
    if end - start > KEYS:
        fill_rows(O, start, end, QUERIES, HEADS * D, columns, D, QUERIES, float("nan"))
    else:
        k = load_tile(Q + D, key, end, HEADS * 3 * D, columns, D)
        v = load_tile(Q + 2 * D, key, end, HEADS * 3 * D, columns, D)
        for first in range(start, end, QUERIES):
            query = first + tl.arange(0, QUERIES)
            q = load_tile(Q, query, end, HEADS * 3 * D, columns, D)
            scores = biased_scores(q, k, query, key, end, slope, scale, ACC)
            weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
            total = tl.sum(weights, 1)
            out = dot(weights.to(v.dtype), v, ACC) * (1.0 / total)[:, None]
            store_tile(O, query, end, HEADS * D, columns, D, out)
    tail = last + sequence * QUERIES
    fill_rows(O, tail, tokens, sequences * QUERIES, HEADS * D, columns, D, QUERIES, 0.0)


@triton.jit
def _backward_whole(
    QKV, Slopes, Offsets, DOut, DQKV, Partial,
    sequences, tokens, scale,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr, QUERIES: tl.constexpr, ALIBI: tl.constexpr, SUMS: tl.constexpr,
    ACC: tl.constexpr,
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
    k = load_tile(Q + D, key, end, HEADS * 3 * D, columns, D)
    v = load_tile(Q + 2 * D, key, end, HEADS * 3 * D, columns, D)
    dk = tl.zeros([KEYS, BLOCK_D], ACC)
    dv = tl.zeros([KEYS, BLOCK_D], ACC)
    dq_sum = tl.zeros([BLOCK_D], ACC)
    dv_sum = tl.zeros([BLOCK_D], ACC)
    for first in range(start, end, QUERIES):
        query = first + tl.arange(0, QUERIES)
        q = load_tile(Q, query, end, HEADS * 3 * D, columns, D)
        do = load_tile(DO, query, end, HEADS * D, columns, D)
        scores = biased_scores(q, k, query, key, end, slope, scale, ACC)
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        weights = weights * (1.0 / tl.sum(weights, 1))[:, None]
        dv += dot(tl.trans(weights.to(do.dtype)), do, ACC)
        d_weights = dot(do, tl.trans(v), ACC)
        # The whole row is here: no need for the output to know its product with the gradient.
        delta = tl.sum(weights * d_weights, 1)
        d_scores = (weights * (d_weights - delta[:, None])).to(k.dtype)
        dq = dot(d_scores, k, ACC) * scale
        store_tile(DQ, query, end, HEADS * 3 * D, columns, D, dq)
        if SUMS:
            dq_sum += tl.sum(dq, 0)
            dv_sum += tl.sum(do.to(ACC), 0)
        dk += dot(tl.trans(d_scores), q, ACC)
    store_tile(DQ + D, key, end, HEADS * 3 * D, columns, D, dk * scale)
    store_tile(DQ + 2 * D, key, end, HEADS * 3 * D, columns, D, dv)
    if SUMS:
        # A query's weights sum to one: over the keys, dv sums to what do does over the queries. And
        # its d_scores to zero, so dk does: one number added to all scores of a row changes nothing.
        partial = Partial + program * 3 * D + columns
        tl.store(partial, dq_sum, columns < D)
        tl.store(partial + D, tl.zeros([BLOCK_D], ACC), columns < D)
        tl.store(partial + 2 * D, dv_sum, columns < D)
    tail, step = last + sequence * QUERIES, sequences * QUERIES
    for part in tl.static_range(3):
        fill_rows(DQ + part * D, tail, tokens, step, HEADS * 3 * D, columns, D, QUERIES, 0.0)


# Tiles follow from shape and dtype alone: tuning at run time would make the rounding differ between
# runs. In the backward pass one tile holds all queries: of the tiles that do not spill much it has
# the fewest instructions and barriers on sm_80 and sm_90 (counted in the compiled code by
# count_tiles.py in tests/model/kernels/; not one was timed on a GPU yet).
def _tiles(qkv: Tensor, max_length: int, *, backward: bool) -> dict[str, Any]:
    keys = max(16, triton.next_power_of_2(max_length))
    queries, warps = min(keys, 64), 4
    if backward:
        queries, warps = keys, 4 if keys * max(64, qkv.shape[3]) <= 64 * 64 else 8
    return dict(KEYS=keys, QUERIES=queries, num_warps=warps, num_stages=1)


def forward(qkv: Tensor, offsets: Tensor, slopes: Tensor | None, max_length: int) -> Tensor:
    """Turn QKV [T, H, 3, D] into the output [T, H, D]."""
    tokens, heads, _, head_dim = qkv.shape
    sequences = offsets.shape[0] - 1
    out = qkv.new_empty(tokens, heads, head_dim)
    _forward_whole[(sequences * heads,)](
        *(qkv, slopes, offsets, out, sequences, tokens),
        **options(qkv, slopes),
        **_tiles(qkv, max_length, backward=False),
    )
    return out


def backward(
    d_out: Tensor,
    qkv: Tensor,
    offsets: Tensor,
    slopes: Tensor | None,
    max_length: int,
    *,
    sums: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute the gradient of `qkv`, in its layout; `d_out` [T, H, D] is contiguous.

    Returns:
        The gradient and, where `sums` are wanted, its sums over the tokens of each sequence, fp32
        [S, H, 3, D].
    """
    tokens, heads, _, head_dim = qkv.shape
    sequences = offsets.shape[0] - 1
    d_qkv = torch.empty_like(qkv)
    partial = accumulators(qkv, sequences, heads, 3, head_dim) if sums else None
    _backward_whole[(sequences * heads,)](
        *(qkv, slopes, offsets, d_out, d_qkv, partial, sequences, tokens),
        SUMS=sums,
        **options(qkv, slopes),
        **_tiles(qkv, max_length, backward=True),
    )
    return d_qkv, partial
