"""The options that choose kernels, for every command that computes with a model.

What is chosen is printed and recorded, and changes nothing but speed and rounding. Nothing falls
back: a kernel that cannot run here is an error that says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from model.config import ATTENTION_BACKENDS, ModelConfig
from model.kernels import KERNELS, best_kernels, check_kernels
from recipes.common.errors import Faults
from recipes.common.settings import one_of


@dataclass(frozen=True)
class KernelChoice:
    """Which kernels compute."""

    attention: Annotated[str, one_of("auto", *ATTENTION_BACKENDS)] = "auto"
    """Attention backend; auto: triton on a GPU in bf16, unless the model drops attention weights,
    otherwise sdpa."""
    kernels: Annotated[str, one_of("auto", *KERNELS)] = "auto"
    """Kernels of the operations around the matmuls; auto: triton on a GPU, torch on the CPU."""

    def resolve(
        self, model: ModelConfig, precision: str, faults: Faults, *, assumed_gpus: bool = False
    ) -> KernelChoice:
        """The choice with names in the place of `auto`.

        Args:
            precision: "bf16" or "fp32".
            faults: takes what was asked for and cannot run here.
            assumed_gpus: choose for GPUs that are not here, and may not be asked.
        """
        import torch  # here, so that --help need not wait for it

        from model.attention import best_backend, check_backend

        device_type = "cuda" if torch.cuda.is_available() or assumed_gpus else "cpu"
        dropout = model.attention_dropout
        attention, kernels = self.attention, self.kernels
        if attention == "auto":
            attention = best_backend(device_type, precision, dropout)
        if kernels == "auto":
            kernels = best_kernels(device_type)
        if not assumed_gpus:
            faults.attempt(lambda: check_backend(attention, device_type, dropout))
            faults.attempt(lambda: check_kernels(kernels, device_type))
        return KernelChoice(attention, kernels)
