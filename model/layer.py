"""One encoder layer: Megatron's SelfAttention and feed-forward, with the norms after the sums.

Megatron's own `TransformerLayer` is pre-norm (its `apply_residual_connection_post_layernorm` is
read nowhere), so the layer keeps Megatron's parts and has a forward of its own:

    h = norm1(x + dropout(attention(x)))
    y = norm2(h + dropout(feed_forward(h)))

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

import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)
from torch import Tensor, nn

from model.attention import check_backend, packed_attention, slopes_on
from model.config import ModelConfig
from model.feed_forward import feed_forward_spec
from model.parallel import own_dropout


@dataclass
class PackedSequences(PackedSeqParams):
    """The packed batch as the layers see it; Megatron passes it through to the core attention."""

    keep: Tensor | None = None
    """int64 [K]: rows of the attention's output to go on with; None for all."""

    @classmethod
    def of(cls, offsets: Tensor, max_length: int, keep: Tensor | None = None) -> PackedSequences:
        return cls(
            qkv_format="thd",
            cu_seqlens_q=offsets,
            cu_seqlens_kv=offsets,
            max_seqlen_q=max_length,
            max_seqlen_kv=max_length,
            keep=keep,
        )


class PackedCoreAttention(MegatronModule):
    """Megatron's core attention slot, filled by `model.attention.packed_attention`."""

    def __init__(self, config: TransformerConfig, **_: Any):
        super().__init__(config=config)
        rank = parallel_state.get_tensor_model_parallel_rank()
        heads = config.num_attention_heads
        self.local_heads = heads // config.tensor_model_parallel_size
        self.first_head = rank * self.local_heads
        self.backend = config.attention_backend_name  # type: ignore[attr-defined]
        self.dropout = config.attention_dropout
        self.alibi = config.rapidbert.positions == "alibi"  # type: ignore[attr-defined]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: None = None,
        packed_seq_params: PackedSequences | None = None,
    ) -> Tensor:
        """query, key, value [T, heads / TP, head_dim] to context of that shape, or of K rows."""
        assert packed_seq_params is not None, "the encoder works on packed sequences only"
        slopes = None
        if self.alibi:
            slopes = slopes_on(
                query.device, self.config.num_attention_heads, self.first_head, self.local_heads
            )
        dropout = self.dropout if self.training else 0.0
        with own_dropout(query.device) if dropout else contextlib.nullcontext():
            context = packed_attention(
                query,
                key,
                value,
                packed_seq_params.cu_seqlens_q,
                packed_seq_params.max_seqlen_q,
                slopes=slopes,
                dropout=dropout,
                backend=self.backend,
            )
        return _rows(context, packed_seq_params.keep)


@dataclass
class PostNormLayerSubmodules(TransformerLayerSubmodules):
    """Megatron's parts list, with the two norms where a post-norm layer has them."""

    post_attention_layernorm: ModuleSpec | type = nn.Identity
    post_mlp_layernorm: ModuleSpec | type = nn.Identity


class PostNormTransformerLayer(TransformerLayer):
    """Megatron's `TransformerLayer` with the norm after each residual sum."""

    def __init__(self, config: TransformerConfig, submodules: PostNormLayerSubmodules, **kwargs):
        super().__init__(config=config, submodules=submodules, **kwargs)
        for name in ("post_attention_layernorm", "post_mlp_layernorm"):
            norm = build_module(
                getattr(submodules, name), config.hidden_size, eps=config.layernorm_epsilon
            )
            setattr(self, name, norm)

    def forward(self, hidden: Tensor, packed: PackedSequences) -> Tensor:  # type: ignore[override]
        """[T, 1, hidden] to [T, 1, hidden], or to [K, 1, hidden] where `packed.keep` is given."""
        residual = _rows(hidden, packed.keep)
        attended = self.self_attention(hidden, attention_mask=None, packed_seq_params=packed)
        hidden = self.post_attention_layernorm(residual + self._dropout(*attended))
        return self.post_mlp_layernorm(hidden + self._dropout(*self.mlp(hidden)))

    def _dropout(self, output: Tensor, bias: Tensor) -> Tensor:
        return F.dropout(output + bias, self.hidden_dropout, self.training)


def _rows(tensor: Tensor, keep: Tensor | None) -> Tensor:
    return tensor if keep is None else tensor.index_select(0, keep)


def layer_spec(config: ModelConfig) -> ModuleSpec:
    """The architecture as a parts list."""
    return ModuleSpec(
        module=PostNormTransformerLayer,
        submodules=PostNormLayerSubmodules(
            self_attention=ModuleSpec(
                module=SelfAttention,
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


def megatron_config(config: ModelConfig, attention_backend: str) -> TransformerConfig:
    """Megatron's configuration for `config`; weights fp32, made on the CPU.

    On the CPU Megatron builds the whole matrix and cuts out the rank's part, so that one seed
    gives one model whatever the device and the tensor-parallel size.

    Raises:
        ValueError: unknown attention backend.
    """
    check_backend(attention_backend)

    def init_method(weight: Tensor) -> Tensor:
        return nn.init.normal_(weight, std=config.initializer_range)

    megatron = TransformerConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.ffn_size,
        num_attention_heads=config.num_heads,
        layernorm_epsilon=config.layernorm_eps,
        hidden_dropout=config.hidden_dropout,
        attention_dropout=config.attention_dropout,
        activation_func=F.gelu,
        add_bias_linear=True,
        init_method=init_method,
        output_layer_init_method=init_method,
        use_cpu_initialization=True,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
    )
    # Read by our modules in Megatron's slots, which are handed this configuration alone.
    megatron.rapidbert = config  # type: ignore[attr-defined]
    megatron.attention_backend_name = attention_backend  # type: ignore[attr-defined]
    return megatron
