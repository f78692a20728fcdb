"""Embedding and layers: packed token ids in, packed hidden states out."""

from __future__ import annotations

import torch.nn.functional as F
from megatron.core.tensor_parallel import VocabParallelEmbedding
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from model.config import ModelConfig
from model.layer import PackedSequences, layer_spec
from model.padding import sequence_of_row


class Embedding(MegatronModule):
    """Word + token type (+ position) embeddings, LayerNorm, dropout."""

    def __init__(self, config: ModelConfig, megatron: TransformerConfig):
        super().__init__(config=megatron)
        self.word_embeddings = VocabParallelEmbedding(
            config.padded_vocab_size,
            config.hidden_size,
            init_method=megatron.init_method,
            config=megatron,
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        nn.init.normal_(self.token_type_embeddings.weight, std=config.initializer_range)
        self.position_embeddings = None
        if config.positions == "learned":
            self.position_embeddings = nn.Embedding(config.max_positions, config.hidden_size)
            nn.init.normal_(self.position_embeddings.weight, std=config.initializer_range)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_eps)
        self.dropout = config.hidden_dropout

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, offsets: Tensor) -> Tensor:
        """int64 [T] to [T, 1, hidden]; without `token_type_ids` every token is of type 0."""
        hidden = self.word_embeddings(input_ids)
        if token_type_ids is None:
            hidden = hidden + self.token_type_embeddings.weight[0]
        else:
            hidden = hidden + self.token_type_embeddings(token_type_ids)
        if self.position_embeddings is not None:
            sequence, position = sequence_of_row(offsets, input_ids.shape[0])
            # Rows behind the last sequence may count past the table; what they hold is not used.
            position = position.masked_fill(sequence >= offsets.shape[0] - 1, 0)
            hidden = hidden + self.position_embeddings(position)
        hidden = F.dropout(self.layernorm(hidden), self.dropout, self.training)
        return hidden.unsqueeze(1)


class Encoder(MegatronModule):
    """The embedding and `num_layers` post-norm layers."""

    def __init__(self, config: ModelConfig, megatron: TransformerConfig):
        super().__init__(config=megatron)
        self.embedding = Embedding(config, megatron)
        spec = layer_spec(config)
        self.layers = nn.ModuleList(
            build_module(spec, config=megatron, layer_number=number + 1)
            for number in range(config.num_layers)
        )

    def forward(
        self,
        input_ids: Tensor,
        sequence_offsets: Tensor,
        max_sequence_length: int,
        token_type_ids: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the last layer.

        Args:
            input_ids: int64 [T].
            sequence_offsets: int32 [S+1] (see `model.padding`).
            max_sequence_length: at least as long as every sequence.
            token_type_ids: int64 [T], or None for all zeros.
            keep: int64 [K], rows wanted; None for all.

        Returns:
            [T, hidden], or [K, hidden] in the order of `keep`.

        Raises:
            ValueError: learned positions do not reach to `max_sequence_length`.
        """
        positions = self.embedding.position_embeddings
        if positions is not None and max_sequence_length > positions.num_embeddings:
            raise ValueError(
                f"sequences of {max_sequence_length} tokens, but the model has learned positions "
                f"for {positions.num_embeddings}"
            )
        packed = PackedSequences.of(sequence_offsets, max_sequence_length)
        last = PackedSequences.of(sequence_offsets, max_sequence_length, keep)
        hidden = self.embedding(input_ids, token_type_ids, sequence_offsets)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, packed)
        return self.layers[-1](hidden, last).squeeze(1)
