"""Packed bidirectional attention with ALiBi in Triton, as PyTorch sees it: an operator, a gradient.

What makes the kernels fast at an encoder's lengths is what they leave out: no online softmax where
one program holds a whole (sequence, head) (`attention_short`); longer sequences are tiled
(`attention_tiled`).

The QKV tensor is read where Megatron's matmul leaves it, [T, head, (q, k, v), D], and its gradient
is written in that layout: nothing is permuted, split or concatenated. No program adds to what
another one writes, so the backward pass repeats to the bit. Rows behind the last sequence are
written as zeros. A sequence longer than the promised maximum gives NaN: the host cannot look
without waiting for the device, and cutting it would be silently wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import attention_short, attention_tiled
from .attention_parts import INTERPRETED, accumulators
from .column_sums import column_sums
from .tiling import is_whole


def _one_program_holds_all(qkv: Tensor, max_length: int) -> bool:
    # fp32 would spill kilobytes of registers there; the interpreter has none.
    fits = qkv.element_size() <= 2 or INTERPRETED.value
    return fits and is_whole(max_length, qkv.shape[3])


def _forward(
    qkv: Tensor, offsets: Tensor, slopes: Tensor | None, max_length: int
) -> tuple[Tensor, Tensor]:
    """Return the output [T, H, D] and what the backward pass needs beside `qkv`: for long sequences
    the rows' log-sums (base 2), fp32 [H, T], for short ones nothing, [0].
    """
    if _one_program_holds_all(qkv, max_length):
        out = attention_short.forward(qkv, offsets, slopes, max_length)
        return out, accumulators(qkv, 0)
    return attention_tiled.forward(qkv, offsets, slopes, max_length)


def _backward(
    d_out: Tensor,
    qkv: Tensor,
    offsets: Tensor,
    slopes: Tensor | None,
    out: Tensor | None,
    log_sums: Tensor | None,
    max_length: int,
) -> Tensor:
    """Return the gradient of `qkv`, in its layout. Without `out` and `log_sums` one program holds a
    whole sequence.
    """
    d_out = d_out.contiguous()
    if out is None or log_sums is None:
        return attention_short.backward(d_out, qkv, offsets, slopes, max_length)[0]
    return attention_tiled.backward(d_out, qkv, offsets, slopes, out, log_sums, max_length)


def _save(
    ctx: Any,
    inputs: tuple[Tensor, Tensor, Tensor | None, int],
    output: tuple[Tensor, Tensor],
) -> None:
    qkv, offsets, slopes, ctx.max_length = inputs
    kept = (None, None) if _one_program_holds_all(qkv, ctx.max_length) else output
    ctx.save_for_backward(qkv, offsets, slopes, *kept)


# What torch.compile sees: two operators that it leaves alone.
attention_op = torch.library.custom_op("rapidbert::packed_attention", _forward, mutates_args=())
_backward_op = torch.library.custom_op(
    "rapidbert::packed_attention_backward", _backward, mutates_args=()
)


@attention_op.register_fake
def _(
    qkv: Tensor, offsets: Tensor, slopes: Tensor | None, max_length: int
) -> tuple[Tensor, Tensor]:
    tokens, heads, _, head_dim = qkv.shape
    log_sums = (0,) if _one_program_holds_all(qkv, max_length) else (heads, tokens)
    return qkv.new_empty(tokens, heads, head_dim), accumulators(qkv, *log_sums)


@_backward_op.register_fake
def _(
    d_out: Tensor,
    qkv: Tensor,
    offsets: Tensor,
    slopes: Tensor | None,
    out: Tensor | None,
    log_sums: Tensor | None,
    max_length: int,
) -> Tensor:
    return torch.empty_like(qkv)


def _compiled_backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
    return _backward_op(d_out, *ctx.saved_tensors, ctx.max_length), None, None, None


attention_op.register_autograd(_compiled_backward, setup_context=_save)


class _Attention(torch.autograd.Function):
    """The same operation without torch's dispatcher, which would cost as much as two launches."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        bias: Tensor | None,
        offsets: Tensor,
        slopes: Tensor | None,
        max_length: int,
    ) -> Tensor:
        output = _forward(qkv, offsets, slopes, max_length)
        _save(ctx, (qkv, offsets, slopes, max_length), output)
        ctx.bias_dtype = bias.dtype if bias is not None else None
        return output[0]

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, offsets, slopes, out, log_sums = ctx.saved_tensors
        wanted, d_bias = ctx.bias_dtype is not None and ctx.needs_input_grad[1], None
        if out is None:
            d_qkv, partial = attention_short.backward(
                d_out.contiguous(), qkv, offsets, slopes, ctx.max_length, sums=wanted
            )
            if partial is not None:
                d_bias = column_sums(partial.flatten(1), ctx.bias_dtype)
        else:
            d_qkv = _backward(d_out, qkv, offsets, slopes, out, log_sums, ctx.max_length)
            if wanted:
                d_bias = d_qkv.flatten(1).sum(0).to(ctx.bias_dtype)
        return d_qkv, d_bias, None, None, None


def attention(
    qkv: Tensor,
    offsets: Tensor,
    slopes: Tensor | None,
    max_length: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Let every token attend to the tokens of its own sequence.

    Args:
        qkv: [T, H, 3, D], contiguous.
        offsets: int32 [S+1].
        slopes: fp32 [H] or None.
        max_length: at least as long as every sequence.
        bias: [H * 3 * D], which was added to `qkv` without its gradient: that is the sum of QKV's
            over the tokens, which the short kernel has at hand; alone it would be another pass over
            memory. Not under torch.compile.

    Returns:
        [T, H, D].
    """
    if torch.compiler.is_compiling():
        if bias is not None:
            raise ValueError("under torch.compile the bias gets its gradient where it is added")
        out: Tensor = attention_op(qkv, offsets, slopes, max_length)[0]
    else:
        out = _Attention.apply(qkv, bias, offsets, slopes, max_length)
    return out
