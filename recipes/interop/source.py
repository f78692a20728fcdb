"""A trained model with its tokenizer, as the exports for other software take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelConfig
from model.encoder import RapidBert
from model.masked_lm import RapidBertForMaskedLM
from model.pretrained import Export
from model.span_classifier import RapidBertForQuestionAnswering
from model.weights import Head, State
from recipes.corpus.tokenizer import Tokenizer

LONGEST = 2048
"""Tokens that programs are told which want a limit. ALiBi has none; some of them (text-embeddings-
inference) make a table of heads x limit x limit numbers, 200 MB for 12 heads."""


@dataclass(frozen=True)
class Source:
    """What an export is made from, in memory."""

    place: Path
    """As the user named it."""
    weights: Export
    tokenizer: Tokenizer

    @property
    def config(self) -> ModelConfig:
        return self.weights.config

    @property
    def tensors(self) -> State:
        """Weights in fp32 under their public names."""
        return self.weights.tensors

    @property
    def description(self) -> Mapping[str, Any]:
        return self.weights.description

    @property
    def head(self) -> Head:
        """What stands on the encoder, by the tensors that are there."""
        if "qa_outputs.weight" in self.tensors:
            return "span_classifier"
        if "classifier.weight" in self.tensors:
            pooled = "bert.pooler.dense.weight" in self.tensors
            return "classifier" if pooled else "token_classifier"
        return "masked_lm" if "cls.predictions.transform.dense.weight" in self.tensors else "none"

    @property
    def longest(self) -> int:
        """Tokens of the longest text that other programs are told the model can read."""
        learned = self.config.positions == "learned"
        return self.config.max_positions if learned else LONGEST

    def ids(self, text: str, longest: int | None = None) -> list[int]:
        """Cut a text into ids with [CLS] and [SEP], `longest` at most."""
        tokenizer = self.tokenizer
        limit = min(longest or self.longest, self.longest)
        return [tokenizer.cls_id, *tokenizer.encode(text)[: limit - 2], tokenizer.sep_id]

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Make one batch of rows of ids: ids and mask, int64 [S, L]."""
        length, pad = max(map(len, rows)), self.tokenizer.pad_id
        ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return ids, mask

    @torch.inference_mode()
    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute what the training's encoder makes of a batch: fp32 [S, L, hidden].

        Args:
            ids, mask: int64 [S, L].
        """
        model = RapidBert(self.config)
        self.weights.load_into(model, "none", prefix="encoder.")
        hidden: Tensor = model.eval()(ids, attention_mask=mask)
        return hidden

    @torch.inference_mode()
    def outputs(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute what the whole model makes of a batch, with its head: fp32.

        Returns:
            Logits [S, L, vocabulary] without padding rows, of classes [S, outputs], of starts and
            ends [S, L, 2]; without a head the hidden states.
        """
        if self.head == "none":
            return self.hidden_states(ids, mask)
        model: nn.Module
        if self.head == "masked_lm":
            model = RapidBertForMaskedLM(self.config)
        elif self.head == "classifier":
            classes = self.tensors["classifier.weight"].shape[0]
            model = RapidBertForSequenceClassification(self.config, classes)
        else:
            model = RapidBertForQuestionAnswering(self.config)
        self.weights.load_into(model, self.head)
        logits: Tensor = model.eval().logits(ids, attention_mask=mask)
        return logits[..., : self.config.vocab_size] if self.head == "masked_lm" else logits
