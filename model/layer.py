"""One encoder layer: Megatron's SelfAttention and feed-forward, with the norms after the sums.

Megatron's own `TransformerLayer` is pre-norm (its `apply_residual_connection_post_layernorm` is
read nowhere), so the layer keeps Megatron's parts and has a forward of its own:

    h = norm1(x + dropout(attention(x)))
    y = norm2(h + feed_forward(h))              gated: dropout stands before its second matrix
    y = norm2(h + dropout(feed_forward(h)))     BERT's

Hidden states are packed, [T, 1, hidden]: Megatron's "thd" format. The last layer of pretraining
is told to `keep` only the rows to predict: attention still reads every row, everything behind it
runs on the kept ones. At 30% masking this saves 70% of the layer after its attention.

LayerNorm runs in the precision of the activations: in a bf16 engine its input, output and weights
are bf16 (the kernel's statistics are fp32), half the bytes of an operation that is nothing but
bytes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import packed_attention, plan_attention, slopes_on, takes_bias
from .config import ModelConfig
from .feed_forward import feed_forward_spec
from .kernels.operations import residual_norm
from .megatron import (
    AttnMaskType,
    ColumnParallelLinear,
    ModuleSpec,
    RowParallelLinear,
    SelfAttention,
    SelfAttentionSubmodules,
    TransformerLayer,
    TransformerLayerSubmodules,
    build_module,
)
from .megatron_config import MegatronConfig
from .padded_attention import PaddingPlan
from .parallel import linear, own_dropout, parallel_rank, parallel_size

# Dropout sites (see `hashed_dropout`): the embedding, the pooler, from 4 on those of the layers.
EMBEDDING_SITE, HEAD_SITE = 0, 1
_SITES_PER_LAYER = 4
_ATTENTION_SITE, _INNER_SITE, _OUTPUT_SITE = 0, 1, 2


# Megatron's classes are Any to a type checker (see `megatron.py`). What is derived from them says
# so, and takes as `**_` or `**rest` what Megatron hands to its parts and ours do not read.


@dataclass
class PackedSequences:
    """The packed batch as the layers see it."""

    offsets: Tensor
    """int32 [S+1] (see `model.padding`)."""
    max_length: int
    """At least as long as every sequence."""
    row_keys: Tensor | None = None
    """int64 [T], what dropout masks are a hash of; None where nothing is dropped."""
    keep: Tensor | None = None
    """int64 [K]: rows of the attention's output to go on with; None for all."""
    plan: PaddingPlan | None = None
    """What `PackedCoreAttention.plan` made for all layers; None if each shall make its own."""


class PackedCoreAttention(nn.Module):
    """Puts `model.attention.packed_attention` into Megatron's slot for the core of attention."""

    def __init__(self, config: MegatronConfig, **_: Any):
        super().__init__()
        self.heads = config.num_attention_heads
        self.local_heads = self.heads // config.tensor_model_parallel_size
        self.first_head = parallel_rank() * self.local_heads
        self.backend = config.options.attention
        self.dropout = config.attention_dropout
        self.alibi = config.model.positions == "alibi"

    def forward(self, qkv: Tensor, packed: PackedSequences, bias: Tensor | None = None) -> Tensor:
        """Turn QKV [T, H / TP, 3, D] into the context [T, H / TP, D]; see `packed_attention`."""
        dropout = self.dropout if self.training else 0.0
        with own_dropout(qkv.device) if dropout else contextlib.nullcontext():
            return packed_attention(
                qkv,
                packed.offsets,
                packed.max_length,
                slopes=self._slopes(qkv.device),
                dropout=dropout,
                backend=self.backend,
                bias=bias,
                plan=packed.plan,
            )

    def plan(self, hidden: Tensor, packed: PackedSequences) -> PaddingPlan | None:
        """Plan the attention of all layers over a batch of hidden states [T, 1, hidden]."""
        return plan_attention(
            self.backend,
            packed.offsets,
            packed.max_length,
            hidden.shape[0],
            self._slopes(hidden.device),
            hidden.dtype,
        )

    def _slopes(self, device: torch.device) -> Tensor | None:
        if not self.alibi:
            return None
        return slopes_on(device, self.heads, self.first_head, self.local_heads)


