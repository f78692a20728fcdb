"""How well sentence vectors tell what belongs together: without a head, by their cosines alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.sentence_encoder import RapidBertForSentenceEmbedding
from recipes.engine.world import World
from recipes.tasks.classification_batches import EncodedExamples
from recipes.tasks.metrics import compute
from recipes.tasks.pair_data import TextSet
from recipes.tasks.rank_results import rows_by_all

AT_ONCE = 1024
"""Anchors that look for their positive at once: their similarities to all are in memory."""


def embed(
    model: RapidBertForSentenceEmbedding, texts: EncodedExamples, batch_size: int, world: World
) -> np.ndarray:
    """Return the vector of each text, of length 1: fp32 [texts, hidden]. Call on every rank.

    Raises:
        UserError: the model computes something else than numbers.
    """

    def units(ids: Tensor, offsets: Tensor, longest: int, types: Tensor) -> Tensor:
        return torch.nn.functional.normalize(model.embed(ids, offsets, longest, types), dim=-1)

    return rows_by_all(
        *(model, units, texts, batch_size, world),
        width=model.config.hidden_size,
        what="texts",
    )


def distinct_texts(pairs: TextSet) -> tuple[list[str], list[np.ndarray]]:
    """Return the different texts of a set, and for each column which of them its records have."""
    numbers: dict[str, int] = {}
    of = [
        np.array([numbers.setdefault(text, len(numbers)) for text in column], np.int64)
        for column in pairs.columns
    ]
    return list(numbers), of


def similarity_metrics(pairs: TextSet, vectors: np.ndarray) -> dict[str, float]:
    """Measure vectors of the set's different texts.

    Args:
        vectors: fp32 [texts, hidden] of length 1, in the order of `distinct_texts`.

    Returns:
        `spearman` and `pearson` of cosines and scores; or, of pairs without scores,
        `accuracy_at_1`: the share of pairs whose anchor is closest to a positive of its own among
        all positives of the set.
    """
    _, (anchors, positives) = distinct_texts(pairs)
    if pairs.scores is not None:
        cosines = np.einsum("nd,nd->n", vectors[anchors], vectors[positives])
        return compute(("spearman", "pearson"), cosines, pairs.scores)
    right = set(zip(anchors.tolist(), positives.tolist(), strict=True))
    candidates = np.unique(positives)
    found = 0
    for begin in range(0, len(anchors), AT_ONCE):
        some = anchors[begin : begin + AT_ONCE]
        closest = candidates[(vectors[some] @ vectors[candidates].T).argmax(1)]
        found += sum(pair in right for pair in zip(some.tolist(), closest.tolist(), strict=True))
    return {"accuracy_at_1": found / len(anchors)}
