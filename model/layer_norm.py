"""LayerNorm in the precision of the activations.

Autocast runs LayerNorm in fp32 and hands fp32 on; that doubles the bytes of an operation that is
nothing but bytes. Under autocast this one takes its input and its parameters in the autocast
precision. Inside the kernel the statistics are fp32 whatever the precision of the tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowPrecisionLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` whose tensors stay in the autocast precision; plain otherwise."""

    def __init__(self, hidden_size: int, eps: float = 1e-12, config: object | None = None):
        super().__init__(hidden_size, eps=eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden_size] to [..., hidden_size]."""
        device = hidden.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(hidden)
        dtype = torch.get_autocast_dtype(device)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        with torch.autocast(device, enabled=False):
            return F.layer_norm(hidden.to(dtype), self.normalized_shape, weight, bias, self.eps)
