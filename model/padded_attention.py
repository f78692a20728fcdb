"""Plain attention over packed sequences: padded for the call, and packed again.

What the calls of one batch need, indices and masks, is planned once (`plan_padding`) and read by
every layer. On a GPU the whole batch is one call, for lengths are not known to the host. On the
CPU they are: there each sequence is a call of its own, without padding, unless it is so short that
the call would cost more than the cells of padding which it saves.

A plan holds the bias of all heads. With ALiBi that is [S, H, L, L] on a GPU, [H, L, L] on the CPU;
without, [S, 1, 1, L] for calls of several sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .padding import padded_index, sequence_of_row

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""Queries, keys and values [S, H, L, D], what is added to the scores and dropout to the context."""

_SCORES_OF_A_CALL = 8192
"""Neighbouring sequences share a call on the CPU up to so many scores of a head, padding included:
computing fewer costs less than a call does."""


@dataclass(frozen=True)
class Padding:
    """The way of several sequences into a padded batch and back."""

    row: Tensor
    """int64 [S*L], the packed row that a cell of the padded batch comes from; any in padding."""
    is_padding: Tensor
    """bool [S*L], whether a cell is padding."""
    cell: Tensor
    """int64 [T], where each packed row is in the padded batch; any if it is of no sequence."""
    cell_or_end: Tensor
    """int64 [T], the same; S*L, one behind the last cell, if a row is of no sequence."""
    is_outside: Tensor
    """bool [T], whether a row belongs to no sequence."""
    sequences: int


@dataclass(frozen=True)
class Call:
    """Neighbouring packed rows that attend in one call."""

    rows: int
    padding: Padding | None
    """None if the rows are one sequence, or none."""
    bias: Tensor | None
    """Added to the scores, [S or 1, H or 1, L or 1, L]; None for nothing."""


@dataclass(frozen=True)
class PaddingPlan:
    """What attention through padding needs of a batch, the same in all layers."""

    calls: tuple[Call, ...]
    """In the order of the rows."""
    outside: int = 0
    """Rows behind those of the calls."""


def plan_padding(
    sequence_offsets: Tensor,
    max_sequence_length: int,
    tokens: int,
    slopes: Tensor | None,
    dtype: torch.dtype,
    one_call: bool,
) -> PaddingPlan:
    """Plan the calls of a batch.

    Args:
        sequence_offsets: int32 [S+1] (see `model.padding`).
        max_sequence_length: at least as long as every sequence.
        tokens: T, packed rows, those behind the last sequence included.
        slopes: fp32 [H], or None for attention without a bias.
        dtype: of what is added to the scores.
        one_call: pad the whole batch on the CPU, too.
    """
    if sequence_offsets.device.type == "cpu":
        lengths = sequence_offsets.diff().tolist()
        if not one_call:
            return _plan_calls(lengths, tokens, slopes, dtype)
        max_sequence_length = max(1, *lengths)
    bias = _alibi(max_sequence_length, slopes)
    return PaddingPlan((_padded(sequence_offsets, max_sequence_length, tokens, bias, dtype),))


