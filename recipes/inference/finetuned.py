"""A finetuned model, ready to be used: what its export says, and its answers to texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelOptions
from model.pretrained import Export
from recipes.common.errors import UserError
from recipes.inference.computing import DTYPES, Compute, device
from recipes.inference.outputs import Row
from recipes.tasks.classification_batches import ClassificationBatch
from recipes.training.export import open_export

PREDICTION, PROBABILITIES = "prediction", "probabilities"
DEFAULT_LENGTH = 256  # of a finetuning; exports of older versions do not say theirs


@dataclass(frozen=True)
class Finetuned:
    """What an export says about its finetuning.

    Attributes:
        labels: names of the classes; None for a regression.
        text_columns: those that it was trained on; empty where the export does not say.
        max_length: tokens of an example in the training.
    """

    export: Export
    task: str
    labels: tuple[str, ...] | None
    text_columns: tuple[str, ...]
    max_length: int

    def columns(self, *, flat: bool) -> tuple[str, ...]:
        """Names of the columns that are computed.

        Args:
            flat: for a table, in which every class has a column for its probability.
        """
        if self.labels is None:
            return (PREDICTION,)
        if not flat:
            return (PREDICTION, PROBABILITIES)
        return (PREDICTION, *(f"{PROBABILITIES}.{label}" for label in self.labels))

    def answer(self, values: np.ndarray) -> Row:
        """These columns: a class and the probabilities of all, or a number.

        Args:
            values: fp32 [outputs].
        """
        if self.labels is None:
            return {PREDICTION: shortest(values[0])}
        shares = np.exp(values - values.max(), dtype=np.float64)
        shares /= shares.sum()
        named = dict(zip(self.labels, map(shortest, shares), strict=True))
        return {PREDICTION: self.labels[int(values.argmax())], PROBABILITIES: named}


def open_finetuned(checkpoint: Path) -> Finetuned:
    """Read the export of a finetuning.

    Raises:
        UserError: no export there, a damaged one, or one of a model that was never finetuned.
    """
    export = open_export(checkpoint)
    task: dict[str, Any] = export.description.get("task", {})
    head = export.tensors.get("classifier.weight")
    if head is None:
        raise UserError(
            f"{checkpoint}: a pretrained model, which has learnt no task yet; "
            "recipes/finetune.py teaches it one, and its <task>-seed<k> goes here"
        )
    labels = task.get("labels")
    outputs = 1 if labels is None else len(labels)
    if head.shape[0] != outputs:
        named = "a number" if labels is None else f"{len(labels)} labels"
        raise UserError(
            f"{checkpoint}: config.json says {named}, but the head has {head.shape[0]} outputs"
        )
    return Finetuned(
        export=export,
        task=str(task.get("name", "a task")),
        labels=None if labels is None else tuple(labels),
        text_columns=tuple(task.get("text_columns", ())),
        max_length=int(task.get("max_length", DEFAULT_LENGTH)),
    )


def build(finetuned: Finetuned, options: ModelOptions, precision: str) -> Compute:
    """The model on its device, as a function from a batch to fp32 [S, outputs].

    Raises:
        UserError: the weights are not those of the configuration; all faults are named.
    """
    outputs = 1 if finetuned.labels is None else len(finetuned.labels)
    model = RapidBertForSequenceClassification(finetuned.export.config, outputs, options)
    try:
        finetuned.export.load_into(model, "classifier")
    except ValueError as error:
        raise UserError(str(error)) from None
    model.eval().to(device(), DTYPES[precision])

    def compute(batch: ClassificationBatch) -> Tensor:
        return model.logits(
            batch.input_ids,
            batch.sequence_offsets,
            batch.max_sequence_length,
            batch.token_type_ids,
        )

    return compute


def shortest(value: float) -> float:
    """The number with the fewest digits that is the same in fp32."""
    return float(str(np.float32(value)))
