"""Triton kernels of the cross-entropy over the vocabulary, which make no fp32 copy of the logits.

The backward pass writes the gradient over the logits, so that the largest tensor of a training step
exists once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import FUSED, accumulator, triton_accumulator

_COLUMNS = 2048
_GROUP = 8
"""Neighbouring columns, the 16 bytes of bf16 that a thread loads at once: their largest logit is
found without another thread, and what was summed before is scaled once for all of them."""


@triton.jit
def _cross_entropy_forward(
    Logits, Labels, Losses, LogSums,
    columns_in_all, ignored, BLOCK: tl.constexpr, GROUP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits = Logits + row * columns_in_all
    label = tl.load(Labels + row)
    groups = tl.arange(0, BLOCK // GROUP)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    largest = tl.full([BLOCK // GROUP], float("-inf"), ACC)
    total = tl.zeros([BLOCK // GROUP], ACC)
    for first in range(0, columns_in_all, BLOCK):
        columns = first + groups
        x = tl.load(logits + columns, columns < columns_in_all, float("-inf")).to(ACC)
        above = tl.maximum(largest, tl.max(x, 1))
        # Groups that have seen nothing yet: -inf - -inf is no number.
        base = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(x - base[:, None]), 1)
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
    """Write the gradient over the logits."""
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
    """Losses [K] of logits [K, V]. The backward pass needs no memory but the logits' own."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
        logits = logits.contiguous()
        rows, columns = logits.shape
        losses, log_sums = torch.empty(
            2, rows, dtype=accumulator(logits), device=logits.device
        ).unbind()
        ctx.options = dict(
            columns_in_all=columns,
            ignored=ignored,
            BLOCK=min(_COLUMNS, max(_GROUP, triton.next_power_of_2(columns))),
            ACC=triton_accumulator(logits),
            num_warps=4,
            **FUSED,
        )
        _cross_entropy_forward[(rows,)](
            logits, labels, losses, log_sums, GROUP=_GROUP, **ctx.options
        )
        ctx.save_for_backward(logits, labels, log_sums)
        ctx.used = False
        return losses

    @staticmethod
    def backward(ctx: Any, d_losses: Tensor) -> tuple[Tensor, None, None]:
        if ctx.used:
            raise RuntimeError("the logits are gone: their memory holds the gradient already")
        ctx.used = True
        logits, labels, log_sums = ctx.saved_tensors
        _cross_entropy_backward[(logits.shape[0],)](
            logits, labels, log_sums, d_losses.contiguous(), **ctx.options
        )
        return logits, None, None