class PackedSelfAttention(SelfAttention):  # type: ignore[misc]  # Megatron: Any
    """Megatron's `SelfAttention` with a forward that leaves QKV where its matmul put it."""

    def forward(self, hidden: Tensor, packed: PackedSequences) -> tuple[Tensor, Tensor]:
        """Turn [T, 1, hidden] into [T or K, 1, hidden] without its bias, and the bias."""
        bias = None
        if takes_bias(self.core_attention.backend) and parallel_size() == 1:
            bias = self.linear_qkv.bias
        qkv = linear(self.linear_qkv, hidden, bias_gradient=bias is None)  # [T, 1, H * 3 * D / TP]
        qkv = qkv.view(
            hidden.shape[0], -1, 3, self.hidden_size_per_attention_head
        )  # [T, H / TP, 3, D]
        context = _rows(self.core_attention(qkv, packed, bias), packed.keep)
        context = context.flatten(1).unsqueeze(1)  # [T or K, H / TP, D] to [T or K, 1, H * D / TP]
        return linear(self.linear_proj, context), self.linear_proj.bias


@dataclass
class PostNormLayerSubmodules(TransformerLayerSubmodules):  # type: ignore[misc]  # Megatron: Any
    """Megatron's parts list, with the two norms where a post-norm layer has them."""

    post_attention_layernorm: ModuleSpec | type = nn.Identity
    post_mlp_layernorm: ModuleSpec | type = nn.Identity


class PostNormTransformerLayer(TransformerLayer):  # type: ignore[misc]  # Megatron: Any
    """Megatron's `TransformerLayer` with the norm after each residual sum."""

    def __init__(self, config: MegatronConfig, submodules: PostNormLayerSubmodules, **rest: Any):
        super().__init__(config=config, submodules=submodules, **rest)
        for name in ("post_attention_layernorm", "post_mlp_layernorm"):
            norm = build_module(
                getattr(submodules, name), config.hidden_size, eps=config.layernorm_epsilon
            )
            setattr(self, name, norm)
        self.gated = config.model.feed_forward != "standard"

    def forward(
        self, hidden: Tensor, residual: Tensor, packed: PackedSequences
    ) -> tuple[Tensor, Tensor]:
        """Turn [T, 1, hidden] into [T, 1, hidden], or [K, 1, hidden] where `packed.keep` is given.

        The hidden states come and go twice, for the matmuls and for the residual sum: the same
        values, whose gradients the norm's kernel adds (see `operations.residual_norm`).
        """
        keys, site = packed.row_keys, _SITES_PER_LAYER * self.layer_number
        kept_keys = None if keys is None else _rows(keys, packed.keep)

        def add(
            output: Tensor,
            bias: Tensor,
            residual: Tensor,
            norm: nn.LayerNorm,
            site: int,
            dropped: bool = True,
        ) -> tuple[Tensor, Tensor]:
            dropout = self.hidden_dropout if self.training and dropped else 0.0
            kernels = self.config.options.kernels
            return residual_norm(output, bias, residual, norm, dropout, kept_keys, site, kernels)

        attended, bias = self.self_attention(hidden, packed)
        residual = _rows(residual, packed.keep)
        norm = self.post_attention_layernorm
        hidden, residual = add(attended, bias, residual, norm, site + _ATTENTION_SITE)
        # Megatron's own MLP, the standard one, drops nothing inside.
        arguments = (hidden, kept_keys, site + _INNER_SITE) if self.gated else (hidden,)
        fed_forward, bias = self.mlp(*arguments)
        # A gated one has dropped what goes into its second matrix, and nothing that comes out.
        norm = self.post_mlp_layernorm
        return add(fed_forward, bias, residual, norm, site + _OUTPUT_SITE, dropped=not self.gated)


def _rows(tensor: Tensor, keep: Tensor | None) -> Tensor:
    return tensor if keep is None else tensor.index_select(0, keep)


def layer_spec(config: ModelConfig) -> ModuleSpec:
    """Return the architecture as a parts list."""
    return ModuleSpec(
        module=PostNormTransformerLayer,
        submodules=PostNormLayerSubmodules(
            self_attention=ModuleSpec(
                module=PackedSelfAttention,
                params={"attn_mask_type": AttnMaskType.padding},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=PackedCoreAttention,
                    linear_proj=RowParallelLinear,
                ),
            ),
            post_attention_layernorm=nn.LayerNorm,
            mlp=feed_forward_spec(config),
            post_mlp_layernorm=nn.LayerNorm,
        ),
    )
