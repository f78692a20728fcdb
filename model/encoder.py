"""Embedding and layers: packed token ids in, packed hidden states out."""

from __future__ import annotations

from dataclasses import replace

from megatron.core.tensor_parallel import VocabParallelEmbedding
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import ModelConfig
from .kernels.hashed_dropout import row_keys as dropout_row_keys
from .kernels.operations import dropout
from .layer import EMBEDDING_SITE, PackedSequences, layer_spec
from .padding import sequence_of_row


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

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None, packed: PackedSequences
    ) -> Tensor:
        """int64 [T] to [T, 1, hidden]; without `token_type_ids` every token is of type 0."""
        hidden = self.word_embeddings(input_ids)
        if token_type_ids is None:
            hidden = hidden + self.token_type_embeddings.weight[0]
        else:
            hidden = hidden + self.token_type_embeddings(token_type_ids)
        if self.position_embeddings is not None:
            sequence, position = sequence_of_row(packed.offsets, input_ids.shape[0])
            # Rows behind the last sequence may count past the table; what they hold is not used.
            position = position.masked_fill(sequence >= packed.offsets.shape[0] - 1, 0)
            hidden = hidden + self.position_embeddings(position)
        hidden = dropout(
            self.layernorm(hidden),
            self.dropout if self.training else 0.0,
            packed.row_keys,
            EMBEDDING_SITE,
            self.config.kernels,
        )
        return hidden.unsqueeze(1)


class Encoder(MegatronModule):
    """The embedding and `num_layers` post-norm layers.

    Args:
        recompute: of all layers but the last keep only the input, and compute the rest again.
    """

    def __init__(self, config: ModelConfig, megatron: TransformerConfig, recompute: bool = False):
        super().__init__(config=megatron)
        self.recompute = recompute
        self.drops = max(config.hidden_dropout, config.ffn_dropout) > 0
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
        sequence_keys: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the last layer.

        Args:
            input_ids: int64 [T].
            sequence_offsets: int32 [S+1] (see `model.padding`).
            max_sequence_length: at least as long as every sequence.
            token_type_ids: int64 [T], or None for all zeros.
            keep: int64 [K], rows wanted; None for all.
            sequence_keys: int64 [S], what dropout masks are a hash of (see `hashed_dropout`);
                needed in training, unless the model has no dropout.

        Returns:
            [T, hidden], or [K, hidden] in the order of `keep`.

        Raises:
            ValueError: learned positions do not reach to `max_sequence_length`, or
                `sequence_keys` are missing.
        """
        positions = self.embedding.position_embeddings
        if positions is not None and max_sequence_length > positions.num_embeddings:
            raise ValueError(
                f"sequences of {max_sequence_length} tokens, but the model has learned positions "
                f"for {positions.num_embeddings}"
            )
        row_keys = None
        if self.training and self.drops:
            if sequence_keys is None:
                raise ValueError("training with dropout needs sequence_keys")
            row_keys = dropout_row_keys(sequence_keys, sequence_offsets, input_ids.shape[0])
        packed = PackedSequences(sequence_offsets, max_sequence_length, row_keys)
        hidden = residual = self.embedding(input_ids, token_type_ids, packed)
        for layer in self.layers[:-1]:
            hidden, residual = self._through(layer, hidden, residual, packed)
        # Its backward pass comes first: computing the last layer again would save nothing.
        hidden, _ = self.layers[-1](hidden, residual, replace(packed, keep=keep))
        return hidden.squeeze(1)

    def _through(self, layer, hidden, residual, packed) -> tuple[Tensor, Tensor]:
        if not (self.recompute and self.training):
            return layer(hidden, residual, packed)
        return checkpoint(
            *(layer, hidden, residual, packed),
            use_reentrant=False,
            # Only the attention's dropout draws; all other masks are a function of place.
            preserve_rng_state=self.config.attention_dropout > 0,
        )
