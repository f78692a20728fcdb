"""Entities of tags, against conlleval's definition written down once more, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.tasks.tag_schemes import (
    complete,
    entities,
    spells_entities,
    tag_metrics,
    with_beginnings,
)


def conlleval_chunks(tags):
    """startOfChunk and endOfChunk of conlleval.pl (2004), word by word."""
    found, begin = set(), None
    previous, previous_type = "O", ""
    for place, word in enumerate([*tags, "O"]):
        tag, _, kind = word.partition("-")
        ends = (
            (previous, tag) in {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O")}
            or (previous, tag) in {("E", "E"), ("E", "I"), ("E", "O")}
            or (previous != "O" and previous_type != kind)
        )
        starts = (
            (previous, tag) in {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I")}
            or (previous, tag) in {("E", "E"), ("E", "I"), ("O", "E")}
            or (tag != "O" and previous_type != kind)
        )
        if begin is not None and ends:
            found.add((previous_type, begin, place - 1))
            begin = None
        if starts:
            begin = place
        previous, previous_type = tag, kind
    return found


IOB = st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]), min_size=1, max_size=9)


@settings(max_examples=300, deadline=None)
@given(IOB)
def test_entities_are_conllevals_whatever_the_model_predicts(tags):
    assert set(entities(tags)) == conlleval_chunks(tags)


@settings(max_examples=300, deadline=None)
@given(IOB)
def test_beginnings_change_no_entity(tags):
    made = with_beginnings(tags)
    assert conlleval_chunks(made) == conlleval_chunks(tags)
    assert with_beginnings(made) == made
    starts = {begin for _, begin, _ in conlleval_chunks(tags)}
    assert {place for place, tag in enumerate(made) if tag.startswith("B-")} == starts


def test_scores_equal_conllevals_counts():
    """Precision, recall and F1 from chunks that are counted here."""
    rng = np.random.default_rng(0)
    tags = ["O", "O", "B-PER", "I-PER", "I-LOC", "B-LOC"]
    right = [rng.choice(tags, rng.integers(1, 12)).tolist() for _ in range(60)]
    predicted = [
        [tag if rng.random() < 0.7 else str(rng.choice(tags)) for tag in each] for each in right
    ]
    golds = [(n, *c) for n, each in enumerate(right) for c in conlleval_chunks(each)]
    found = [(n, *c) for n, each in enumerate(predicted) for c in conlleval_chunks(each)]
    hits = len(set(golds) & set(found))
    precision, recall = hits / len(found), hits / len(golds)
    words = [
        a == b for x, y in zip(right, predicted, strict=True) for a, b in zip(x, y, strict=True)
    ]
    assert 0 < hits < len(golds)
    assert tag_metrics(right, predicted) == pytest.approx(
        {
            "f1": 2 * precision * recall / (precision + recall),
            "precision": precision,
            "recall": recall,
            "accuracy": np.mean(words),
        }
    )


def test_schemes_that_end_entities_score_as_their_iob2():
    """One sentence in four spellings, and one prediction with a wrong end."""
    right = {
        "iob2": "B-PER I-PER I-PER O B-LOC B-LOC I-LOC",
        "iob1": "I-PER I-PER I-PER O I-LOC B-LOC I-LOC",
        "iobes": "B-PER I-PER E-PER O S-LOC B-LOC E-LOC",
        "bilou": "B-PER I-PER L-PER O U-LOC B-LOC L-LOC",
    }
    wrong = {
        "iob2": "B-PER I-PER O O B-LOC B-LOC I-LOC",
        "iob1": "I-PER I-PER O O I-LOC B-LOC I-LOC",
        "iobes": "B-PER E-PER O O S-LOC B-LOC E-LOC",
        "bilou": "B-PER L-PER O O U-LOC B-LOC L-LOC",
    }
    expected = {("PER", 0, 2), ("LOC", 4, 4), ("LOC", 5, 6)}
    for name, tags in right.items():
        assert set(entities(tags.split())) == expected, name
        assert tag_metrics([tags.split()], [tags.split()])["f1"] == 1.0
        found = tag_metrics([tags.split()], [wrong[name].split()])
        assert found["f1"] == pytest.approx(2 / 3), name


def test_words_are_scored_where_tags_are_no_entities():
    assert tag_metrics([["NN", "VB"]], [["NN", "NN"]]) == {"accuracy": 0.5}
    assert not spells_entities({"NN", "VB"}) and not spells_entities({"O"})
    assert not spells_entities({"B-PER", "NN"}) and spells_entities({"O", "U-PER"})
    nothing = tag_metrics([["B-PER", "O"]], [["O", "O"]])
    assert nothing == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 0.5}


def test_classes_are_every_prefix_of_every_type():
    assert complete(["B-LOC", "I-PER", "O", "B-PER"]) == ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    assert complete(["B-PER", "O"]) == ("O", "B-PER", "I-PER"), "a longer name may come"
    assert complete(["S-X"]) == ("O", "S-X"), "texts have words outside of entities"
    assert complete(["VB", "NN", "NN"]) == ("NN", "VB")
