"""The control: the training step with PyTorch's AdamW instead of the DeepSpeed engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from recipes.engine.batch_plan import BatchPlan
from recipes.engine.world import World


class PlainEngine:
    """Engine that DeepSpeed is compared with: the same step with torch's AdamW and nothing else.

    In bf16 the gradients of micro-batches are summed, and AdamW works, on fp32 copies, as in the
    engine.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: str,
        plan: BatchPlan,
        world: World,
        *,
        learning_rate: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ):
        self.module = model.to(world.device)
        self._masters: list[torch.Tensor] | None = None
        updated: Any = list(model.parameters())
        if precision == "bf16":
            self.module.bfloat16()
            updated = self._masters = [p.detach().float() for p in model.parameters()]
            for master in self._masters:
                master.grad = torch.zeros_like(master)
        self._weights: list[Any] = list(self.module.parameters())
        self.optimizer = torch.optim.AdamW(
            updated, lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )
        self._accumulation, self._micro_step = plan.accumulation, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.module(*arguments, **named)

    def destroy(self) -> None:
        """Do nothing: there are no hooks to take off, as DeepSpeed has."""

    def backward(self, loss: torch.Tensor, **_: Any) -> None:
        loss.backward()  # type: ignore[no-untyped-call]  # torch's

    def is_gradient_accumulation_boundary(self) -> bool:
        return (self._micro_step + 1) % self._accumulation == 0

    @torch.no_grad()
    def step(self) -> None:
        """End a micro-batch; after the last one of a step, update the weights."""
        update = self.is_gradient_accumulation_boundary()
        if self._masters is not None:
            sums: list[Any] = [master.grad for master in self._masters]
            torch._foreach_add_(sums, [weight.grad for weight in self._weights])
            for weight in self._weights:
                weight.grad = None
            if update:
                self.optimizer.step()
                torch._foreach_copy_(self._weights, self._masters)
                torch._foreach_zero_(sums)
        elif update:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self._micro_step += 1
