"""A trained model with its tokenizer, as the exports for other software take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelConfig
from model.encoder import RapidBert
from model.foreign import Foreign, read_foreign
from model.masked_lm import RapidBertForMaskedLM
from model.pretrained import Export
from model.weights import Head, State
from recipes.common.errors import UserError
from recipes.corpus.tokenizer import Tokenizer
from recipes.interop.comparing import padded

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
    data: Path | None = None
    """The prepared data of its pretraining, where a record says which."""

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
        """Cut a text into ids, [CLS] first and [SEP] last, `longest` at most."""
        longest = min(longest or self.longest, self.longest)
        return [*self.all_ids(text)[:-1][: longest - 1], self.tokenizer.sep_id]

    def all_ids(self, text: str) -> list[int]:
        """Cut a text into ids, [CLS] first and [SEP] last, however many there are."""
        return [self.tokenizer.cls_id, *self.tokenizer.encode(text), self.tokenizer.sep_id]

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Make one batch of rows of ids: ids and mask, int64 [S, L]."""
        return padded(rows, self.tokenizer.pad_id)

    def misfits(self) -> Iterator[str]:
        """Yield what keeps the weights from being those of the configuration."""
        guesses = self.head == "masked_lm"
        with torch.device("meta"):  # shapes alone
            model = RapidBertForMaskedLM(self.config) if guesses else RapidBert(self.config)
        try:
            if guesses:
                self.weights.load_into(model, "masked_lm")
            else:
                self.weights.load_into(model, "none", prefix="encoder.")
        except ValueError as error:
            yield str(error)

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
        per_token = {"token_classifier": "classifier", "span_classifier": "qa_outputs"}
        if self.head == "masked_lm":
            guesses = RapidBertForMaskedLM(self.config)
            self.weights.load_into(guesses, "masked_lm")
            return guesses.eval().logits(ids, attention_mask=mask)[..., : self.config.vocab_size]
        if self.head == "classifier":
            classes = self.tensors["classifier.weight"].shape[0]
            classifier = RapidBertForSequenceClassification(self.config, classes)
            self.weights.load_into(classifier, "classifier")
            return classifier.eval().logits(ids, attention_mask=mask)
        hidden = self.hidden_states(ids, mask)
        if name := per_token.get(self.head):
            return F.linear(hidden, *(self.tensors[f"{name}.{x}"] for x in ("weight", "bias")))
        return hidden


def read_any(directory: Path) -> Foreign:
    """Read a directory of weights, ours or of others.

    Raises:
        UserError: everything that is wrong with it.
    """
    try:
        return read_foreign(directory)
    except ValueError as error:
        raise UserError(*str(error).split("\n")) from None
