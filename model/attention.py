"""Bidirectional attention over packed sequences, with an ALiBi bias, behind one function.

ALiBi (arXiv 2108.12409) in an encoder is symmetric: the score of query i and key j of the same
sequence gets -slope_h * |i - j|. There are no position embeddings, so a model trained at 128
tokens runs at any length.

Shapes are explained in `model/__init__.py`; L is the longest sequence that a backend must handle.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import installed, why_no_triton
from .padding import padded_index, sequence_of_row

Backend = Callable[[Tensor, Tensor, int, Tensor | None, float], Tensor]
"""QKV, sequence offsets, longest sequence, slopes and dropout to the context."""


def alibi_slopes(num_heads: int) -> list[float]:
    """Return one slope per head, steepest first (arXiv 2108.12409, section 3).

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
    """Return the slopes of heads [first, first+count), fp32 [count].

    Not a module buffer: casting a model to bf16 would round the slopes of a head count that is
    no power of two.
    """
    with torch.inference_mode(False):
        return torch.tensor(alibi_slopes(num_heads)[first : first + count], device=device)


def packed_attention(
    qkv: Tensor,
    sequence_offsets: Tensor,
    max_sequence_length: int,
    *,
    slopes: Tensor | None,
    dropout: float = 0.0,
    backend: str = "reference",
    bias: Tensor | None = None,
) -> Tensor:
    """Let every token attend to the tokens of its own sequence.

    Args:
        qkv: [T, H, 3, D], queries, keys and values of a head side by side, as Megatron's QKV
            matmul leaves them.
        sequence_offsets: int32 [S+1] (see `model.padding`).
        max_sequence_length: constant of the run, at least as long as every sequence; a backend
            may size its tiles and buffers by it.
        slopes: fp32 [H], or None for attention without a bias.
        dropout: probability on the attention weights.
        backend: a key of `BACKENDS`.
        bias: [H * 3 * D], which was added to `qkv` without its gradient; only for a backend that
            `takes_bias`, which computes it.

    Returns:
        [T, H, D] in the dtype of `qkv`; zero on rows that belong to no sequence.

    Raises:
        ValueError: a backend that is unknown, cannot run here or has no dropout; on the CPU, where
            asking costs nothing, also a sequence longer than `max_sequence_length`.
    """
    check_backend(backend, qkv.device.type, dropout)
    if qkv.device.type == "cpu":  # no device to wait for: ask how long they are
        longest = int(sequence_offsets.diff().max())
        if longest > max_sequence_length:
            raise ValueError(
                f"a sequence of {longest} tokens is longer than max_sequence_length "
                f"{max_sequence_length}"
            )
    if bias is not None:
        if not takes_bias(backend):
            raise ValueError(f"attention backend {backend!r} computes no gradient of a bias")
        return _attend_triton(qkv, sequence_offsets, max_sequence_length, slopes, dropout, bias)
    return BACKENDS[backend](qkv, sequence_offsets, max_sequence_length, slopes, dropout)


def takes_bias(backend: str) -> bool:
    """Say whether a backend computes the gradient of QKV's bias, too."""
    return backend == "triton" and not torch.compiler.is_compiling()


