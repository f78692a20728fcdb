"""The encoder with its masked-language-model head and loss."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .config import PLAIN, ModelConfig, ModelOptions
from .encoder import RapidBert
from .kernels.operations import cross_entropy
from .labels import IGNORED_LABEL
from .megatron import (
    copy_to_tensor_model_parallel_region,
    parallel_state,
    set_tensor_model_parallel_attributes,
    vocab_parallel_cross_entropy,
)
from .padding import pack
from .parallel import parallel_size
from .pretrained import Exported


class MaskedLMHead(nn.Module):
    """Dense, GELU, LayerNorm, and a decoder: the word embedding's matrix plus a bias."""

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
        """Turn [K, hidden] into logits [K, V / TP]."""
        hidden = self.layernorm(F.gelu(self.dense(hidden)))
        hidden = copy_to_tensor_model_parallel_region(
            hidden, group=parallel_state.get_tensor_model_parallel_group()
        )
        return F.linear(hidden, word_embeddings, self.decoder_bias)


class RapidBertForMaskedLM(Exported):
    """RapidBERT or BERT with the masked-language-model objective. No next-sentence loss.

    Weights and errors are as in `model.encoder.RapidBert`.
    """

    HEAD = "masked_lm"

    def __init__(self, config: ModelConfig, options: ModelOptions = PLAIN):
        super().__init__()
        self.config = config
        self.options = options
        self.encoder = RapidBert(config, options)
        self.head = MaskedLMHead(config)

    def logits(
        self,
        input_ids: Tensor,
        sequence_offsets: Tensor | None = None,
        max_sequence_length: int | None = None,
        rows: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Score every piece of the vocabulary.

        Args:
            rows: int64 [K], rows of a packed batch that are wanted; None for all.
            Others as in `RapidBert.forward`, packed or padded.

        Returns:
            [T or K, V]; of a padded batch [S, L, V], zeros on padding.
        """
        batch = pack(
            input_ids, sequence_offsets, max_sequence_length, token_type_ids, attention_mask
        )
        if rows is not None and batch.padded:
            raise ValueError("rows are of a packed batch, and this one is padded")
        local = self._local_logits(
            batch.input_ids,
            batch.sequence_offsets,
            batch.max_sequence_length,
            rows,
            batch.token_type_ids,
            None,
        )
        return batch.restore(self._gather(local))

    def _gather(self, local: Tensor) -> Tensor:
        """Put [K, V / TP] of every tensor-parallel rank together: [K, V]."""
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
        """Sum the cross-entropies of the masked tokens: fp32 scalar, in nats.

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
            return cross_entropy(logits, labels, IGNORED_LABEL, self.options.kernels)
        # The vocabulary is split: Megatron's loss, whichever kernels are asked for.
        losses: Tensor = vocab_parallel_cross_entropy(logits, labels)  # [K]
        return losses.masked_fill(labels == IGNORED_LABEL, 0.0).sum()

    def _local_logits(
        self,
        input_ids: Tensor,
        offsets: Tensor,
        max_length: int,
        rows: Tensor | None,
        token_type_ids: Tensor | None,
        sequence_keys: Tensor | None,
    ) -> Tensor:
        """Compute the logits of this rank's part of the vocabulary, [K, V / TP]."""
        hidden = self.encoder(input_ids, offsets, max_length, token_type_ids, rows, sequence_keys)
        logits: Tensor = self.head(hidden, self.encoder.embedding.word_embeddings.weight)
        return logits
