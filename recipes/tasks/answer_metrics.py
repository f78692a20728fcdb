"""Exact match and F1 of answers, as the official script of SQuAD 2.0 computes them.

Rajpurkar et al. 2016, section 6.1, and 2018, `evaluate-v2.0.py`. Answers that are right by these
rules need not be equal: case, punctuation, the articles a, an and the, and white space do not
count. For SQuAD 1.1 the numbers are those of its own script, but for golds such as "the", of which
nothing counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(answer: str) -> str:
    """Return the part of an answer that counts."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(predicted: str, gold: str) -> float:
    """Return 1 if the normalised answers are equal, else 0."""
    return float(normalize(predicted) == normalize(gold))


def f1(predicted: str, gold: str) -> float:
    """Return the harmonic mean of precision and recall of words; words count as often as they are.

    Where one of the answers has no word that counts, F1 is 1 if both have none, else 0.
    """
    found, wanted = normalize(predicted).split(), normalize(gold).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def answer_metrics(
    predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Average over the questions; an answer counts as well as by the best of its golds.

    Args:
        predictions: by the question's id; an empty one says that there is no answer.
        golds: likewise; none where the question has no answer.

    Returns:
        `f1` and `exact_match`, fractions; where there are questions with and without answers also
        those of each kind, `answerable_f1` and so on. (`HasAns_` and `NoAns_` in the script.)

    Raises:
        ValueError: no questions, or some without a prediction.
    """
    if missing := [name for name in golds if name not in predictions]:
        raise ValueError(f"{len(missing):,} questions without a prediction, {missing[0]!r} first")
    if not golds:
        raise ValueError("no questions")
    scores: dict[str, list[tuple[float, float]]] = {"answerable_": [], "unanswerable_": []}
    for name, answers in golds.items():
        texts = [answer for answer in answers if normalize(answer)] or [""]
        given = predictions[name]
        best = max(f1(given, text) for text in texts), max(exact_match(given, t) for t in texts)
        scores["answerable_" if answers else "unanswerable_"].append(best)
    kinds = {"": [*scores["answerable_"], *scores["unanswerable_"]]}
    if all(scores.values()):
        kinds |= scores
    return {
        f"{kind}{metric}": sum(score[place] for score in of) / len(of)
        for kind, of in kinds.items()
        for place, metric in enumerate(("f1", "exact_match"))
    }
