"""Packing of sentences and pairs: against a hand-written layout and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.tasks.classification_batches import EncodedExamples, truncated_lengths


class Letters:
    """A tokenizer of single letters: a is 5, b is 6, ..."""

    cls_id, sep_id = 2, 3

    def encode_batch(self, texts):
        return [[ord(letter) - ord("a") + 5 for letter in text] for text in texts]


def encoded(first, second=None, labels=None, max_length=16) -> EncodedExamples:
    return EncodedExamples(Letters(), first, second, labels, max_length=max_length)  # type: ignore[arg-type]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 50))
def test_truncation_takes_from_the_longer_one(first, second, limit):
    a, b = first, second
    while a + b > limit:  # BERT's own loop
        a, b = (a - 1, b) if a > b else (a, b - 1)
    assert truncated_lengths(first, second, limit) == (a, b)


def test_a_batch_written_out_by_hand():
    """The second of two, the smaller one: its last place is empty."""
    examples = encoded(["ab", "c", "", "", ""], ["d", "", "", "", ""], np.array([1, 0, 0, 0, 0]))
    _, batch = examples.evaluation_batches(3)
    assert batch.input_ids.tolist() == [2, 7, 3, 3, 2, 5, 6, 3, 8, 3]
    assert batch.token_type_ids.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 1, 1]
    assert batch.sequence_offsets.tolist() == [0, 4, 10, 10]
    assert batch.labels.tolist() == [0, 1, -100]
    assert batch.rows.tolist() == [1, 0]
    assert (batch.global_examples, batch.global_tokens) == (2, 10)


def test_regression_labels_are_nan_on_empty_sequences():
    labels = np.array([2.5, 1, 1], np.float32)
    _, batch = encoded(["aa", "a", "a"], None, labels).evaluation_batches(2)
    assert batch.labels[0] == 2.5 and batch.labels[1].isnan()
    assert not batch.token_type_ids.any()


def test_long_pairs_fit():
    examples = encoded(["a" * 30, "b" * 30], ["c" * 30, "d"])
    assert examples.lengths.tolist() == [16, 16]
    with pytest.raises(ValueError, match="at least 4"):
        encoded(["a"], ["b"], max_length=3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_sees_every_example_once_on_any_world(world_size):
    rng = np.random.default_rng(0)
    texts = ["a" * int(n) for n in rng.integers(1, 12, 333)]
    examples = encoded(texts, None, np.arange(333))

    def epoch(number: int, seed: int = 5) -> list[list[int]]:
        ranks = [
            list(
                examples.training_batches(
                    10, seed=seed, epoch=number, rank=rank, world_size=world_size
                )
            )
            for rank in range(world_size)
        ]
        assert {len(batches) for batches in ranks} == {examples.batches_per_epoch(10)}
        for together in zip(*ranks, strict=True):
            assert {b.global_examples for b in together} == {sum(len(b.rows) for b in together)}
        return [
            sorted(row for b in together for row in b.rows) for together in zip(*ranks, strict=True)
        ]

    seen = epoch(0)
    assert sorted(row for batch in seen for row in batch) == list(range(333))
    assert seen == epoch(0)
    assert seen != epoch(1) and seen != epoch(0, seed=6)
    spread = [max(len(texts[r]) for r in b) - min(len(texts[r]) for r in b) for b in seen]
    assert np.mean(spread) < 3, "similar lengths share a batch"


def test_a_batch_is_no_larger_than_the_data():
    """A batch of 100,000 of 200 examples would make room for 100,000 sequences."""
    examples = encoded(["a" * (1 + i % 7) for i in range(200)], None, np.arange(200), 100_000)
    assert examples.batches_per_epoch(100_000) == 1
    for batches in (
        examples.training_batches(100_000, seed=1, epoch=0, rank=1, world_size=3),
        examples.evaluation_batches(100_000, rank=1, world_size=3),
    ):
        (batch,) = batches
        assert batch.global_examples == 200
        assert len(batch.labels) == len(batch.sequence_offsets) - 1 == 67
        assert batch.max_sequence_length == 64, "the longest has 9"


def test_what_is_cut_is_counted():
    examples = encoded(["a" * 30, "b" * 14, "c" * 15], None)
    assert (examples.cut, examples.longest, examples.max_length) == (2, 32, 16)
    examples = encoded(["a" * 30, "b"], ["c" * 30, "d"])
    assert (examples.cut, examples.longest) == (1, 63)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 700), max_size=30), st.integers(1, 5000))
def test_batches_within_hold_every_example_once_and_keep_to_their_places(lengths, places):
    examples = encoded(["a" * length for length in lengths], None, max_length=600)
    seen = []
    for batch in examples.batches_within(places, 8):
        longest = max(len(examples.ids[row]) for row in batch.rows)
        assert longest <= batch.max_sequence_length < longest + 8
        taken = len(batch.rows) * batch.max_sequence_length
        taken *= max(1, batch.max_sequence_length / 512)
        assert taken <= places or len(batch.rows) == 1
        ids = np.concatenate([examples.ids[row] for row in batch.rows])
        assert batch.input_ids.tolist() == ids.tolist()
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(len(lengths)))
