"""Makes micro-batches for masked-language modelling, packed: no padding between sequences.

Order, masking and dropout are functions of (seed, stream position) alone. The sample stream is the
endless concatenation of epochs, each a seeded shuffle of all sequences; global step k consumes the
stream positions [k B, (k + 1) B), B being the global batch. Micro-step m of rank r takes B's slots
[(m W + r) b, (m W + r + 1) b) for world size W and micro-batch b. As B = b W times the
accumulation, that is simply the micro-batch's running number i = k accumulation + m:

    first stream position = (i W + r) b

so step k has the same sequences with the same masks on any world size, with any number of loader
workers, and after a restart. There is no generator whose state could be lost.

Masking is Bernoulli per token, as published: the number of masked tokens varies a little from
batch to batch. So does the number of real tokens. Both are rounded up to a multiple of a bucket of
1/32 of their capacity, so that a run sees a handful of shapes and compiled kernels are reused.
The cost is half a bucket on average, 1/64 of the capacity, or 1-2% of the rows when documents fill
their sequences to about 90%: rows that belong to no sequence, and rows in the head that the loss
ignores. `python recipes/benchmark.py input` measures both.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.labels import IGNORED_LABEL
from recipes.common.errors import UserError
from recipes.common.hashing import GOLDEN, hash64, mix64
from recipes.corpus.sequence_order import Documents, SequenceIndex, shuffled
from recipes.corpus.token_shards import TokenShards

_BUCKETS = 32
_ROW_MULTIPLE = 64  # matmul tiles
_MASKED_SHARE, _RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the rest keep their id


@dataclass
class PackedBatch:
    """One micro-batch: what the model needs, and the counts that the rates are computed from.

    Attributes:
        input_ids: int64 [tokens]. Sequences one after the other, each [CLS] piece [SEP]; then
            [PAD] up to the bucket, rows that belong to no sequence.
        sequence_offsets: int32 [sequences + 1]. First row of each sequence; the last entry is the
            number of real tokens. An entry equal to the next one is an empty sequence.
        sequence_keys: int64 [sequences]. Dropout masks are hashes of these (see `hashed_dropout`).
            They are hashes of the seed and of the sequence's place in the stream themselves.
        masked_positions: int64 [masked]. Rows of `input_ids` to predict, ascending, then zeros up
            to the bucket.
        labels: int64 [masked]. Original ids; `IGNORED_LABEL` on the rows that fill the bucket.
        max_sequence_length: the run's, not this batch's: it never changes, so nothing is compiled
            again.
        sequences: sequences that are not empty.
        real_tokens: tokens in sequences, [CLS] and [SEP] included.
        masked_tokens: labels that count.
        token_pairs: sum of the squared sequence lengths, what attention computes.
    """

    input_ids: Tensor
    sequence_offsets: Tensor
    sequence_keys: Tensor
    masked_positions: Tensor
    labels: Tensor
    max_sequence_length: int
    sequences: int
    real_tokens: int
    masked_tokens: int
    token_pairs: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """Copy the batch, its tensors to `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def copy(self) -> PackedBatch:
        """Copy the batch to memory of its own."""
        return self._with_tensors(Tensor.clone)

    def pin_memory(self) -> PackedBatch:
        """Copy the batch to page-locked memory (the DataLoader calls this)."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        return replace(
            self,
            input_ids=change(self.input_ids),
            sequence_offsets=change(self.sequence_offsets),
            sequence_keys=change(self.sequence_keys),
            masked_positions=change(self.masked_positions),
            labels=change(self.labels),
        )


class MlmBatches(Dataset[PackedBatch]):
    """The endless training stream of one rank: item i is its micro-batch i.

    Args:
        shards: the split to read.
        sequence_length: longest sequence in tokens, [CLS] and [SEP] included; at least 8.
        documents: `"split"` into consecutive sequences, or `"truncate"` to one (as published).
        seed: decides order and masking.
        mask_probability: share of the non-special tokens to predict.
        micro_batch: sequences per micro-batch on this rank.
        rank, world_size: position among the data-parallel ranks.

    Raises:
        UserError: everything that is wrong with the arguments, one message per fault.
    """

    def __init__(
        self,
        shards: TokenShards,
        *,
        sequence_length: int = 128,
        documents: Documents = "split",
        seed: int,
        mask_probability: float = 0.30,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        special = shards.special_ids
        checks = [
            (sequence_length >= 8, f"sequence length {sequence_length}: at least 8 tokens"),
            (documents in ("split", "truncate"), f"documents {documents!r}: split or truncate"),
            (0 <= seed < 2**63, f"seed {seed}: 0 to 2**63 - 1"),
            (0 < mask_probability < 1, f"mask probability {mask_probability}: between 0 and 1"),
            (micro_batch >= 1, f"micro-batch {micro_batch}: at least 1 sequence"),
            (
                micro_batch * sequence_length < 2**31,
                f"micro-batch {micro_batch} x sequence length {sequence_length} = "
                f"{micro_batch * sequence_length:,} tokens: row numbers are 32 bits, so at most "
                f"{(2**31 - 1) // max(sequence_length, 1):,} sequences",
            ),
            (0 <= rank < world_size, f"rank {rank}: 0 to {world_size - 1}, the world's last"),
            (
                len({*special.values()} & {*range(shards.vocab_size)}) == len(special),
                f"{shards.data_dir}: special ids {special} are not {len(special)} of the "
                f"{shards.vocab_size:,} pieces",
            ),
            (
                shards.vocab_size > len(special),
                f"{shards.data_dir}: {shards.vocab_size} pieces, {len(special)} of them special: "
                "no piece to predict",
            ),
        ]
        if faults := [message for holds, message in checks if not holds]:
            raise UserError(*faults)
        self.shards = shards
        self.index = SequenceIndex(shards.shards, sequence_length, documents)
        if not len(self.index):
            raise UserError(f"{shards.data_dir}: split {shards.split!r} has no tokens")
        self.sequence_length = sequence_length
        self.micro_batch = micro_batch
        self.rank, self.world_size = rank, world_size
        self._order_key, self._mask_key, self._dropout_key = np.split(hash64(seed, np.arange(3)), 3)
        self._special_ids = special
        self._is_special = np.zeros(shards.vocab_size, bool)
        self._is_special[list(special.values())] = True
        self._ordinary_ids = np.flatnonzero(~self._is_special)
        # A uniform 64-bit hash below the first bound: predicted. Below the second: shown as [MASK].
        # Between second and third: shown as a random piece.
        shares = (1.0, _MASKED_SHARE, _MASKED_SHARE + _RANDOM_SHARE)
        self._bounds = [np.uint64(int(mask_probability * share * 2**64)) for share in shares]
        capacity = micro_batch * sequence_length
        self._row_states = np.arange(1, capacity + 1, dtype=np.uint64) * GOLDEN
        self.token_bucket = _bucket(capacity)
        self.masked_bucket = _bucket(capacity * mask_probability)

    def __getitem__(self, item: int) -> PackedBatch:
        first = (item * self.world_size + self.rank) * self.micro_batch
        numbers, counters = self._stream(first)
        return self._pack(numbers, counters)

    def _stream(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the sequences of the batch that begins at stream position `first`.

        Returns:
            Their numbers, and the numbers that the masks of their tokens and of dropout are hashes
            of; int64 [sequences].
        """
        positions = np.arange(first, first + self.micro_batch)
        epoch, index = np.divmod(positions, len(self.index))
        numbers = shuffled(index, epoch, size=len(self.index), key=self._order_key)
        return numbers, positions

    def _damage(self, ids: np.ndarray, shard: np.ndarray, starts: np.ndarray) -> UserError:
        """Name the first of the ids that no piece of the vocabulary has, and the file it is in."""
        pieces = self.shards.vocab_size
        first = int(np.flatnonzero((ids < 0) | (ids >= pieces))[0])
        of = int(shard[np.searchsorted(starts, first, side="right") - 1])
        described = self.shards.manifest["splits"][self.shards.split]["shards"][of]
        return UserError(
            f"{self.shards.data_dir / described['prefix']}.bin: token {ids[first]}, where the "
            f"vocabulary has {pieces:,} pieces; the file is damaged (manifest.json has its "
            "sha256): prepare the data again"
        )

    def _pack(self, numbers: np.ndarray, counters: np.ndarray) -> PackedBatch:
        shard, source, piece_lengths = self.index.locate(numbers)
        lengths = piece_lengths + 2
        ends = np.cumsum(lengths)
        starts = ends - lengths
        real = int(lengths.sum())
        ids = np.full(_round_up(real, self.token_bucket), self._special_ids["pad"], np.int64)
        for of, begin, at, count in zip(
            shard.tolist(), source.tolist(), starts.tolist(), piece_lengths.tolist(), strict=True
        ):
            ids[at + 1 : at + 1 + count] = self.shards.shards[of].tokens[begin : begin + count]
        if real and not 0 <= ids[:real].min() <= ids[:real].max() < self.shards.vocab_size:
            raise self._damage(ids[:real], shard, starts)
        ids[starts] = self._special_ids["cls"]
        ids[ends - 1] = self._special_ids["sep"]

        positions, originals = self._mask(ids[:real], starts, lengths, counters)
        masked = len(positions)
        masked_rows = _round_up(masked, self.masked_bucket)
        masked_positions = np.zeros(masked_rows, np.int64)
        masked_positions[:masked] = positions
        labels = np.full(masked_rows, IGNORED_LABEL, np.int64)
        labels[:masked] = originals
        offsets = np.full(self.micro_batch + 1, real, np.int32)
        offsets[: len(starts)] = starts
        sequence_keys = np.zeros(self.micro_batch, np.uint64)
        sequence_keys[: len(starts)] = hash64(self._dropout_key, counters)
        return PackedBatch(
            input_ids=torch.from_numpy(ids),
            sequence_offsets=torch.from_numpy(offsets),
            sequence_keys=torch.from_numpy(sequence_keys.view(np.int64)),
            masked_positions=torch.from_numpy(masked_positions),
            labels=torch.from_numpy(labels),
            max_sequence_length=self.sequence_length,
            sequences=len(numbers),
            real_tokens=real,
            masked_tokens=masked,
            token_pairs=int((lengths**2).sum()),
        )

    def _mask(
        self, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, counters: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mask `ids` in place (BERT, section 3.1: 80% [MASK], 10% random, 10% kept).

        Returns:
            The positions to predict, ascending, and their original ids; int64 [masked].
        """
        # hash64(key of the sequence, place in it). The place is the row minus the sequence's first
        # row and the hash's input is linear in it, so its part that depends on the row is computed
        # once for all batches.
        sequence_keys = hash64(self._mask_key, counters)
        uniform = np.repeat(sequence_keys - starts.astype(np.uint64) * GOLDEN, lengths)
        uniform += self._row_states[: len(ids)]
        mix64(uniform)
        chosen, shown_mask, shown_random = self._bounds
        positions = np.flatnonzero(uniform < chosen)
        positions = positions[~self._is_special[ids[positions]]]
        originals, fate = ids[positions], uniform[positions]
        ids[positions[fate < shown_mask]] = self._special_ids["mask"]
        random = (fate >= shown_mask) & (fate < shown_random)
        drawn = mix64(fate[random]) % np.uint64(len(self._ordinary_ids))
        ids[positions[random]] = self._ordinary_ids[drawn.astype(np.int64)]
        return positions, originals


class EvaluationBatches(MlmBatches):
    """The sequences of a split in order, each on one rank, with the same masks every time.

    All ranks have the same number of batches, so that collective operations match; the last batches
    are filled with empty sequences.

    Args:
        limit: evaluate on that many sequences only, evenly spaced over the split.
        The others are those of `MlmBatches`. 15% of the tokens are predicted whatever training
        uses, so that losses compare with those of other encoders.
    """

    def __init__(
        self,
        shards: TokenShards,
        *,
        sequence_length: int = 128,
        documents: Documents = "split",
        seed: int = 0,
        mask_probability: float = 0.15,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
    ):
        if limit is not None and limit < 1:
            raise UserError(f"evaluation limit {limit}: at least 1 sequence")
        super().__init__(
            shards,
            sequence_length=sequence_length,
            documents=documents,
            seed=seed,
            mask_probability=mask_probability,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world_size,
        )
        self.evaluated_sequences = min(limit or len(self.index), len(self.index))

    def __len__(self) -> int:
        """Count the batches of each rank."""
        return -(-self.evaluated_sequences // (self.micro_batch * self.world_size))

    def _stream(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(first, min(first + self.micro_batch, self.evaluated_sequences))
        numbers = positions * len(self.index) // self.evaluated_sequences
        return numbers, numbers


def mlm_loader(
    dataset: MlmBatches, start: int, end: int, *, workers: int = 0, prefetch: int = 4
) -> DataLoader[PackedBatch]:
    """Load the micro-batches `start` to `end` (exclusive) of this rank, in order.

    Args:
        dataset: training or evaluation batches.
        start, end: running numbers of micro-batches: step times accumulation plus micro-step.
        workers: processes that make batches ahead of time; 0 makes them in this process.
        prefetch: finished batches that each worker holds ready.
    """
    return DataLoader(
        dataset,
        batch_size=None,  # an item is a whole micro-batch already
        sampler=range(start, end),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Forked workers share the sequence index and the mapped shards with this process.
        multiprocessing_context="fork" if workers else None,
        # The loader draws a seed for its workers whenever it is iterated. From the global generator
        # that would shift the dropout of a resumed run.
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_the_parent,
    )


def _leave_signals_to_the_parent(worker: int) -> None:
    """Make a worker ignore every signal but its parent's SIGTERM.

    Launchers and SLURM signal all processes, but the run goes on to the end of a step and needs
    batches for it. A worker whose parent is gone ends by itself.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of threads to come, too
    parent = os.getppid()

    def heed() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=heed, daemon=True).start()


def _round_up(count: int, multiple: int) -> int:
    """Round up to a multiple, at least to one: a shape without rows would be one more shape."""
    return max(1, -(-count // multiple)) * multiple


def _bucket(capacity: float) -> int:
    """Find the number of rows by which a shape of at most `capacity` rows grows."""
    return _round_up(math.ceil(capacity / _BUCKETS), _ROW_MULTIPLE)
