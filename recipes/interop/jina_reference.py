"""JinaBERT-v2's forward pass, written down from its definition: for the check of what is written.

Plain PyTorch on padded batches in fp32, a layer per turn of a loop, with nothing of the training's
model in it: neither its slopes, its packing nor its order of QKV.

Shapes: S sequences, L tokens, H heads, D dimensions of a head, hidden = H * D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def hidden_states(weights: Weights, config: Mapping[str, Any], ids: Tensor, mask: Tensor) -> Tensor:
    """Compute the last layer's hidden states, [S, L, hidden]; those of padding mean nothing.

    Args:
        weights, config: as `model.safetensors` and `config.json` have them.
        ids, mask: int64 [S, L], the mask zero on padding.

    Raises:
        KeyError: a tensor or a value is missing.
    """
    prefix = "bert." if any(name.startswith("bert.") for name in weights) else ""
    eps, heads = config["layer_norm_eps"], config["num_attention_heads"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *_both(weights, prefix + name), eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, *_both(weights, prefix + name))

    def per_head(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # [S, H, L, D]

    words = weights[f"{prefix}embeddings.word_embeddings.weight"][ids]
    types = weights[f"{prefix}embeddings.token_type_embeddings.weight"][0]
    x = norm(words + types, "embeddings.LayerNorm")
    bias = _alibi(heads, ids.shape[1]) + (1.0 - mask[:, None, None, :]) * -1e30
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        query, key, value = (
            per_head(linear(x, f"{layer}.attention.self.{part}"))
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        context = (scores + bias).softmax(-1) @ value
        context = context.transpose(1, 2).flatten(2)  # [S, L, hidden]
        out = linear(context, f"{layer}.attention.output.dense")
        x = norm(out + x, f"{layer}.attention.output.LayerNorm")
        both = F.linear(x, weights[f"{prefix}{layer}.mlp.gated_layers.weight"])
        size = config["intermediate_size"]
        gated = F.gelu(both[..., :size]) * both[..., size:]
        x = norm(linear(gated, f"{layer}.mlp.wo") + x, f"{layer}.mlp.layernorm")
    return x


def logits(weights: Weights, config: Mapping[str, Any], hidden: Tensor) -> Tensor:
    """Score every piece, [S, L, V], from hidden states of the last layer."""
    head = "cls.predictions.transform"
    x = F.gelu(F.linear(hidden, *_both(weights, f"{head}.dense")))
    x = F.layer_norm(
        x, x.shape[-1:], *_both(weights, f"{head}.LayerNorm"), config["layer_norm_eps"]
    )
    words = weights["bert.embeddings.word_embeddings.weight"]
    return F.linear(x, words, weights["cls.predictions.bias"])


def _both(weights: Weights, name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _alibi(heads: int, length: int) -> Tensor:
    """Return -slope * |i - j|, fp32 [1, H, L, L], with the slopes of the ALiBi paper's own code."""

    def slopes(count: int) -> list[float]:
        if math.log2(count).is_integer():
            start = 2 ** (-(2 ** -(math.log2(count) - 3)))
            return [start * start**i for i in range(count)]
        lower = 2 ** math.floor(math.log2(count))
        return slopes(lower) + slopes(2 * lower)[0::2][: count - lower]

    places = torch.arange(length)
    distance = (places[:, None] - places[None, :]).abs()
    return -torch.tensor(slopes(heads)).view(1, -1, 1, 1) * distance
