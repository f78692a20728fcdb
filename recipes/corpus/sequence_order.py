"""Defines the order of the data: which piece of which document is a sequence, and when it comes.

Memory is one int64 per 64 documents. A shuffled list of a billion sequences would take 8 GB on
every rank and half a minute at every start. Instead the order is a function that maps each position
of an epoch to one sequence, computed for the few hundred positions of a micro-batch; a table of
counts and the memory-mapped lengths tell in which document a sequence lies.

Every number is a hash of the seed and of its own position, without a generator's state, so any
rank, any loader worker and any restart computes the same order.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from recipes.common.hashing import hash64
from recipes.corpus.token_shards import Shard

Documents = Literal["split", "truncate"]

_FEISTEL_ROUNDS = 8
_BLOCK_DOCUMENTS = 64
_CHUNK_BLOCKS = 1 << 12  # 262,144 documents, 1 MB of lengths: stays in the cache while reduced


def shuffled(index: np.ndarray, epoch: np.ndarray, *, size: int, key: np.ndarray) -> np.ndarray:
    """Find the elements at positions `index` of the shuffle of range(size) for each `epoch`.

    A Feistel network on the smallest near-square grid of at least `size` cells, each half added to
    modulo its own side (the mixed-radix form, Black and Rogaway, CT-RSA 2002). The few images that
    fall outside range(size) are sent through again until they fall inside, which keeps the map a
    bijection; about one in sqrt(size) needs it.

    Args:
        index: int64 [n], in [0, size).
        epoch: int64 [n]; each epoch is a shuffle of its own.
        size: sequences in an epoch, at most 2**62.
        key: uint64 [1], a hash of the run's seed.

    Returns:
        int64 [n], in [0, size).
    """
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    sides = (np.uint64(rows), np.uint64(columns))
    image = index.astype(np.uint64)
    pending = np.arange(len(image))
    round_keys = hash64(key, np.arange(_FEISTEL_ROUNDS))[:, None]
    while len(pending):
        halves = list(np.divmod(image[pending], sides[1]))
        epoch_keys = hash64(round_keys, epoch[pending])  # [rounds, pending]
        for number in range(_FEISTEL_ROUNDS):
            changed, read = number % 2, 1 - number % 2
            halves[changed] += hash64(epoch_keys[number], halves[read]) % sides[changed]
            halves[changed] %= sides[changed]
        image[pending] = halves[0] * sides[1] + halves[1]
        pending = pending[image[pending] >= size]
    return image.astype(np.int64)


class Pieces(NamedTuple):
    """Places of n sequences: int64 arrays [n]; `start` and `length` count tokens of the shard."""

    shard: np.ndarray
    start: np.ndarray
    length: np.ndarray


class SequenceIndex:
    """Numbers the sequences of a split at a sequence length chosen at training time.

    Args:
        shards: the split's shards.
        sequence_length: tokens of a sequence with [CLS] and [SEP]; two fewer are of its document.
        documents: `"split"` gives a document of n tokens ceil(n / (sequence_length - 2))
            consecutive sequences; `"truncate"` gives it one, its beginning (the published recipe).

    Building reads all lengths once (4 bytes per document). Memory: 8 bytes per 64 documents.
    """

    def __init__(
        self, shards: Sequence[Shard], sequence_length: int, documents: Documents = "split"
    ):
        self.shards = shards
        self.piece_tokens = sequence_length - 2
        self.documents = documents
        blocks = [-(-len(shard.lengths) // _BLOCK_DOCUMENTS) for shard in shards]
        self._first_block = np.concatenate([[0], np.cumsum(blocks)])  # [shards + 1]
        self._first_sequence = np.zeros(self._first_block[-1] + 1, np.int64)  # [blocks + 1]
        self._token_bytes = np.array([shard.tokens.itemsize for shard in shards])
        self._count_sequences()

    def __len__(self) -> int:
        return int(self._first_sequence[-1])

    def _count_sequences(self) -> None:
        counts = self._first_sequence[1:]
        step = _CHUNK_BLOCKS * _BLOCK_DOCUMENTS
        with tqdm(
            total=sum(len(shard.lengths) for shard in self.shards),
            desc="indexing sequences",
            unit=" documents",
            unit_scale=True,
            delay=2,
            disable=not sys.stderr.isatty(),
        ) as progress:
            for shard, first in zip(self.shards, self._first_block[:-1], strict=True):
                for start in range(0, len(shard.lengths), step):
                    pieces = self._pieces(shard.lengths[start : start + step])
                    starts = np.arange(0, len(pieces), _BLOCK_DOCUMENTS)
                    at = first + start // _BLOCK_DOCUMENTS
                    counts[at : at + len(starts)] = np.add.reduceat(pieces, starts)
                    progress.update(len(pieces))
        np.cumsum(counts, out=counts)

    def _pieces(self, lengths: np.ndarray) -> np.ndarray:
        """Count the sequences that documents of these lengths give; same shape."""
        if self.documents == "truncate":
            pieces: np.ndarray = np.minimum(lengths, 1)
        else:
            size = np.uint32(self.piece_tokens)
            pieces = (lengths.astype(np.uint32) + (size - np.uint32(1))) // size
        return pieces

    def locate(self, numbers: np.ndarray) -> Pieces:
        """Find where sequences lie, by their numbers: int64 [n] in [0, len(self)), in any order."""
        block = np.searchsorted(self._first_sequence, numbers, side="right") - 1
        shard = np.searchsorted(self._first_block, block, side="right") - 1
        document = (block - self._first_block[shard]) * _BLOCK_DOCUMENTS
        lengths = np.zeros((len(numbers), _BLOCK_DOCUMENTS), np.int32)
        for row, (of, first) in enumerate(zip(shard.tolist(), document.tolist(), strict=True)):
            found = self.shards[of].lengths[first : first + _BLOCK_DOCUMENTS]
            lengths[row, : len(found)] = found
        ends = np.cumsum(self._pieces(lengths), axis=1, dtype=np.int64)  # [n, 64]
        within = numbers - self._first_sequence[block]
        inside = np.count_nonzero(ends <= within[:, None], axis=1)
        rows = np.arange(len(numbers))
        length = lengths[rows, inside].astype(np.int64)
        before = np.where(inside > 0, ends[rows, inside - 1], 0)
        offset = (within - before) * self.piece_tokens
        document += inside
        pointers = [
            self.shards[of].pointers[at]
            for of, at in zip(shard.tolist(), document.tolist(), strict=True)
        ]
        start = np.array(pointers, np.int64) // self._token_bytes[shard]
        return Pieces(shard, start + offset, np.minimum(length - offset, self.piece_tokens))
