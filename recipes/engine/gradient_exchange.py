"""The average of the gradients over the ranks, sent slice by slice behind the last backward pass.

DeepSpeed's optimizer for bf16 sends nothing before the last gradient of a step is there, and then
all of them at once. Here the sums of the gradients, one fp32 tensor in the order of the model's
parameters, are cut into slices at the bounds of parameters. The backward pass goes through the
model from its end, and so do the slices: while it computes the gradients of one, the slice behind
it travels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Slice:
    """Neighbours in the tensor of the sums, sent in one message."""

    sums: Tensor
    members: frozenset[tuple[int, int]]
    """Parameters, each by its group and its number in it."""


class GradientExchange:
    """Averages the sums of an engine's gradients over its data-parallel ranks.

    Each rank sends the same slices in the same order, whatever the order in which its gradients
    come, or whether they come at all: a slice waits for those before it, and what still waits when
    the backward pass is over is sent then.

    Args:
        engine: DeepSpeed's, for which `is_possible` is true.
    """

    def __init__(self, engine: Any):
        self._engine = engine
        self._group = engine.optimizer.dp_process_group
        self._ranks = dist.get_world_size(self._group)
        most = int(engine.zero_reduce_bucket_size())
        sums = engine.optimizer.fp32_groups_gradients
        sizes = [[each.numel() for each in group] for group in sums]
        self._slices = list(cut(engine.optimizer.fp32_groups_gradients_flat, sizes, most))
        self._slice_of = {
            member: number for number, each in enumerate(self._slices) for member in each.members
        }
        self._summed: set[tuple[int, int]] = set()
        self._messages: list[Any] = []

    def summed(self, group: int, index: int) -> None:
        """Note that a parameter's gradient is in its sum; send the slices that are complete.

        Call it on the stream on which the sum was made. An asynchronous all-reduce waits, on the
        device, for all that its caller's stream has been given by then, and for nothing later. The
        sums of a slice are made on that one stream, so they are complete when it reads them.

        Raises:
            RuntimeError: the sum has already been sent.
        """
        if self._ranks == 1 or self._engine.inside_no_sync_ctxt:
            return
        if not self._engine.is_gradient_accumulation_boundary():
            return
        if self._slice_of[group, index] < len(self._messages):
            raise RuntimeError(
                f"parameter {index} of group {group} got a second gradient in one backward pass, "
                "after its sum had been sent to the other ranks"
            )
        self._summed.add((group, index))
        # The last slice has the embedding, with which a backward pass ends: it would gain nothing.
        while len(self._messages) < len(self._slices) - 1:
            if not self._slices[len(self._messages)].members <= self._summed:
                return
            self._send()

    def finish(self) -> None:
        """Send what has not been sent, and leave the averages in the place of the sums.

        To be called after each backward pass. On a GPU the host does not wait: the stream does.
        """
        if self._ranks == 1 or not self._engine.is_gradient_accumulation_boundary():
            return
        while len(self._messages) < len(self._slices):
            self._send()
        for each, message in zip(self._slices, self._messages, strict=True):
            message.wait()
            if each.sums.device.type != "cuda":
                each.sums.mul_(1 / self._ranks)
        self._messages.clear()
        self._summed.clear()

    def _send(self) -> None:
        from deepspeed import comm  # which can log what is sent: `comms_logger` in the JSON

        sums = self._slices[len(self._messages)].sums
        # NCCL multiplies by 1 / ranks on the way. Gloo cannot.
        kind = comm.ReduceOp.AVG if sums.device.type == "cuda" else comm.ReduceOp.SUM
        message = comm.all_reduce(sums, op=kind, group=self._group, async_op=True)
        self._messages.append(message)


def is_possible(engine: Any, tensor_parallel: int) -> bool:
    """Say whether the exchange is DeepSpeed's, but for when it is sent.

    It is not where the sums travel in another precision or scaled in another way, and ranks that
    share a model talk to each other during the backward pass themselves.
    """
    return (
        tensor_parallel == 1
        and bool(getattr(engine.optimizer, "immediate_grad_update", False))
        and engine.communication_data_type == engine.optimizer.grad_acc_dtype == torch.float32
        and engine.postscale_gradients()
        and engine.gradient_predivide_factor() == 1
    )


def cut(flat: list[Tensor], sizes: list[list[int]], most: int) -> Iterator[Slice]:
    """Cut the sums of all parameters into slices, from the last parameter to the first.

    Args:
        flat: the sums of each group of parameters; there may be padding at the end.
        sizes: elements of each parameter of each group, which lie there side by side.
        most: elements of a slice, unless a single parameter has more.
    """
    for group in reversed(range(len(flat))):
        last, end = len(sizes[group]), sum(sizes[group])
        while last:
            first, start = last - 1, end - sizes[group][last - 1]
            while first and end - start + sizes[group][first - 1] <= most:
                first -= 1
                start -= sizes[group][first]
            members = frozenset((group, index) for index in range(first, last))
            yield Slice(flat[group][start:end], members)
            last, end = first, start
