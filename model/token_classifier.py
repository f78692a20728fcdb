"""The encoder with a linear head on every token: names in a sentence, parts of speech."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .config import PLAIN, ModelConfig, ModelOptions
from .encoder import RapidBert
from .kernels.hashed_dropout import row_keys
from .kernels.operations import dropout
from .labels import IGNORED_LABEL
from .layer import HEAD_SITE
from .padding import pack
from .pretrained import Exported


class RapidBertForTokenClassification(Exported):
    """The encoder, dropout and a linear layer on each token, as in BERT (section 5.3).

    There is no pooler, as in Hugging Face's `BertForTokenClassification`. Weights and errors are as
    in `model.encoder.RapidBert`.

    Args:
        outputs: classes.
        dropout: probability before the linear head.
    """

    HEAD = "token_classifier"

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
        self.classifier = nn.Linear(config.hidden_size, outputs)
        nn.init.normal_(self.classifier.weight, std=config.initializer_range)
        nn.init.zeros_(self.classifier.bias)

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
        """Score the classes of each token.

        Args:
            As in `RapidBert.forward`, packed or padded.

        Returns:
            fp32 [T, outputs]; of a padded batch [S, L, outputs], zeros on padding.
        """
        batch = pack(
            input_ids, sequence_offsets, max_sequence_length, token_type_ids, attention_mask
        )
        hidden = self.encoder(
            batch.input_ids,
            batch.sequence_offsets,
            batch.max_sequence_length,
            batch.token_type_ids,
            sequence_keys=sequence_keys,
        )  # [T, hidden]
        if self.training and self.dropout:
            if sequence_keys is None:
                raise ValueError("training with dropout needs sequence_keys")
            keys = row_keys(sequence_keys, batch.sequence_offsets, batch.input_ids.shape[0])
            hidden = dropout(hidden, self.dropout, keys, HEAD_SITE, self.options.kernels)
        scores = F.linear(
            hidden.float(), self.classifier.weight.float(), self.classifier.bias.float()
        )
        return batch.restore(scores)

    def forward(
        self,
        input_ids: Tensor,
        sequence_offsets: Tensor,
        max_sequence_length: int,
        labels: Tensor,
        token_type_ids: Tensor | None = None,
        sequence_keys: Tensor | None = None,
    ) -> Tensor:
        """Sum the cross-entropies of the labelled tokens, fp32 scalar.

        Args:
            labels: int64 [T], negative where a token does not count.
            sequence_keys: int64 [S], what dropout masks are a hash of (see `hashed_dropout`).
        """
        scores = self.logits(
            input_ids, sequence_offsets, max_sequence_length, token_type_ids, sequence_keys
        )
        return F.cross_entropy(
            scores, labels.masked_fill(labels < 0, IGNORED_LABEL), reduction="sum"
        )
