"""Computes what a finetuning needs of its data: token ids first, then predictions and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from model.classifier import RapidBertForSequenceClassification
from recipes.common.errors import UserError
from recipes.engine.world import World
from recipes.tasks.classification_batches import (
    EncodedExamples,
    PackedExamples,
)
from recipes.tasks.example_files import Examples
from recipes.tasks.metrics import compute
from recipes.tasks.predictions import write_predictions
from recipes.tasks.rank_results import rows_by_all
from recipes.tasks.work import Finetuning, Measured, Metrics

EVALUATION_BATCH = 256
EVALUATION_LENGTH = 512
"""Up to so many tokens; beyond, the batch shrinks as attention's scores grow, with the square."""


def encode_all(work: Finetuning) -> tuple[PackedExamples, dict[str, PackedExamples]]:
    """Encode the training set, and the development sets by name."""
    dev = {name: work.kind.encode(work, of, False) for name, of in work.data.dev.items()}
    return work.kind.encode(work, work.data.train, True), dev


def cut_notes(work: Finetuning, sets: Mapping[str, PackedExamples]) -> list[str]:
    """Say what became of the examples of all sets."""
    return [note for name, of in sets.items() for note in work.kind.notes(work, name, of)]


def classification_notes(work: Finetuning, name: str, of: EncodedExamples) -> list[str]:
    """Say how many texts of a set are cut."""
    return cut_note(name, of.cut, f"{len(of):,} examples", work.settings.max_length, of.longest)


def cut_note(name: str, cut: int, of: str, length: int, longest: int) -> list[str]:
    """Say how many of so many are cut to a length; nothing where none is."""
    said = f"{name} set: {cut:,} of {of} are cut to {length:,} tokens, the longest has {longest:,}"
    return [f"{said} (--max-length)"] if cut else []


def encode(work: Finetuning, examples: Examples, training: bool = False) -> EncodedExamples:
    """Encode texts with labels, those to train on with labels on the scale that is learnt."""
    if training and work.scale is not None:
        assert examples.labels is not None
        examples = replace(examples, labels=work.scale.learnt(examples.labels))
    return EncodedExamples(
        work.tokenizer,
        examples.first,
        examples.second,
        examples.labels,
        max_length=work.settings.max_length,
    )


def evaluation_batch(length: int, world: World) -> int:
    """Return how many examples a batch has over all ranks, one per rank at least."""
    fitting = EVALUATION_BATCH * EVALUATION_LENGTH**2 // max(length, EVALUATION_LENGTH) ** 2
    return max(world.data_parallel_size, fitting)


def scores(
    model: RapidBertForSequenceClassification, examples: EncodedExamples, world: World
) -> np.ndarray:
    """Compute logits, or a regression's values: fp32 [examples, outputs]. Call on every rank.

    Raises:
        UserError: the model computes something else than numbers.
    """
    batch_size = evaluation_batch(examples.max_length, world)
    # Of what is not finite, argmax would make a class like any other.
    return rows_by_all(
        *(model, model.logits, examples, batch_size, world),
        width=model.outputs,
        what="examples",
    )


def predict(
    model: RapidBertForSequenceClassification, examples: EncodedExamples, world: World
) -> np.ndarray:
    """Predict classes, int64 [examples], or values, fp32 [examples]. Call on every rank.

    Raises:
        UserError: the model computes something else than numbers.
    """
    found = scores(model, examples, world)
    return found.squeeze(-1) if model.outputs == 1 else found.argmax(-1)


def evaluate(
    model: nn.Module, work: Finetuning, sets: Mapping[str, PackedExamples], world: World
) -> tuple[Metrics, dict[str, bytes]]:
    """Measure the model on each development set. Call on every rank.

    Returns:
        The metrics by set, and the predictions of those kinds that write them, as files.
    """
    measured = {name: work.kind.measure(model, work, of, world) for name, of in sets.items()}
    files = {name: text for of in measured.values() for name, text in of.files.items()}
    return {name: of.metrics for name, of in measured.items()}, files


def measure_classes(
    model: RapidBertForSequenceClassification,
    work: Finetuning,
    examples: EncodedExamples,
    world: World,
) -> Measured:
    """Compute the task's metrics. Call on every rank."""
    assert examples.labels is not None
    predictions = predict(model, examples, world)
    if work.scale is not None:
        predictions = work.scale.own_units(predictions)
    try:
        return Measured(compute(work.task.metrics, predictions, examples.labels))
    except ValueError as error:
        raise UserError(f"{work.name}: {error}") from None


def chance_of_classes(work: Finetuning) -> Metrics | None:
    """Measure the best constant answer on each development set: what a model must beat.

    Of the classes it is the one with the highest score, which for an accuracy is the most frequent
    one; of scores on a scale the mean. A correlation with a constant is 0.
    """
    labels = {name: np.asarray(of.labels) for name, of in work.data.dev.items()}
    pooled = np.concatenate([*labels.values()])
    constants = [pooled.mean()] if work.task.labels is None else np.unique(pooled)

    def measured(constant: np.generic) -> Metrics:
        return {
            name: compute(work.task.metrics, np.full_like(of, constant), of)
            for name, of in labels.items()
        }

    def score(metrics: Metrics) -> float:
        return float(np.mean([of[work.task.score] for of in metrics.values()]))

    return max(map(measured, constants), key=score)


def predict_test(model: RapidBertForSequenceClassification, work: Finetuning, world: World) -> None:
    """Write files for the GLUE server into `<task>-seed<k>/predictions`. Call on every rank."""
    for name, examples in work.data.test.items():
        predictions = predict(model, encode(work, examples), world)
        if world.rank == 0:
            path = write_predictions(work.predictions, work.task, name, predictions)
            print(f"test predictions: {path}")
