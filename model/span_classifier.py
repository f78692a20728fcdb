"""The encoder with a linear head on every token: where an answer begins and where it ends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import PLAIN, ModelConfig, ModelOptions
from .encoder import RapidBert
from .labels import IGNORED_LABEL
from .padding import pack, padded_index
from .pretrained import Exported


class RapidBertForQuestionAnswering(Exported):
    """The encoder and a linear layer with two outputs for each token, as in BERT (section 4.2).

    There is no pooler and no dropout before the head, as in Hugging Face's
    `BertForQuestionAnswering`. Weights and errors are as in `model.encoder.RapidBert`.
    """

    HEAD = "span_classifier"

    def __init__(self, config: ModelConfig, options: ModelOptions = PLAIN):
        super().__init__()
        self.config = config
        self.options = options
        self.encoder = RapidBert(config, options)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        nn.init.normal_(self.qa_outputs.weight, std=config.initializer_range)
        nn.init.zeros_(self.qa_outputs.bias)

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
        """Score each token as the first of the answer and as its last.

        Args:
            As in `RapidBert.forward`, packed or padded.

        Returns:
            fp32 [T, 2]; of a padded batch [S, L, 2], zeros on padding.
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
        # In fp32: the sums over start and end that rank the answers would be full of ties in bf16.
        scores = F.linear(
            hidden.float(), self.qa_outputs.weight.float(), self.qa_outputs.bias.float()
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
        """Sum the losses of the labelled sequences, fp32 scalar.

        The loss of a sequence is the mean of two cross-entropies over its tokens, of the answer's
        start and of its end.

        Args:
            labels: int64 [S, 2], places of the answer's first and last token, counted from the
                start of the sequence; negative where a sequence does not count.
            sequence_keys: int64 [S], what dropout masks are a hash of (see `hashed_dropout`).
        """
        scores = self.logits(
            input_ids, sequence_offsets, max_sequence_length, token_type_ids, sequence_keys
        )
        row, real = padded_index(sequence_offsets, max_sequence_length)  # [S, L]
        # Finite, so that an empty sequence has no NaN to hand back.
        outside = torch.finfo(scores.dtype).min
        scores = scores[row].masked_fill(~real.unsqueeze(-1), outside)  # [S, L, 2]
        labels = labels.masked_fill(labels < 0, IGNORED_LABEL)
        return (
            F.cross_entropy(scores.transpose(1, 2).flatten(0, 1), labels.flatten(), reduction="sum")
            / 2
        )
