import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.common.hashing import hash64
from recipes.corpus import sequence_order
from recipes.corpus.sequence_order import SequenceIndex, shuffled
from recipes.corpus.token_shards import Shard

BILLION = 10**9


def shuffle_of(size, seed=0, epoch=0, positions=None):
    positions = np.arange(size) if positions is None else positions
    epochs = np.full(len(positions), epoch)
    return shuffled(positions, epochs, size=size, key=hash64(seed, 0))


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_each_epoch_is_a_bijection(size, seed, epoch):
    np.testing.assert_array_equal(np.sort(shuffle_of(size, seed, epoch)), np.arange(size))


def test_each_epoch_is_a_bijection_on_every_small_size():
    for size in range(1, 400):
        np.testing.assert_array_equal(np.sort(shuffle_of(size)), np.arange(size))


def test_an_epoch_of_an_element_does_not_depend_on_its_neighbours():
    positions = np.array([3, 99, 0, 3, 50])
    epochs = np.array([0, 7, 2, 1, 0])
    together = shuffled(positions, epochs, size=100, key=hash64(5, 0))
    alone = [shuffle_of(100, 5, e)[p] for p, e in zip(positions, epochs, strict=True)]
    np.testing.assert_array_equal(together, alone)


def test_seeds_and_epochs_give_unrelated_shuffles():
    size = 10_000
    shuffles = [shuffle_of(size, seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1)]
    shuffles.append(np.arange(size))
    for number, one in enumerate(shuffles):
        for other in shuffles[:number]:
            # Unrelated shuffles agree in Poisson(1) places.
            assert np.count_nonzero(one == other) < 10
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(size)


def test_all_shuffles_of_four_elements_come_up_equally_often():
    trials = 24_000
    epochs = np.repeat(np.arange(trials), 4)
    images = shuffled(np.tile(np.arange(4), trials), epochs, size=4, key=hash64(0, 0))
    counts = np.unique(images.reshape(trials, 4), axis=0, return_counts=True)[1]
    assert len(counts) == math.factorial(4)
    chi_square = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi_square < 23 + 5 * math.sqrt(2 * 23)


def test_the_start_of_a_billion_sequences_is_spread_evenly():
    count, bins = 160_000, 16
    images = shuffle_of(BILLION, positions=np.arange(count))
    assert len(np.unique(images)) == count
    assert images.min() >= 0 and images.max() < BILLION
    filled = np.bincount(images * bins // BILLION, minlength=bins)
    assert np.abs(filled - count / bins).max() < 5 * math.sqrt(count / bins)
    neighbours = np.corrcoef(images[:-1], images[1:])[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(count)


def shards_of(lengths_by_shard):
    shards = []
    for lengths in lengths_by_shard:
        sizes = np.array(lengths, np.int32)
        starts = np.cumsum(sizes, dtype=np.int64) - sizes
        shards.append(Shard(np.zeros(sizes.sum(), np.uint16), sizes, 2 * starts))
    return shards


def reference_index(lengths_by_shard, sequence_length, documents):
    """Every sequence as (shard, start, length), the slow way."""
    room = sequence_length - 2
    sequences = []
    for shard, lengths in enumerate(lengths_by_shard):
        start = 0
        for length in lengths:
            end = start + length
            last = end if documents == "split" else min(end, start + room)
            for at in range(start, last, room):
                sequences.append((shard, at, min(room, end - at)))
            start = end
    return sequences


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=200), min_size=1, max_size=4),
    st.integers(8, 20),
    st.sampled_from(["split", "truncate"]),
    st.randoms(use_true_random=False),
)
def test_index_equals_the_slow_reference(lengths_by_shard, sequence_length, documents, random):
    expected = reference_index(lengths_by_shard, sequence_length, documents)
    index = SequenceIndex(shards_of(lengths_by_shard), sequence_length, documents)
    assert len(index) == len(expected)
    numbers = list(range(len(expected)))
    random.shuffle(numbers)
    found = index.locate(np.array(numbers, np.int64))
    assert list(zip(*(part.tolist() for part in found), strict=True)) == [
        expected[number] for number in numbers
    ]


def test_index_is_the_same_when_lengths_are_read_in_chunks(monkeypatch):
    generator = np.random.default_rng(0)
    lengths_by_shard = [generator.integers(0, 100, n).tolist() for n in (700, 64, 128, 1)]
    whole = SequenceIndex(shards_of(lengths_by_shard), 16)
    monkeypatch.setattr(sequence_order, "_CHUNK_BLOCKS", 2)
    chunked = SequenceIndex(shards_of(lengths_by_shard), 16)
    numbers = np.arange(len(whole))
    assert len(chunked) == len(whole)
    np.testing.assert_array_equal(chunked.locate(numbers), whole.locate(numbers))


@pytest.mark.parametrize("documents", ["split", "truncate"])
def test_sequences_of_365_million_documents_cost_less_than_100_megabytes(documents):
    pieces = 3 if documents == "split" else 1
    count = 365_000_000  # documents of C4; more than a billion sequences when split
    lengths = np.broadcast_to(np.int32(3 * 126), (count,))  # no memory of its own
    pointers = np.broadcast_to(np.int64(0), (count,))
    shards = [Shard(np.zeros(3 * 126, np.uint16), lengths, pointers)]
    tracemalloc.start()
    try:
        index = SequenceIndex(shards, 128, documents)
        positions = np.arange(512)
        numbers = shuffled(positions, positions * 0, size=len(index), key=hash64(1, 0))
        _, start, length = index.locate(numbers)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(index) == pieces * count
    np.testing.assert_array_equal(start, numbers % pieces * 126)
    assert (length == 126).all()
    assert peak < 100e6
