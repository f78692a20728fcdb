import itertools
import json
import math
import subprocess
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from recipes.common.errors import UserError
from recipes.corpus.mlm_batches import EvaluationBatches, MlmBatches, PackedBatch, mlm_loader
from recipes.corpus.token_shards import open_shards

PAD, UNK, CLS, SEP, MASK = range(5)
LENGTH = 16  # so that the fixture's documents give many sequences


@pytest.fixture
def train(token_data):
    return open_shards(token_data, "train")


@pytest.fixture
def validation(token_data):
    return open_shards(token_data, "validation")


def sequences_of(batch: PackedBatch) -> list[tuple[list[int], dict[int, int]]]:
    """Each non-empty sequence: its ids as shown, and {place in it: label}."""
    ids, offsets = batch.input_ids.tolist(), batch.sequence_offsets.tolist()
    masked, kept = batch.masked_positions.tolist(), batch.labels.tolist()
    labels = dict(zip(masked[: batch.masked_tokens], kept[: batch.masked_tokens], strict=True))
    return [
        (ids[a:b], {row - a: labels[row] for row in range(a, b) if row in labels})
        for a, b in itertools.pairwise(offsets)
        if b > a
    ]


def restored(sequence) -> tuple[int, ...]:
    ids, labels = sequence
    return tuple(labels.get(place, token) for place, token in enumerate(ids))


def all_pieces(shards, room) -> Counter:
    """The sequences of a split, unmasked, the slow way."""
    pieces: Counter = Counter()
    for shard in shards.shards:
        tokens, start = shard.tokens.tolist(), 0
        for length in shard.lengths.tolist():
            for at in range(start, start + length, room):
                piece = tokens[at : min(at + room, start + length)]
                pieces[(CLS, *piece, SEP)] += 1
            start += length
    return pieces


