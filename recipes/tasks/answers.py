"""Makes answers of the scores of tokens: parts cut out of the text as it was given.

As in BERT's `run_squad.py`: an answer's score is that of its first token as a start plus that of
its last as an end; the best of all windows of a question wins. Where questions may have no answer,
the score for that is what the same sum is for [CLS], the least over the windows, and an answer has
to beat it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recipes.common.json_content import Json
from recipes.tasks.question_data import Question
from recipes.tasks.question_windows import Window, Windows

LONGEST_ANSWER = 30  # tokens, as in run_squad.py; so is the next
BEST = 20  # answers that are kept of each window and of each question


@dataclass(frozen=True)
class Candidate:
    """What one window says about its question."""

    null: float
    """Score of [CLS], that the window has no answer."""
    spans: list[tuple[float, int, int]]
    """The best answers: score, first and last token of the whole text."""


@dataclass(frozen=True)
class Answered:
    """What the model says to one question."""

    text: str
    """The answer; empty where it says that there is none."""
    best: list[tuple[str, float]]
    """The best answers with their shares of the probability, the first one most."""
    null_odds: float
    """Score of no answer less that of the best one: above 0, no answer is the likelier."""


def best_spans(window: Window, scores: np.ndarray) -> Candidate:
    """Find a window's best answers.

    Args:
        scores: fp32 [tokens, 2], of each token of the window as a start and as an end.
    """
    begin, count = window.context_place, len(window.ids) - window.context_place - 1
    starts, ends = scores[begin : begin + count].astype(np.float64).T
    first = np.arange(count)
    spans = []
    for longer in range(min(LONGEST_ANSWER, count)):
        of = starts[: count - longer] + ends[longer:]
        top = np.argsort(-of, kind="stable")[:BEST]
        shift = window.context_token
        spans += [
            (float(of[at]), shift + int(first[at]), shift + int(first[at]) + longer) for at in top
        ]
    spans.sort(key=_order)
    return Candidate(float(scores[0].astype(np.float64).sum()), spans[:BEST])


def answer_questions(
    questions: Sequence[Question],
    windows: Windows,
    candidates: Mapping[int, Candidate],
    *,
    may_refuse: bool,
) -> dict[str, Answered]:
    """Choose each question's answer from what its windows say, by the question's name.

    Args:
        candidates: by the window's index.
        may_refuse: whether "no answer" is one.
    """
    of_question: dict[int, list[Candidate]] = defaultdict(list)
    for index, window in enumerate(windows.windows):
        of_question[window.question].append(candidates[index])
    answered = {}
    for number, question in enumerate(questions):
        found = of_question[number]
        spans = sorted((span for each in found for span in each.spans), key=_order)
        texts = _texts(question.context, spans, windows, number)
        null = min(each.null for each in found)
        odds = null - texts[0][1] if texts else math.inf
        refused = may_refuse and odds > 0
        ranked = sorted([*texts, ("", null)], key=lambda x: -x[1]) if may_refuse else texts
        text = "" if refused or not texts else texts[0][0]
        answered[question.name] = Answered(text, _shares(ranked), odds)
    return answered


def answer_files(answered: Mapping[str, Answered], *, may_refuse: bool) -> dict[str, bytes]:
    """Return the files that SQuAD's script takes, by name.

    `predictions.json` has the answers and `best_answers.json` the alternatives; `null_odds.json`,
    where "no answer" is one, is for the script's `--na-prob-file`.
    """
    files: Json = {
        "predictions.json": {name: each.text for name, each in answered.items()},
        "best_answers.json": {
            name: [{"text": text, "probability": share} for text, share in each.best]
            for name, each in answered.items()
        },
    }
    if may_refuse:
        odds = {name: each.null_odds for name, each in answered.items()}
        files["null_odds.json"] = {n: x if math.isfinite(x) else 1e9 for n, x in odds.items()}
    return {
        name: (json.dumps(of, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
        for name, of in files.items()
    }


def _order(span: tuple[float, int, int]) -> tuple[float, int, int]:
    """The best score first; of equal ones that which begins first, and then the shortest."""
    score, first, last = span
    return (-score, first, last)


def _texts(
    context: str, spans: Iterable[tuple[float, int, int]], windows: Windows, question: int
) -> list[tuple[str, float]]:
    """The best different texts with their scores, the best first; those of white space left out."""
    encoded = windows.contexts[question]
    texts: dict[str, float] = {}
    for score, first, last in spans:
        text = context[encoded.begins[first] : encoded.ends[last]].strip()
        if text and text not in texts:
            texts[text] = score
        if len(texts) == BEST:
            break
    return list(texts.items())


def _shares(scored: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Softmax over the scores."""
    if not scored:
        return []
    highest = max(score for _, score in scored)
    weights = [math.exp(score - highest) for _, score in scored]
    return [(text, w / sum(weights)) for (text, _), w in zip(scored, weights, strict=True)]
