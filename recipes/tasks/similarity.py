"""How well sentence vectors tell what belongs together: without a head, by their cosines alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.sentence_encoder import RapidBertForSentenceEmbedding
from recipes.engine.world import World
from recipes.tasks.classification_batches import ClassificationBatch, EncodedExamples
from recipes.tasks.metrics import compute
from recipes.tasks.pair_data import TextSet
from recipes.tasks.rank_results import check_numbers, computed_by_all

AT_ONCE = 1024
"""Anchors that look for their positive at once: their similarities to all are in memory."""


def embed(
    model: RapidBertForSentenceEmbedding, texts: EncodedExamples, batch_size: int, world: World
) -> np.ndarray:
    """Return the vector of each text, of length 1: fp32 [texts, hidden]. Call on every rank.

    Raises:
        UserError: the model computes something else than numbers.
    """

    def part(batch: ClassificationBatch, vectors: Tensor) -> tuple[np.ndarray, np.ndarray]:
        units = torch.nn.functional.normalize(vectors[: len(batch.rows)], dim=-1)
        return batch.rows, units.cpu().numpy()

    whole = np.zeros((len(texts), model.config.hidden_size), np.float32)
    for rows, values in computed_by_all(model, model.embed, texts, batch_size, world, part):
        whole[rows] = values
    check_numbers(int((~np.isfinite(whole)).any(1).sum()), len(texts), "texts")
    return whole


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
