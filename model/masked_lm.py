"""The encoder with its masked-language-model head and loss."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
    vocab_parallel_cross_entropy,
)
from torch import Tensor, nn

from .config import ModelConfig
from .encoder import Encoder
from .kernels.operations import cross_entropy
from .layer import megatron_config
from .parallel import parallel_size

IGNORED_LABEL = -100
"""Label of rows that only round the number of masked tokens up to one of a few shapes."""


class MaskedLMHead(nn.Module):
    """Dense, GELU, LayerNorm; the decoder is the word embedding's matrix plus a bias."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        nn.init.normal_(self.dense.weight, std=config.initializer_range)
        nn.init.zeros_(self.dense.bias)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_eps)
        shards = parallel_state.get_tensor_model_parallel_world_size()
        self.decoder_bias = nn.Parameter(torch.zeros(config.padded_vocab_size // shards))
        set_tensor_model_parallel_attributes(self.decoder_bias, is_parallel=True, dim=0, stride=1)

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """[K, hidden] to logits [K, padded vocabulary / TP]."""
        hidden = self.layernorm(F.gelu(self.dense(hidden)))
        hidden = copy_to_tensor_model_parallel_region(
            hidden, group=parallel_state.get_tensor_model_parallel_group()
        )
        return F.linear(hidden, word_embeddings, self.decoder_bias)


class MaskedLM(nn.Module):
    """RapidBERT or BERT with the masked-language-model objective. No next-sentence loss.

    `initialize_parallel` must have been called. The same seed of `torch.manual_seed` gives the
    same weights on any device and any tensor-parallel size.

    Args:
        attention_backend: see `model.attention`; kernels: see `kernels.operations`.
        recompute: see `model.encoder.Encoder`.
    """

    kernels: str

    def __init__(
        self,
        config: ModelConfig,
        attention_backend: str = "reference",
        kernels: str = "torch",
        recompute: bool = False,
    ):
        super().__init__()
        self.config = config
        self.kernels = kernels
        megatron = megatron_config(config, attention_backend, kernels)
        self.encoder = Encoder(config, megatron, recompute)
        self.head = MaskedLMHead(config)

    def logits(
        self,
        input_ids: Tensor,
        sequence_offsets: Tensor,
        max_sequence_length: int,
        rows: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Scores of the whole vocabulary, [K, padded vocabulary], for `rows` int64 [K] or all."""
        local = self._local_logits(
            input_ids, sequence_offsets, max_sequence_length, rows, token_type_ids, None
        )
        group = parallel_state.get_tensor_model_parallel_group()
        if group.size() == 1:
            return local
        # Megatron's own gather allocates on the current CUDA device, even without one.
        shards = [torch.empty_like(local) for _ in range(group.size())]
        dist.all_gather(shards, local.contiguous(), group=group)
        shards[group.rank()] = local  # the one that a gradient may flow back to
        return torch.cat(shards, dim=-1)

    def forward(
        self,
        input_ids: Tensor,
        sequence_offsets: Tensor,
        max_sequence_length: int,
        masked_positions: Tensor,
        labels: Tensor,
        token_type_ids: Tensor | None = None,
        sequence_keys: Tensor | None = None,
    ) -> Tensor:
        """Sum of the cross-entropies of the masked tokens, in nats, fp32 scalar.

        A sum, so that the caller can divide by the masked tokens of the whole global batch.

        Args:
            input_ids: int64 [T]; sequence_offsets: int32 [S+1] (see `model.padding`).
            max_sequence_length: at least as long as every sequence.
            masked_positions: int64 [K], rows of `input_ids` to predict.
            labels: int64 [K], ids that stood there; `IGNORED_LABEL` where a row does not count.
            token_type_ids: int64 [T], or None for all zeros.
            sequence_keys: int64 [S], what dropout masks are a hash of (see `hashed_dropout`).
        """
        logits = self._local_logits(
            input_ids,
            sequence_offsets,
            max_sequence_length,
            masked_positions,
            token_type_ids,
            sequence_keys,
        )
        if parallel_size() == 1:
            return cross_entropy(logits, labels, IGNORED_LABEL, self.kernels)
        # The vocabulary is split: Megatron's loss, whichever kernels are asked for.
        losses = vocab_parallel_cross_entropy(logits, labels)
        return losses.masked_fill(labels == IGNORED_LABEL, 0.0).sum()

    def _local_logits(
        self, input_ids, offsets, max_length, rows, token_type_ids, sequence_keys
    ) -> Tensor:
        hidden = self.encoder(input_ids, offsets, max_length, token_type_ids, rows, sequence_keys)
        return self.head(hidden, self.encoder.embedding.word_embeddings.weight)