def check_backend(backend: str, device_type: str, dropout: float = 0.0) -> None:
    """Raise ValueError for a backend that is unknown or cannot run on this kind of device."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; known: {', '.join(BACKENDS)}")
    reason = None
    if backend == "triton":
        reason = why_no_triton(device_type)
    elif backend == "flash":
        reason = _why_no_flash(device_type)
    if reason is None and dropout and backend in ("triton", "flash"):
        reason = "it does not drop attention weights, which this model wants"
    if reason:
        raise ValueError(f"attention backend {backend!r}: {reason}; use 'sdpa'")


def best_backend(device_type: str, precision: str, dropout: float) -> str:
    """Name the fastest backend that needs no other package and can run on this kind of device.

    In fp32 that is never Triton: the kernel does not fit into a GPU's registers.
    """
    return "triton" if device_type == "cuda" and precision == "bf16" and not dropout else "sdpa"


def _through_padding(attend: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]) -> Backend:
    """Turn a backend for padded [S, H, L, D] tensors into one for packed tensors."""

    def packed(
        qkv: Tensor,
        sequence_offsets: Tensor,
        max_sequence_length: int,
        slopes: Tensor | None,
        dropout: float,
    ) -> Tensor:
        tokens, heads, _, head_dim = qkv.shape
        length = max_sequence_length
        if sequence_offsets.device.type == "cpu":
            length = max(1, int(sequence_offsets.diff().max()))
        row, real = padded_index(sequence_offsets, length)  # [S, L] both
        # Not qkv[row]: its gradient sorts the rows. The rows that stand in for padding are there
        # several times, but what they add to the gradient is zero.
        padded = qkv.index_select(0, row.flatten())  # [S*L, H, 3, D]
        padded = padded.view(*row.shape, *qkv.shape[1:])  # [S, L, H, 3, D]
        q, k, v = padded.permute(3, 0, 2, 1, 4)  # [S, H, L, D] each
        bias = _bias(real, slopes)
        context = attend(q, k, v, bias, dropout).transpose(1, 2)  # [S, L, H, D]
        sequence, position = sequence_of_row(sequence_offsets, tokens)
        outside = sequence >= real.shape[0]
        cell = torch.where(outside, 0, sequence * length + position)
        packed_rows = context.reshape(-1, heads, head_dim).index_select(0, cell)  # [T, H, D]
        return packed_rows.masked_fill(outside.view(-1, 1, 1), 0)  # [T] to [T, 1, 1]

    return packed


def _bias(real: Tensor, slopes: Tensor | None) -> Tensor:
    """Return what is added to the scores, fp32 [S, 1 or H, 1 or L, L]: ALiBi, very low on padding.

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
    scores = q.float() @ k.float().transpose(-2, -1)  # [S, H, L, D] @ [S, H, D, L]
    scores = scores / math.sqrt(q.shape[-1]) + bias  # [S, H, L, L]
    weights = F.dropout(scores.softmax(dim=-1), dropout)  # [S, H, L, L]
    return (weights @ v.float()).to(q.dtype)


def _attend_sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
    bias = bias.to(q.dtype).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def _attend_triton(
    qkv: Tensor,
    sequence_offsets: Tensor,
    max_sequence_length: int,
    slopes: Tensor | None,
    dropout: float,
    bias: Tensor | None = None,
) -> Tensor:
    from .kernels.attention import attention

    return attention(qkv.contiguous(), sequence_offsets, slopes, max_sequence_length, bias)


def _attend_flash(
    qkv: Tensor,
    sequence_offsets: Tensor,
    max_sequence_length: int,
    slopes: Tensor | None,
    dropout: float,
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    q, k, v = qkv.unbind(2)
    context: Tensor = flash_attn_varlen_func(
        *(q, k, v, sequence_offsets, sequence_offsets, max_sequence_length, max_sequence_length),
        alibi_slopes=slopes,
        deterministic=True,
    )
    # It leaves the rows behind the last sequence as the memory was.
    row = torch.arange(qkv.shape[0], device=qkv.device)
    return context.masked_fill((row >= sequence_offsets[-1]).view(-1, 1, 1), 0)


def _why_no_flash(device_type: str) -> str | None:
    if not installed("flash_attn"):
        return "the package flash-attn is not installed"
    return None if device_type == "cuda" else "it needs a GPU"


BACKENDS: dict[str, Backend] = {
    "reference": _through_padding(_attend_reference),
    "sdpa": _through_padding(_attend_sdpa),
    "triton": _attend_triton,  # kernels/attention_short.py and attention_tiled.py
    "flash": _attend_flash,  # FlashAttention-2, in bf16 and fp16
}
