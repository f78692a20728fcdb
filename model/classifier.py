"""The encoder with a pooler and a linear head: it classifies or scores sequences and pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import PLAIN, ModelConfig, ModelOptions
from .encoder import RapidBert
from .kernels.hashed_dropout import dropout
from .labels import IGNORED_LABEL
from .layer import HEAD_SITE
from .padding import pack
from .pretrained import Exported


class RapidBertForSequenceClassification(Exported):
    """The encoder, a pooler (dense + tanh on the first token), dropout and a linear head.

    The pooler does not exist during pretraining; it and the head start from random weights. Other
    weights and errors are as in `model.encoder.RapidBert`.

    Args:
        outputs: classes, of which a sequence has one or several, or 1 for a regression.
        dropout: probability before the linear head.
    """

    HEAD = "classifier"

    def __init__(
        self,
        config: ModelConfig,
        outputs: int,
        options: ModelOptions = PLAIN,
        *,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.config = config
        self.options = options
        self.outputs = outputs
        self.dropout = dropout
        self.encoder = RapidBert(config, options)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, outputs)
        for layer in (self.pooler, self.classifier):
            nn.init.normal_(layer.weight, std=config.initializer_range)
            nn.init.zeros_(layer.bias)

    def logits(
        self,
        input_ids: Tensor,
        sequence_offsets: Tensor | None = None,
        max_sequence_length: int | None = None,
        token_type_ids: Tensor | None = None,
        sequence_keys: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Score each sequence: fp32 [S, outputs]. Rows of empty sequences mean nothing.

        The last layer computes what follows its attention for the first tokens alone.

        Args:
            As in `RapidBert.forward`, packed or padded. The first token of a sequence is the first
            one that is real.
        """
        batch = pack(
            input_ids, sequence_offsets, max_sequence_length, token_type_ids, attention_mask
        )
        first = batch.sequence_offsets[:-1].long().clamp(max=batch.input_ids.shape[0] - 1)  # [S]
        hidden = self.encoder(
            batch.input_ids,
            batch.sequence_offsets,
            batch.max_sequence_length,
            batch.token_type_ids,
            first,
            sequence_keys,
        )  # [S, hidden]
        pooled = torch.tanh(self.pooler(hidden))
        if self.training and self.dropout:
            if sequence_keys is None:
                raise ValueError("training with dropout needs sequence_keys")
            pooled = dropout(pooled, self.dropout, sequence_keys, HEAD_SITE)
        # In fp32: regression values on bf16's grid would be full of ties.
        return F.linear(
            pooled.float(), self.classifier.weight.float(), self.classifier.bias.float()
        )

    def forward(
        self,
        input_ids: Tensor,
        sequence_offsets: Tensor,
        max_sequence_length: int,
        labels: Tensor,
        token_type_ids: Tensor | None = None,
        sequence_keys: Tensor | None = None,
    ) -> Tensor:
        """Sum the losses of the labelled sequences, fp32 scalar.

        Args:
            labels: int64 [S], negative where a sequence does not count; or fp32 [S] for a
                regression (squared error), NaN where it does not count; or fp32 [S, outputs], 0 or
                1, where a sequence may have several classes (the mean of the binary
                cross-entropies of its classes), likewise.
            sequence_keys: int64 [S], what dropout masks are a hash of (see `hashed_dropout`).
        """
        logits = self.logits(
            input_ids, sequence_offsets, max_sequence_length, token_type_ids, sequence_keys
        )
        if labels.dim() == 2:
            counts = ~labels.isnan()
            losses = F.binary_cross_entropy_with_logits(
                logits, labels.masked_fill(~counts, 0.0), reduction="none"
            )
            return losses.masked_fill(~counts, 0.0).mean(-1).sum()
        if labels.is_floating_point():
            error = logits.squeeze(-1) - labels  # [S, 1] to [S]
            return error.masked_fill(labels.isnan(), 0.0).square().sum()
        return F.cross_entropy(
            logits, labels.masked_fill(labels < 0, IGNORED_LABEL), reduction="sum"
        )