def _plan_calls(
    lengths: list[int], tokens: int, slopes: Tensor | None, dtype: torch.dtype
) -> PaddingPlan:
    alibi = _alibi(max(1, *lengths), slopes)  # all read parts of it
    kept = None if alibi is None else alibi.to(dtype)
    calls = []
    for group in _groups(lengths):
        longest, rows = max(group), sum(group)
        part = alibi if alibi is None else alibi[:, :longest, :longest]
        if len(group) > 1:
            offsets = torch.tensor([0, *group], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            calls.append(_padded(offsets, longest, rows, part, dtype))
        else:
            part = kept if kept is None else kept[None, :, :longest, :longest]
            calls.append(Call(rows, None, part))
    return PaddingPlan(tuple(calls), tokens - sum(lengths))


def _groups(lengths: list[int]) -> Iterator[list[int]]:
    """Part the lengths of sequences into those of each call, without empty sequences."""
    group: list[int] = []
    for length in filter(None, lengths):
        if group and (len(group) + 1) * max(length, *group) ** 2 > _SCORES_OF_A_CALL:
            yield group
            group = []
        group.append(length)
    if group:
        yield group


def _padded(
    sequence_offsets: Tensor,
    length: int,
    tokens: int,
    alibi: Tensor | None,
    dtype: torch.dtype,
) -> Call:
    row, real = padded_index(sequence_offsets, length)  # [S, L] both
    sequence, position = sequence_of_row(sequence_offsets, tokens)
    sequences = real.shape[0]
    outside = sequence >= sequences
    cell = sequence * length + position
    within, end = cell.masked_fill(outside, 0), cell.masked_fill(outside, sequences * length)
    padding = Padding(row.flatten(), ~real.flatten(), within, end, outside, sequences)
    # Not -inf: an empty sequence has no key at all, and a row of -inf has no softmax.
    low = -1e30  # within the range of bf16, far below any score
    bias = torch.zeros(real.shape, device=real.device).masked_fill(~real, low)
    bias = bias[:, None, None, :]  # [S, L] to [S, 1, 1, L]
    if alibi is not None:
        bias = bias + alibi  # [S, H, L, L]
    return Call(tokens, padding, bias.to(dtype))


def _alibi(length: int, slopes: Tensor | None) -> Tensor | None:
    """Return ALiBi's bias, fp32 [H, L, L]."""
    if slopes is None:
        return None
    at = torch.arange(length, device=slopes.device)
    distance = (at[:, None] - at[None, :]).abs()  # [L, L]
    return -slopes.view(-1, 1, 1) * distance


def through_padding(qkv: Tensor, plan: PaddingPlan, attend: Attend, dropout: float) -> Tensor:
    """Turn QKV [T, H, 3, D] into the context [T, H, D], zero on rows of no sequence."""
    sizes = [call.rows for call in plan.calls]
    if not plan.outside and len(sizes) == 1:
        return _run(plan.calls[0], qkv, attend, dropout)
    parts = torch.split(qkv, [*sizes, plan.outside])
    contexts = [
        _run(call, part, attend, dropout) for call, part in zip(plan.calls, parts[:-1], strict=True)
    ]
    # Rows of no sequence are zero, whatever they hold, and get a gradient of zero.
    nothing = torch.ones((), dtype=torch.bool, device=qkv.device)
    contexts.append(parts[-1][:, :, 2].masked_fill(nothing, 0))
    return torch.cat(contexts)


def _run(call: Call, qkv: Tensor, attend: Attend, dropout: float) -> Tensor:
    """Turn [rows, H, 3, D] into [rows, H, D]."""
    if call.padding is None:
        q, k, v = qkv.permute(2, 1, 0, 3).unsqueeze(1)  # [1, H, L, D] each
        return attend(q, k, v, call.bias, dropout)[0].transpose(0, 1)
    # Torch's `Function.apply` has no types.
    q, k, v = _Pad.apply(qkv, call.padding)  # type: ignore[no-untyped-call]  # [S, H, L, D] each
    context = attend(q, k, v, call.bias, dropout)
    rows: Tensor = _Unpad.apply(context, call.padding)  # type: ignore[no-untyped-call]
    return rows


class _Pad(torch.autograd.Function):
    """[T, H, 3, D] to three [S, H, L, D]; padding holds some row.

    Autograd's own gradient would add every cell to its row, and those of padding all to the same
    one; here each row reads its cell. Attention gives padding a gradient of zero anyway.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, padding: Padding) -> tuple[Tensor, ...]:
        ctx.padding = padding
        padded = qkv.index_select(0, padding.row)  # [S*L, H, 3, D]
        padded = padded.view(padding.sequences, -1, *qkv.shape[1:])  # [S, L, H, 3, D]
        q, k, v = padded.permute(3, 0, 2, 1, 4)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        sequences, heads, length, dim = gradients[0].shape
        cells = gradients[0].new_empty(sequences * length + 1, heads, 3, dim)
        cells[-1].zero_()  # the one that rows of no sequence read
        each = [gradient.transpose(1, 2) for gradient in gradients]  # [S, L, H, D]
        torch.stack(each, 3, out=cells[:-1].view(sequences, length, heads, 3, dim))
        return cells.index_select(0, ctx.padding.cell_or_end), None  # [T, H, 3, D]


class _Unpad(torch.autograd.Function):
    """[S, H, L, D] to [T, H, D], zero on rows of no sequence."""

    @staticmethod
    def forward(ctx: Any, context: Tensor, padding: Padding) -> Tensor:
        ctx.padding = padding
        cells = context.transpose(1, 2).flatten(0, 1)  # [S*L, H, D]
        rows = cells.index_select(0, padding.cell)
        return rows.masked_fill_(padding.is_outside.view(-1, 1, 1), 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        padding: Padding = ctx.padding
        cells = gradient.index_select(0, padding.row)  # [S*L, H, D]
        cells = cells.masked_fill_(padding.is_padding.view(-1, 1, 1), 0)
        cells = cells.view(padding.sequences, -1, *gradient.shape[1:])  # [S, L, H, D]
        return cells.transpose(1, 2), None


def attend_reference(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float
) -> Tensor:
    """Attend in fp32 throughout: other backends are judged by it."""
    scores = q.float() @ k.float().transpose(-2, -1)  # [S, H, L, D] @ [S, H, D, L]
    scores = scores / math.sqrt(q.shape[-1])  # [S, H, L, L]
    if bias is not None:
        scores = scores + bias
    weights = F.dropout(scores.softmax(dim=-1), dropout)  # [S, H, L, L]
    return (weights @ v.float()).to(q.dtype)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Attend by the kernel that PyTorch chooses."""
    if bias is not None:
        bias = bias.expand(*q.shape[:3], q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
