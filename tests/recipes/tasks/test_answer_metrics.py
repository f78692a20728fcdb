"""Exact match and F1 by the rules of SQuAD's script, with numbers worked out by hand."""

from __future__ import annotations

import pytest

from recipes.tasks.answer_metrics import answer_metrics, exact_match, f1, normalize


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        ("The  Norman\tConquest!", "norman conquest"),
        ("an apple a day", "apple day"),
        ("theatre", "theatre"),  # an article is a word of its own
        ("1,066", "1066"),
        ("U.S.A.", "usa"),
        ("state-of-the-art", "stateoftheart"),  # punctuation goes before the articles
        ("“Ünïcode” a", "“ünïcode”"),  # and is ASCII's
        ("the", ""),
    ],
)
def test_what_counts_of_an_answer(answer, counts):
    assert normalize(answer) == counts


@pytest.mark.parametrize(
    ("predicted", "gold", "exact", "share"),
    [
        ("the Normans", "Normans.", 1, 1),
        ("in the 10th and 11th century", "10th and 11th centuries", 0, 2 * 3 / (5 + 4)),
        ("to be or not to be", "to be to", 0, 2 * 3 / (6 + 3)),  # "to" twice, "be" once
        ("France", "Normandy", 0, 0),
        ("", "", 1, 1),
        ("", "Normandy", 0, 0),
        ("the", "", 1, 1),
    ],
)
def test_one_answer_against_one_gold(predicted, gold, exact, share):
    assert exact_match(predicted, gold) == exact
    assert f1(predicted, gold) == pytest.approx(share)


def test_the_best_gold_counts_and_kinds_are_told_apart():
    golds = {
        "a": ["William", "William the Conqueror"],
        "b": ["in 1066", "1066", "the"],  # a gold of which nothing counts is none
        "c": [],
        "d": [],
    }
    given = {"a": "the conqueror William", "b": "", "c": "", "d": "Rollo", "another": "x"}
    found = answer_metrics(given, golds)
    assert found == pytest.approx(
        {
            "f1": (1 + 0 + 1 + 0) / 4,
            "exact_match": 1 / 4,
            "answerable_f1": 1 / 2,
            "answerable_exact_match": 0,
            "unanswerable_f1": 1 / 2,
            "unanswerable_exact_match": 1 / 2,
        }
    )
    assert set(answer_metrics(given, {"a": golds["a"]})) == {"f1", "exact_match"}


def test_every_question_needs_a_prediction():
    with pytest.raises(ValueError, match="2 questions without a prediction, 'x' first"):
        answer_metrics({}, {"x": ["a"], "y": []})
    with pytest.raises(ValueError, match="no questions"):
        answer_metrics({}, {})
