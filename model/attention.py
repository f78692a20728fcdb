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
from torch import Tensor

from .kernels import installed, why_no_triton
from .padded_attention import (
    Attend,
    PaddingPlan,
    attend_reference,
    attend_sdpa,
    plan_padding,
    through_padding,
)

Backend = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
"""QKV, sequence offsets, longest sequence and slopes to the context."""


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
    plan: PaddingPlan | None = None,
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
        plan: what `plan_attention` returned for the same arguments, which spares a backend that
            pads to plan again; None to plan here.

    Returns:
        [T, H, D] in the dtype of `qkv`; zero on rows that belong to no sequence.

    Raises:
        ValueError: a backend that is unknown, cannot run here or has no dropout; on the CPU, where
            asking costs nothing, also a sequence longer than `max_sequence_length`.
    """
    check_backend(backend, qkv.device.type, dropout)
    if plan is None:
        plan = plan_attention(
            *(backend, sequence_offsets, max_sequence_length, qkv.shape[0], slopes, qkv.dtype)
        )
    if bias is not None and not takes_bias(backend):
        raise ValueError(f"attention backend {backend!r} computes no gradient of a bias")
    if plan is not None:
        return through_padding(qkv, plan, PADDING_BACKENDS[backend], dropout)
    if bias is not None:
        return _attend_triton(qkv, sequence_offsets, max_sequence_length, slopes, bias)
    return PACKED_BACKENDS[backend](qkv, sequence_offsets, max_sequence_length, slopes)


def plan_attention(
    backend: str,
    sequence_offsets: Tensor,
    max_sequence_length: int,
    tokens: int,
    slopes: Tensor | None,
    dtype: torch.dtype,
) -> PaddingPlan | None:
    """Plan what all layers' `packed_attention` over a batch needs, if the backend pads.

    Args:
        tokens: T, rows of QKV.
        dtype: of QKV.

    Raises:
        ValueError: on the CPU, where asking costs nothing, a sequence is longer than
            `max_sequence_length`.
    """
    if sequence_offsets.device.type == "cpu":  # no device to wait for: ask how long they are
        longest = int(sequence_offsets.diff().max())
        if longest > max_sequence_length:
            raise ValueError(
                f"a sequence of {longest} tokens is longer than max_sequence_length "
                f"{max_sequence_length}"
            )
    if backend not in PADDING_BACKENDS:
        return None
    reference = backend == "reference"
    return plan_padding(
        sequence_offsets,
        max_sequence_length,
        tokens,
        slopes,
        torch.float32 if reference else dtype,
        one_call=reference,
    )


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


def _attend_triton(
    qkv: Tensor,
    sequence_offsets: Tensor,
    max_sequence_length: int,
    slopes: Tensor | None,
    bias: Tensor | None = None,
) -> Tensor:
    from .kernels.attention import attention

    return attention(qkv.contiguous(), sequence_offsets, slopes, max_sequence_length, bias)


def _attend_flash(
    qkv: Tensor,
    sequence_offsets: Tensor,
    max_sequence_length: int,
    slopes: Tensor | None,
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


PADDING_BACKENDS: dict[str, Attend] = {"reference": attend_reference, "sdpa": attend_sdpa}
PACKED_BACKENDS: dict[str, Backend] = {
    "triton": _attend_triton,  # kernels/attention_short.py and attention_tiled.py
    "flash": _attend_flash,  # FlashAttention-2, in bf16 and fp16
}
BACKENDS = (*PADDING_BACKENDS, *PACKED_BACKENDS)
