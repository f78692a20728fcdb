"""What is measured of sentence vectors, by numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.tasks.pair_data import TextSet
from recipes.tasks.similarity import distinct_texts, similarity_metrics


def at(degrees: float) -> tuple[float, float]:
    return np.cos(np.radians(degrees)), np.sin(np.radians(degrees))


def vectors(pairs: TextSet, places: dict[str, float]) -> np.ndarray:
    return np.array([at(places[text]) for text in distinct_texts(pairs)[0]], np.float32)


PLACES = {"a": 0.0, "b": 10.0, "c": 25.0, "d": 90.0, "e": 200.0}


def test_scores_are_correlated_with_cosines():
    pairs = TextSet([["a", "a", "a", "e"], ["b", "c", "d", "a"]], np.array([5.0, 4.0, 2.0, 0.0]))
    found = similarity_metrics(pairs, vectors(pairs, PLACES))
    cosines = np.cos(np.radians([10, 25, 90, 200]))
    assert found == pytest.approx(
        {"spearman": 1.0, "pearson": np.corrcoef(cosines, pairs.scores)[0, 1]}
    )


def test_each_anchor_looks_for_its_positive_among_all():
    # Positives are b, d and e. The anchors a and c are closest to b, and e to itself; that d is
    # one of c's positives too does not make b a wrong one.
    pairs = TextSet([["a", "c", "c", "e"], ["b", "d", "b", "e"]])
    found = similarity_metrics(pairs, vectors(pairs, PLACES))
    assert found == {"accuracy_at_1": 1.0}
    pairs = TextSet([["a", "c", "e"], ["b", "d", "e"]])
    assert similarity_metrics(pairs, vectors(pairs, PLACES)) == {
        "accuracy_at_1": pytest.approx(2 / 3)
    }