def splitmix64(seed: int, element: int) -> int:
    """Element `element` (from 0) of SplitMix64, in Python integers after the C original."""
    z = (seed + (element + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def assert_equal(one: PackedBatch, other: PackedBatch):
    assert one.__dict__.keys() == other.__dict__.keys()
    for name, value in one.__dict__.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == getattr(other, name).dtype
            torch.testing.assert_close(value, getattr(other, name), rtol=0, atol=0)
        else:
            assert value == getattr(other, name)


def test_an_epoch_holds_every_piece_exactly_once(train):
    batches = MlmBatches(train, sequence_length=LENGTH, seed=3, micro_batch=1)
    expected = all_pieces(train, LENGTH - 2)
    assert len(batches.index) == expected.total()
    for epoch in range(2):
        first = epoch * len(batches.index)
        items = range(first, first + len(batches.index))
        found = Counter(restored(s) for i in items for s in sequences_of(batches[i]))
        assert found == expected


def global_step(shards, step, world_size, accumulation, micro_batch):
    """The sequences of a global batch in the order of their slots."""
    ranks = [
        MlmBatches(
            shards,
            sequence_length=LENGTH,
            seed=7,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    return [
        sequence
        for micro_step in range(accumulation)
        for batches in ranks
        for sequence in sequences_of(batches[step * accumulation + micro_step])
    ]


@pytest.mark.parametrize(
    "world_size, accumulation", [(1, 8), (2, 1), (2, 4), (4, 5), (8, 1), (8, 2), (200, 1), (200, 2)]
)
def test_a_global_step_is_the_same_on_any_world_size(train, validation, world_size, accumulation):
    global_batch = 800
    micro_batch = global_batch // (world_size * accumulation)
    epoch = len(MlmBatches(train, sequence_length=LENGTH, seed=0, micro_batch=1).index)
    across_epochs = epoch // global_batch
    assert across_epochs * global_batch < epoch < (across_epochs + 1) * global_batch
    # The validation split has fewer sequences than a global batch: one step sees several epochs.
    for shards, step in ((train, 0), (train, across_epochs), (validation, 1)):
        expected = global_step(shards, step, 1, 1, global_batch)
        assert global_step(shards, step, world_size, accumulation, micro_batch) == expected


def test_masks_are_the_documented_function_of_seed_position_and_place(train):
    seed, micro_batch, item = 11, 20, 6
    batches = MlmBatches(train, sequence_length=LENGTH, seed=seed, micro_batch=micro_batch)
    mask_key = splitmix64(seed, 1)
    for slot, sequence in enumerate(sequences_of(batches[item])):
        key = splitmix64(mask_key, item * micro_batch + slot)
        tokens = restored(sequence)
        chosen = {
            place: token
            for place, token in enumerate(tokens)
            if token > MASK and splitmix64(key, place) < 0.3 * 2**64
        }
        assert sequence[1] == chosen
        for place in chosen:
            if splitmix64(key, place) < 0.24 * 2**64:
                assert sequence[0][place] == MASK
            elif splitmix64(key, place) >= 0.27 * 2**64:
                assert sequence[0][place] == tokens[place]


def test_masks_change_with_the_epoch_and_the_seed(train):
    def masks(seed, epoch):
        batches = MlmBatches(train, sequence_length=LENGTH, seed=seed, micro_batch=1)
        first = epoch * len(batches.index)
        items = range(first, first + len(batches.index))
        sequences = [s for i in items for s in sequences_of(batches[i])]
        # Long pieces are distinct, so that they name their document across epochs.
        return {restored(s): frozenset(s[1]) for s in sequences if len(s[0]) == LENGTH}

    one = masks(0, 0)
    for other in (masks(0, 1), masks(1, 0)):
        assert one.keys() == other.keys()
        same = sum(one[piece] == other[piece] for piece in one)
        # Two independent masks of 14 tokens agree with probability (0.3**2 + 0.7**2)**14 = 0.05%.
        assert same <= 0.01 * len(one)


@pytest.mark.parametrize("probability", [0.15, 0.30])
def test_masking_statistics(write_token_data, probability):
    vocab_size = 30_000
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, vocab_size, 126) for _ in range(2000)]
    data_dir = write_token_data({"train": [documents]}, vocab_size)
    batches = MlmBatches(
        open_shards(data_dir, "train"), seed=0, mask_probability=probability, micro_batch=2000
    )
    batch = batches[0]
    shown = batch.input_ids[batch.masked_positions[: batch.masked_tokens]].numpy()
    labels = batch.labels[: batch.masked_tokens].numpy()

    def assert_share(count, total, share):
        assert abs(count - share * total) < 5 * math.sqrt(total * share * (1 - share))

    maskable = sum(np.count_nonzero(document > MASK) for document in documents)
    assert maskable < 2000 * 126  # so that special ids inside documents are put to the test
    assert labels.min() > MASK
    assert_share(batch.masked_tokens, maskable, probability)
    assert_share(np.count_nonzero(shown == MASK), len(labels), 0.8)
    assert_share(np.count_nonzero(shown == labels), len(labels), 0.1 + 0.1 / vocab_size)
    random = shown[(shown != MASK) & (shown != labels)]
    assert random.min() > MASK and random.max() < vocab_size
    in_eighths = np.bincount((random - 5) * 8 // (vocab_size - 5), minlength=8)
    for count in in_eighths:
        assert_share(count, len(random), 1 / 8)
    # Where a token stands must not matter either.
    places = batch.masked_positions[: batch.masked_tokens].numpy() % 128
    for count in np.bincount(places // 16, minlength=8)[1:7]:
        assert_share(count, maskable // 126 * 16, probability)


def test_layout_and_counts(train):
    batches = MlmBatches(train, sequence_length=LENGTH, seed=0, micro_batch=100)
    for item in range(20):
        batch = batches[item]
        sequences = sequences_of(batch)
        lengths = [len(ids) for ids, _ in sequences]
        assert all(ids[0] == CLS and ids[-1] == SEP for ids, _ in sequences)
        assert batch.sequences == len(sequences) == 100
        assert batch.real_tokens == sum(lengths) == batch.sequence_offsets[-1]
        assert batch.token_pairs == sum(n * n for n in lengths)
        assert batch.masked_tokens == sum(len(labels) for _, labels in sequences)
        assert batch.max_sequence_length == LENGTH
        assert batch.sequence_offsets.dtype == torch.int32 and len(batch.sequence_offsets) == 101
        for rows, bucket, used in (
            (batch.input_ids, batches.token_bucket, batch.real_tokens),
            (batch.masked_positions, batches.masked_bucket, batch.masked_tokens),
            (batch.labels, batches.masked_bucket, batch.masked_tokens),
        ):
            assert rows.dtype == torch.int64
            assert len(rows) % bucket == 0 and 0 <= len(rows) - used < bucket
        assert (batch.input_ids[batch.real_tokens :] == PAD).all()
        assert (batch.masked_positions[batch.masked_tokens :] == 0).all()
        assert (batch.labels[batch.masked_tokens :] == -100).all()
        positions = batch.masked_positions[: batch.masked_tokens]
        assert (positions.diff() > 0).all()


@pytest.mark.parametrize(
    "micro_batch, tokens, masked", [(512, 2048, 640), (128, 512, 192), (1, 64, 64)]
)
def test_bucket_sizes(train, micro_batch, tokens, masked):
    # 512 x 128 / 32 = 2048; 30% of it is 614.4, the next multiple of 64 is 640.
    batches = MlmBatches(train, seed=0, micro_batch=micro_batch)
    assert (batches.token_bucket, batches.masked_bucket) == (tokens, masked)


def test_the_largest_batch_fits(write_token_data):
    documents = [np.full(126, 9)] * 33
    data_dir = write_token_data({"train": [documents]})
    batches = MlmBatches(
        open_shards(data_dir, "train"), seed=0, mask_probability=0.999, micro_batch=33
    )
    batch = batches[0]
    assert batch.real_tokens == 33 * 128 <= len(batch.input_ids)
    assert batch.token_pairs == 33 * 128**2
    assert batch.masked_tokens > 0.99 * 33 * 126


def test_truncated_documents_give_their_beginning(train):
    batches = MlmBatches(
        train, sequence_length=LENGTH, documents="truncate", seed=0, micro_batch=train.documents
    )
    found = Counter(restored(sequence) for sequence in sequences_of(batches[0]))
    expected: Counter = Counter()
    for shard in train.shards:
        starts = shard.pointers // 2
        for start, length in zip(starts.tolist(), shard.lengths.tolist(), strict=True):
            beginning = shard.tokens[start : start + min(length, LENGTH - 2)]
            expected[(CLS, *beginning.tolist(), SEP)] += 1
    assert found == expected


def test_loader_gives_the_same_with_workers_and_after_a_restart(train):
    batches = MlmBatches(train, sequence_length=LENGTH, seed=0, micro_batch=32)
    expected = [batches[item] for item in range(12)]
    for start in (0, 5):
        for workers in (0, 2):
            found = list(mlm_loader(batches, start, 12, workers=workers))
            assert len(found) == 12 - start
            for one, other in zip(found, expected[start:], strict=True):
                assert_equal(one, other)


def test_only_its_parent_ends_a_worker(train):
    batches = MlmBatches(train, sequence_length=LENGTH, seed=0, micro_batch=8)
    loader = iter(mlm_loader(batches, 0, 40, workers=1, prefetch=1))
    next(loader)
    [worker] = loader._workers  # type: ignore[attr-defined]
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert len(list(loader)) == 39
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_loader_leaves_the_global_generator_alone(train):
    batches = MlmBatches(train, sequence_length=LENGTH, seed=0, micro_batch=8)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(mlm_loader(batches, 0, 2))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    torch.manual_seed(0)
    next(iter(DataLoader(batches, batch_size=None, sampler=range(1))))
    assert not torch.equal(torch.rand(3), expected)  # the loader's default would fail this test


def evaluate(shards, world_size, micro_batch=20, **kwargs):
    """The batches of each rank."""
    ranks = []
    for rank in range(world_size):
        batches = EvaluationBatches(
            shards,
            sequence_length=LENGTH,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world_size,
            **kwargs,
        )
        ranks.append([batches[item] for item in range(len(batches))])
    return ranks


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_sees_every_sequence_once_with_the_same_masks(validation, world_size):
    ranks = evaluate(validation, world_size)
    assert len({len(batches) for batches in ranks}) == 1
    in_order = [
        s for turn in zip(*ranks, strict=True) for batch in turn for s in sequences_of(batch)
    ]
    expected = [s for batch in evaluate(validation, 1)[0] for s in sequences_of(batch)]
    assert in_order == expected
    pieces = all_pieces(validation, LENGTH - 2)
    assert Counter(map(restored, in_order)) == pieces
    # The first document is one token long, the second 14, one full piece: the split's own order.
    first, second = (len(ids) for ids, _ in in_order[:2])
    assert (first, second) == (3, 16)
    assert sum(batch.sequences for batches in ranks for batch in batches) == pieces.total()


def test_evaluation_masks_15_percent(validation):
    (batches,) = evaluate(validation, 1, micro_batch=10_000)
    (batch,) = batches
    maskable = batch.real_tokens - 2 * batch.sequences
    deviation = math.sqrt(maskable * 0.15 * 0.85)
    assert abs(batch.masked_tokens - 0.15 * maskable) < 5 * deviation


def test_empty_batches_keep_their_shape(validation):
    # 10 sequences on 3 ranks at 20 per batch: the first rank takes all.
    ranks = evaluate(validation, 3, limit=10)
    assert [batch.sequences for (batch,) in ranks] == [10, 0, 0]
    empty = ranks[1][0]
    assert len(empty.input_ids) == 64 and (empty.input_ids == PAD).all()
    assert len(empty.labels) == 64 and (empty.labels == -100).all()
    assert empty.sequence_offsets.tolist() == [0] * 21
    assert (empty.real_tokens, empty.masked_tokens, empty.token_pairs) == (0, 0, 0)


def test_limited_evaluation_is_evenly_spaced_with_the_masks_of_the_whole(validation):
    whole = [s for batch in evaluate(validation, 1)[0] for s in sequences_of(batch)]
    some = [s for batch in evaluate(validation, 1, limit=30)[0] for s in sequences_of(batch)]
    assert some == [whole[place * len(whole) // 30] for place in range(30)]
    more = [s for batch in evaluate(validation, 1, limit=10**6)[0] for s in sequences_of(batch)]
    assert more == whole


def test_all_bad_arguments_are_named_at_once(train):
    with pytest.raises(UserError) as caught:
        MlmBatches(
            train,
            sequence_length=7,
            documents="whole",  # type: ignore[arg-type]
            seed=-1,
            mask_probability=1.0,
            micro_batch=0,
            rank=2,
            world_size=2,
        )
    assert len(caught.value.faults) == 6
    with pytest.raises(UserError, match=r"2,147,483,648 tokens.*at most 16,777,215 sequences"):
        MlmBatches(train, seed=0, micro_batch=2**24)
    with pytest.raises(UserError, match="limit 0"):
        EvaluationBatches(train, micro_batch=1, limit=0)


def test_vocabularies_without_room_for_predictions(write_token_data):
    data_dir = write_token_data({"train": [[np.arange(5)]]}, vocab_size=5)
    with pytest.raises(UserError, match="5 pieces, 5 of them special"):
        MlmBatches(open_shards(data_dir, "train"), seed=0, micro_batch=1)
    shards = open_shards(data_dir, "train")
    shards.special_ids["mask"] = 7
    with pytest.raises(UserError, match="are not 5 of the 5 pieces"):
        MlmBatches(shards, seed=0, micro_batch=1)


def test_moving_a_batch_moves_its_tensors_only(train):
    batch = MlmBatches(train, sequence_length=LENGTH, seed=0, micro_batch=4)[0]
    moved = batch.to("meta")
    for name, value in batch.__dict__.items():
        if isinstance(value, torch.Tensor):
            assert getattr(moved, name).device.type == "meta"
            assert getattr(moved, name).shape == value.shape
        else:
            assert getattr(moved, name) == value


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_batches_equal_pageable_ones(train):
    batch = MlmBatches(train, sequence_length=LENGTH, seed=0, micro_batch=4)[0]
    pinned = batch.pin_memory()
    assert pinned.input_ids.is_pinned() and pinned.labels.is_pinned()
    assert_equal(pinned.to("cuda", non_blocking=True).to("cpu"), batch)


def test_special_ids_may_lie_anywhere(write_token_data):
    """A vocabulary with its special pieces in other places gives the same batches, renamed."""
    generator = np.random.default_rng(0)
    documents = [generator.integers(5, 200, length) for length in (3, 40, 29, 100, 64)]
    special = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    ordinary = np.setdiff1d(np.arange(200), list(special.values()))
    renamed = np.concatenate([list(special.values()), ordinary])  # [200], new id by old
    first = open_shards(write_token_data({"train": [documents]}, 200), "train")
    moved = [renamed[document] for document in documents]
    second = open_shards(write_token_data({"train": [moved]}, 200, "moved"), "train")
    second.special_ids.update(special)
    for number in range(8):
        expected, found = (
            MlmBatches(shards, sequence_length=32, seed=1, micro_batch=4)[number]
            for shards in (first, second)
        )
        np.testing.assert_array_equal(found.input_ids, renamed[expected.input_ids.numpy()])
        np.testing.assert_array_equal(found.masked_positions, expected.masked_positions)
        labels = expected.labels.numpy()
        wanted = np.where(labels < 0, labels, renamed[labels])
        np.testing.assert_array_equal(found.labels, wanted)
        assert not np.isin(wanted, list(special.values())).any()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_token_that_no_piece_has_is_named_with_its_file(write_token_data, workers):
    generator = np.random.default_rng(0)
    documents = [[generator.integers(5, 300, 20) for _ in range(30)] for _ in range(2)]
    documents[1][7][3] = 300  # within what the file's numbers can say
    data_dir = write_token_data({"train": documents}, 301)
    manifest = json.loads((data_dir / "manifest.json").read_text())
    manifest["tokenizer"]["vocab_size"] = 300
    (data_dir / "manifest.json").write_text(json.dumps(manifest))
    shards = open_shards(data_dir, "train")
    batches = MlmBatches(shards, sequence_length=LENGTH, seed=0, micro_batch=8)
    prefix = manifest["splits"]["train"]["shards"][1]["prefix"]
    with pytest.raises(UserError, match=f"{prefix}.bin: token 300, where the vocabulary has 300"):
        list(mlm_loader(batches, 0, 15, workers=workers))  # an epoch
