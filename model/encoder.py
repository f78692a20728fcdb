"""Embedding and layers: packed token ids in, packed hidden states out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import PLAIN, ModelConfig, ModelOptions
from .kernels.hashed_dropout import row_keys as dropout_row_keys
from .kernels.operations import embedding, norm_dropout
from .layer import EMBEDDING_SITE, PackedSequences, layer_spec
from .megatron import VocabParallelEmbedding, build_module
from .megatron_config import MegatronConfig, megatron_config
from .padding import pack, sequence_of_row
from .parallel import parallel_size
from .pretrained import Exported


class Embedding(nn.Module):
    """The sum of word, token type and learned position embeddings, then LayerNorm, dropout."""

    def __init__(self, config: ModelConfig, megatron: MegatronConfig):
        super().__init__()
        self.kernels = megatron.options.kernels
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
        """Embed int64 [T] as [T, 1, hidden]. Without `token_type_ids` every token is of type 0."""

        def rows(table: Tensor, ids: Tensor) -> Tensor:
            return embedding(table, ids, packed.offsets[-1], self.kernels)

        if parallel_size() > 1:  # each rank has a part of the vocabulary
            hidden = self.word_embeddings(input_ids)
        else:
            hidden = rows(self.word_embeddings.weight, input_ids)
        bias = None
        if token_type_ids is not None:
            hidden = hidden + rows(self.token_type_embeddings.weight, token_type_ids)
        elif self.position_embeddings is not None:
            hidden = hidden + self.token_type_embeddings.weight[0]
        else:  # the norm adds it
            bias = self.token_type_embeddings.weight[0]
        if self.position_embeddings is not None:
            sequence, position = sequence_of_row(packed.offsets, input_ids.shape[0])
            # Rows behind the last sequence may count past the table; what they hold is not used.
            position = position.masked_fill(sequence >= packed.offsets.shape[0] - 1, 0)
            hidden = hidden + rows(self.position_embeddings.weight, position)
        hidden = norm_dropout(
            hidden,
            bias,
            self.layernorm,
            self.dropout if self.training else 0.0,
            packed.row_keys,
            EMBEDDING_SITE,
            self.kernels,
        )
        return hidden.unsqueeze(1)  # [T, hidden] to [T, 1, hidden]


class RapidBert(Exported):
    """The embedding and `num_layers` post-norm layers: token ids in, hidden states out.

    RapidBERT's or BERT's, as the configuration says. The same seed of `torch.manual_seed` gives the
    same weights on any device and any tensor-parallel size.

    Raises:
        ValueError: the options name no attention backend or no kernels.
        RuntimeError: one of several processes, before `initialize_parallel` was called.
    """

    HEAD = "none"
    PREFIX = "encoder."

    def __init__(self, config: ModelConfig, options: ModelOptions = PLAIN):
        super().__init__()
        self.config = config
        self.options = options
        megatron = megatron_config(config, options)
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
        sequence_offsets: Tensor | None = None,
        max_sequence_length: int | None = None,
        token_type_ids: Tensor | None = None,
        keep: Tensor | None = None,
        sequence_keys: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the hidden states of the last layer.

        Args:
            input_ids: int64 [T], packed, with `sequence_offsets` int32 [S+1] and
                `max_sequence_length`, at least as long as every sequence (see `model.padding`); or
                int64 [S, L], padded, with `attention_mask` [S, L], non-zero on real tokens.
            token_type_ids: int64, shaped like `input_ids`; None for all zeros.
            keep: int64 [K], rows of a packed batch that are wanted; None for all.
            sequence_keys: int64 [S], what dropout masks are a hash of (see `hashed_dropout`);
                needed in training, unless the model has no dropout.

        Returns:
            [T, hidden], or [K, hidden] in the order of `keep`; of a padded batch [S, L, hidden],
            zeros on padding.

        Raises:
            ValueError: learned positions do not reach to `max_sequence_length` (or L),
                `sequence_keys` are missing, or the arguments do not belong together.
        """
        batch = pack(
            input_ids, sequence_offsets, max_sequence_length, token_type_ids, attention_mask
        )
        if keep is not None and batch.padded:
            raise ValueError("keep names rows of a packed batch, and this one is padded")
        positions = self.embedding.position_embeddings
        if positions is not None and batch.max_sequence_length > positions.num_embeddings:
            raise ValueError(
                f"sequences of {batch.max_sequence_length} tokens, but the model has learned "
                f"positions for {positions.num_embeddings}"
            )
        row_keys = None
        if self.training and self.drops:
            if sequence_keys is None:
                raise ValueError("training with dropout needs sequence_keys")
            row_keys = dropout_row_keys(
                sequence_keys, batch.sequence_offsets, batch.input_ids.shape[0]
            )
        packed = PackedSequences(batch.sequence_offsets, batch.max_sequence_length, row_keys)
        hidden = residual = self.embedding(batch.input_ids, batch.token_type_ids, packed)
        first: Any = self.layers[0]  # whose parts are Megatron's, Any to a type checker
        packed.plan = first.self_attention.core_attention.plan(hidden, packed)
        for layer in self.layers[:-1]:
            hidden, residual = self._through(layer, hidden, residual, packed)
        # Its backward pass comes first: computing the last layer again would save nothing.
        hidden, _ = self.layers[-1](hidden, residual, replace(packed, keep=keep))
        return batch.restore(hidden.squeeze(1))  # [T or K, 1, hidden] without the 1

    def _through(
        self, layer: nn.Module, hidden: Tensor, residual: Tensor, packed: PackedSequences
    ) -> tuple[Tensor, Tensor]:
        """Run one layer on [T, 1, hidden] twice (see `PostNormTransformerLayer.forward`)."""
        output: tuple[Tensor, Tensor]
        if self.options.recompute and self.training:
            output = checkpoint(
                *(layer, hidden, residual, packed),
                use_reentrant=False,
                # Only the attention's dropout draws; all other masks are a function of place.
                preserve_rng_state=self.config.attention_dropout > 0,
            )
        else:
            output = layer(hidden, residual, packed)
        return output
