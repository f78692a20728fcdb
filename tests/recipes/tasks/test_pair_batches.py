"""Batches of pairs: what stands where, and that ranks share them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from recipes.tasks.pair_batches import EncodedPairs

CLS, SEP = 2, 3


class Letters:
    cls_id, sep_id = CLS, SEP

    def encode_batch(self, texts):
        return [[ord(letter) for letter in text] for text in texts]


COLUMNS = [["ab", "c", "def", "g", "c"], ["AB", "C", "DEFGHI", "AB", "G"]]


@pytest.fixture
def pairs() -> EncodedPairs:
    return EncodedPairs(Letters(), COLUMNS, max_length=6)


def texts(batch) -> list[str]:
    offsets, ids = batch.sequence_offsets.tolist(), batch.input_ids.tolist()
    parts = [ids[begin:end] for begin, end in pairwise(offsets)]
    assert all(part[0] == CLS and part[-1] == SEP for part in parts if part)
    return ["".join(map(chr, part[1:-1])) for part in parts]


def test_anchors_stand_before_positives_and_long_texts_are_cut(pairs):
    assert (pairs.cut, pairs.longest) == (1, 8)
    assert pairs.texts[0, 1] == pairs.texts[0, 4] and pairs.texts[1, 0] == pairs.texts[1, 3]
    assert len(np.unique(pairs.texts)) == 8
    (batch,) = pairs.training_batches(5, seed=0, epoch=0)
    rows = batch.rows.tolist()
    assert sorted(rows) == list(range(5)) and rows != list(range(5))
    cut = {"DEFGHI": "DEFG"}
    expected = [cut.get(text, text) for column in COLUMNS for text in (column[r] for r in rows)]
    assert texts(batch) == expected
    assert batch.labels.tolist() == pairs.texts[:, rows].tolist()
    assert not batch.token_type_ids.any()
    assert batch.global_examples == 5 and batch.global_tokens == len(batch.input_ids)


def test_an_epoch_has_each_record_once_in_batches_of_like_size(pairs):
    batches = list(pairs.training_batches(4, seed=0, epoch=0))
    assert len(batches) == pairs.batches_per_epoch(4) == 2
    assert sorted(batch.global_examples for batch in batches) == [2, 3]
    assert sorted(row for batch in batches for row in batch.rows) == list(range(5))
    orders = [
        [batch.rows.tolist() for batch in pairs.training_batches(4, seed=0, epoch=epoch)]
        for epoch in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_ranks_share_a_batch_in_places_of_one_shape(pairs):
    for whole, *parts in zip(
        pairs.training_batches(4, seed=0, epoch=0),
        *(pairs.training_batches(4, seed=0, epoch=0, rank=r, world_size=2) for r in range(2)),
        strict=True,
    ):
        assert {tuple(part.labels.shape) for part in parts} == {(2, 2)}
        assert all(part.global_examples == whole.global_examples for part in parts)
        records = {}
        for part in parts:
            found, filled = texts(part), len(part.rows)
            assert found[filled:2] == [""] * (2 - filled) == found[2 + filled :]
            assert (part.labels[:, filled:] == -1).all()
            for place, row in enumerate(part.rows):
                records[row] = (found[place], found[2 + place])
                key = part.sequence_keys.view(2, 2)[:, place]
                at = whole.rows.tolist().index(row)
                assert key.tolist() == whole.sequence_keys.view(2, -1)[:, at].tolist()
        assert sorted(records) == sorted(whole.rows)


def test_dropout_differs_between_anchor_and_positive_of_one_text():
    """As SimCSE has it, whose only difference between the two is their dropout."""
    same = EncodedPairs(Letters(), [["ab", "c"], ["ab", "c"]], max_length=6)
    (batch,) = same.training_batches(2, seed=0, epoch=0)
    assert len(np.unique(batch.sequence_keys)) == 4
