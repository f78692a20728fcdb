"""A finetuned model as its export describes it, and what a kind of task is in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelOptions
from model.pretrained import Export
from model.span_classifier import RapidBertForQuestionAnswering
from model.token_classifier import RapidBertForTokenClassification
from model.weights import Head
from recipes.common.json_content import Json
from recipes.corpus.tokenizer import Tokenizer
from recipes.inference.computing import Compute, Model, load_here
from recipes.inference.outputs import Row
from recipes.tasks.classification_batches import ClassificationBatch

PREDICTION = "prediction"


@dataclass(frozen=True)
class Finetuned:
    """What an export says about its finetuning."""

    export: Export
    kind: str
    """Key of the tables of kinds, `KINDS` in training and `USES` here."""
    task: Json
    """All that it says."""
    labels: tuple[str, ...] | None
    """Names of the classes; None for a regression, and where there are no classes."""
    text_columns: tuple[str, ...]
    """Those that it was trained on; empty where the export does not say."""
    max_length: int
    """Tokens of an example in the training."""

    @property
    def name(self) -> str:
        """The task's name."""
        return str(self.task.get("name", "a task"))


@dataclass(frozen=True)
class Use:
    """What makes finetuned models of one kind different from others when they are used."""

    head: str
    """Public name of the head's matrix."""
    outputs: Callable[[Finetuned], int]
    """How many rows it has."""
    text_columns: tuple[str, ...]
    """What the model reads, where neither the user nor the export says."""
    columns: Callable[[Finetuned, bool], tuple[str, ...]]
    """Names of the columns that are computed; the flag asks for those of a table, in which a
    dictionary under `name` becomes columns `name.key`."""
    model: Callable[[Finetuned, Tokenizer, Compute, int], Model]
    """Makes it ready for sequences of so many tokens."""
    build: Callable[
        [Finetuned, ModelOptions],
        RapidBertForSequenceClassification
        | RapidBertForTokenClassification
        | RapidBertForQuestionAnswering,
    ]
    """Makes the network, with random weights."""
    public_head: Head
    """What the export's weights have on the encoder."""
    answer: Callable[[Finetuned, Any], Row]
    """These columns, of what was computed for a record."""


def compute_with(found: Finetuned, use: Use, options: ModelOptions, precision: str) -> Compute:
    """The model on its device, as a function from a batch to its scores.

    Raises:
        UserError: the weights are not those of the configuration; all faults are named.
    """
    model = use.build(found, options)
    load_here(model, found.export, use.public_head, precision)

    def compute(batch: ClassificationBatch) -> Tensor:
        return model.logits(*batch.packed)

    return compute


def shortest(value: float) -> float:
    """The number with the fewest digits that is the same in fp32."""
    return float(str(np.float32(value)))
