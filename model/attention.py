"""Bidirectional attention over packed sequences, with an ALiBi bias, behind one function.

ALiBi (arXiv 2108.12409) in an encoder is symmetric: the score of query i and key j of the same
sequence gets -slope_h * |i - j|. There are no position embeddings, so a model trained at 128
tokens runs at any length.

Legend: T packed tokens, S sequences, L longest sequence a backend must handle, H heads,
D head_dim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.padding import padded_index, sequence_of_row


def alibi_slopes(num_heads: int) -> list[float]:
    """One slope per head, steepest first (arXiv 2108.12409, section 3).

    2^(-8/n), 2^(-16/n), ... for n a power of two. Otherwise the slopes of the next lower power,
    then every second slope of the next higher one until there are enough, as the authors' code
    and every published checkpoint has it (12 heads: 8 + 4).
    """
    lower = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / lower) for i in range(lower)]
    higher = [2.0 ** (-8.0 * (i + 1) / (2 * lower)) for i in range(0, 2 * lower, 2)]
    return slopes + higher[: num_heads - lower]


@functools.lru_cache(maxsize=64)
def slopes_on(device: torch.device, num_heads: int, first: int, count: int) -> Tensor:
    """Slopes of heads [first, first+count), fp32 [count].

    Not a module buffer: casting a model to bf16 would round the slopes of a head count that is
    no power of two.
    """
    with torch.inference_mode(False):
        return torch.tensor(alibi_slopes(num_heads)[first : first + count], device=device)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequence_offsets: Tensor,
    max_sequence_length: int,
    *,
    slopes: Tensor | None,
    dropout: float = 0.0,
    backend: str = "reference",
) -> Tensor:
    """Attention of every token to the tokens of its own sequence.

    Args:
        query, key, value: [T, H, D]; views into the output of the QKV matmul are welcome.
        sequence_offsets: int32 [S+1] (see `model.padding`).
        max_sequence_length: constant of the run, at least as long as every sequence; a backend
            may size its tiles and buffers by it.
        slopes: fp32 [H], or None for attention without a bias.
        dropout: probability on the attention weights.
        backend: a key of `BACKENDS`.

    Returns:
        [T, H, D] in the dtype of `query`; zero on rows that belong to no sequence.

    Raises:
        ValueError: unknown backend; on the CPU, where asking costs nothing, also a sequence longer
            than `max_sequence_length`.
    """
    check_backend(backend)
    return BACKENDS[backend](
        query, key, value, sequence_offsets, max_sequence_length, slopes, dropout
    )


def check_backend(backend: str) -> None:
    """Raises ValueError for a name that is not in `BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; known: {', '.join(BACKENDS)}")


def _through_padding(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a backend for padded [S, H, L, D] tensors one for packed tensors."""

    def packed(query, key, value, sequence_offsets, max_sequence_length, slopes, dropout):
        tokens, heads, head_dim = query.shape
        length = max_sequence_length
        if sequence_offsets.device.type == "cpu":  # no device to wait for: ask how long they are
            longest = int(sequence_offsets.diff().max())
            if longest > length:
                raise ValueError(
                    f"a sequence of {longest} tokens is longer than max_sequence_length {length}"
                )
            length = max(1, longest)
        row, real = padded_index(sequence_offsets, length)  # [S, L]
        # [S, L, H, D] -> [S, H, L, D]
        q, k, v = (x[row].transpose(1, 2) for x in (query, key, value))
        bias = _bias(real, slopes)
        context = attend(q, k, v, bias, dropout).transpose(1, 2)  # [S, L, H, D]
        sequence, position = sequence_of_row(sequence_offsets, tokens)
        outside = sequence >= real.shape[0]
        cell = torch.where(outside, 0, sequence * length + position)
        packed_rows = context.reshape(-1, heads, head_dim)[cell]  # [T, H, D]
        return packed_rows.masked_fill(outside.view(-1, 1, 1), 0)

    return packed


def _bias(real: Tensor, slopes: Tensor | None) -> Tensor:
    """Additive score bias, fp32 [S, 1 or H, 1 or L, L]: ALiBi, and a very low one on padding keys.

    Not -inf: an empty sequence has no key at all, and a row of -inf has no softmax.
    """
    low = -1e30  # within the range of bf16, far below any score
    bias = torch.zeros(real.shape, device=real.device)
    bias = bias.masked_fill(~real, low)[:, None, None, :]  # [S, 1, 1, L]
    if slopes is None:
        return bias
    at = torch.arange(real.shape[1], device=real.device)
    distance = (at[:, None] - at[None, :]).abs()  # [L, L]
    return bias - slopes.view(-1, 1, 1) * distance  # [S, H, L, L]


def _attend_reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
    # In fp32 throughout: other backends are judged by it.
    scores = q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.shape[-1]) + bias
    weights = F.dropout(scores.softmax(dim=-1), dropout)  # [S, H, L, L]
    return (weights @ v.float()).to(q.dtype)


def _attend_sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
    bias = bias.to(q.dtype).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


# Interface: (query, key, value, sequence_offsets, max_sequence_length, slopes, dropout) -> context.
BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": _through_padding(_attend_reference),
    "sdpa": _through_padding(_attend_sdpa),
}
