"""Use of a classifier: the likeliest label and the probability of each, or a number.

Where a text may have several labels, all that are likelier than not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import expit

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelOptions
from recipes.corpus.tokenizer import Tokenizer
from recipes.inference.computing import Compute, Model
from recipes.inference.finetuned import PREDICTION, Finetuned, Use, shortest
from recipes.inference.outputs import Row
from recipes.inference.record_files import TEXT_COLUMN
from recipes.tasks.classification_batches import EncodedExamples

PROBABILITIES = "probabilities"


def encode(
    tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], max_length: int
) -> tuple[EncodedExamples, int]:
    """Texts, or pairs of texts, as sequences, and how many of them were cut."""
    first, *second = (list(column) for column in zip(*texts, strict=True))
    examples = EncodedExamples(
        tokenizer, first, second[0] if second else None, None, max_length=max_length
    )
    return examples, examples.cut


def _outputs(found: Finetuned) -> int:
    return 1 if found.labels is None else len(found.labels)


def _build(found: Finetuned, options: ModelOptions) -> RapidBertForSequenceClassification:
    return RapidBertForSequenceClassification(found.export.config, _outputs(found), options)


def _model(found: Finetuned, tokenizer: Tokenizer, compute: Compute, max_length: int) -> Model:
    return Model(compute, lambda texts: encode(tokenizer, texts, max_length))


def _columns(found: Finetuned, flat: bool) -> tuple[str, ...]:
    if found.labels is None:
        return (PREDICTION,)
    shares = [f"{PROBABILITIES}.{label}" for label in found.labels] if flat else [PROBABILITIES]
    return (PREDICTION, *shares)


def _answer(found: Finetuned, values: np.ndarray) -> Row:
    if found.labels is None:
        return {PREDICTION: shortest(values[0])}
    shares = np.exp(values - values.max(), dtype=np.float64)
    shares /= shares.sum()
    named = dict(zip(found.labels, map(shortest, shares), strict=True))
    return {PREDICTION: found.labels[int(values.argmax())], PROBABILITIES: named}


def _answer_with_several(found: Finetuned, values: np.ndarray) -> Row:
    labels = found.labels or ()
    named = dict(zip(labels, map(shortest, expit(values.astype(np.float64))), strict=True))
    likely = [label for label, value in zip(labels, values, strict=True) if value > 0]
    return {PREDICTION: likely, PROBABILITIES: named}


CLASSIFICATION = Use(
    head="classifier.weight",
    outputs=_outputs,
    text_columns=(TEXT_COLUMN,),
    columns=_columns,
    model=_model,
    build=_build,
    public_head="classifier",
    answer=_answer,
)
MULTI_LABEL = replace(CLASSIFICATION, answer=_answer_with_several)
