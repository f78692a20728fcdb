"""What the recipe asks of the engine around a model, whether it is DeepSpeed's or the control's."""

from __future__ import annotations

from typing import Any, Protocol, TypedDict

from torch import Tensor


class AdamW(TypedDict):
    """Settings of the optimizer."""

    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    """AdamW's own: weights are multiplied by 1 - learning rate * weight decay."""


class Engine(Protocol):
    """A model with its optimizer. DeepSpeed's engine has all of this, but no types."""

    module: Any
    """The model; of which class it is, its user knows."""
    optimizer: Any
    """AdamW, or what DeepSpeed has around it: another class for each ZeRO stage, without types."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Do a forward pass; takes and returns what the model does."""

    def backward(self, loss: Tensor, **options: bool) -> None:
        """Add the gradients of a micro-batch to those of the step."""

    def is_gradient_accumulation_boundary(self) -> bool:
        """Say whether this micro-batch is the last one of its step."""

    def step(self) -> None:
        """End a micro-batch; after the last one of a step, update the weights."""

    def destroy(self) -> None:
        """Take the hooks off the model."""
