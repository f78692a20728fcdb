"""Sentences and pairs to packed batches for classification: [CLS] a [SEP] or [CLS] a [SEP] b [SEP].

The order of the training examples is a function of (seed, epoch). Sequences of similar length are
put into the same batch: pools of shuffled examples are sorted by length, cut into batches, and the
batches shuffled. Nothing is padded between sequences; similar lengths keep the attention of a batch
from being sized by one long example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.labels import IGNORED_LABEL
from recipes.common.hashing import hash64
from recipes.corpus.tokenizer import Tokenizer

LENGTH_MULTIPLE = 64
ATTENTION_LENGTH = 512
"""Tokens up to which memory grows with the length of sequences."""
_POOL_BATCHES = 32


@dataclass
class ClassificationBatch:
    """One rank's part of a batch, packed.

    Attributes:
        input_ids, token_type_ids: int64 [tokens]; type 1 is the second sentence and its [SEP].
        sequence_offsets: int32 [sequences + 1]; an entry equal to the next is an empty sequence.
        sequence_keys: int64 [sequences], what dropout masks are a hash of (see `hashed_dropout`): a
            hash itself of (seed, epoch, example).
        labels: what the model's `forward` calls so, such as int64 [sequences], `IGNORED_LABEL` on
            empty ones; fp32 [sequences], with NaN on empty ones; or int64 [tokens].
        max_sequence_length: of the examples, rounded up.
        rows: int64 [examples], which examples these are.
        global_examples, global_tokens: of this batch over all ranks.
        global_losses: how many losses the model's `forward` sums, over all ranks: of examples, or
            of labelled tokens. Their mean is what is trained on.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    sequence_offsets: Tensor
    sequence_keys: Tensor
    labels: Tensor
    max_sequence_length: int
    rows: np.ndarray
    global_examples: int
    global_tokens: int
    global_losses: int

    @property
    def packed(self) -> tuple[Tensor, Tensor, int, Tensor]:
        """What models take: token ids, offsets of sequences, the largest length, token types."""
        lengths = self.sequence_offsets, self.max_sequence_length
        return self.input_ids, *lengths, self.token_type_ids

    def to(self, device: torch.device) -> ClassificationBatch:
        """A copy with its tensors on `device`."""
        names = ("input_ids", "token_type_ids", "sequence_offsets", "sequence_keys", "labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class PackedExamples:
    """Examples as sequences of token ids, ready to be cut into batches.

    A batch has no more places than there are examples, and no longer ones than these need, whatever
    is allowed.

    Args:
        ids: int64 [tokens] of each sequence, special ones included.
        first_lengths: int64 [sequences], tokens of type 0; those behind them are of type 1.
        labels: [examples, ...], int64 or fp32, or None.
        max_length: that is allowed.
    """

    sequences_per_example = 1
    """Sequences that one example brings into a batch."""

    def __init__(
        self,
        ids: Sequence[np.ndarray],
        first_lengths: np.ndarray,
        labels: np.ndarray | None,
        max_length: int,
    ):
        self.ids, self.first_lengths, self.labels = ids, first_lengths, labels
        self.lengths = np.array([len(each) for each in ids], np.int64)
        # Rounded, because odd lengths are slow on GPUs.
        needed = -(-int(self.lengths.max(initial=0)) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        self.max_length = min(max_length, needed)

    def __len__(self) -> int:
        return len(self.ids) // self.sequences_per_example

    def training_batches(
        self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[ClassificationBatch]:
        """Yield an epoch; every rank gets as many batches, the last of them maybe smaller."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        generator = np.random.default_rng((seed, epoch, 1))
        dropout_key = hash64(hash64(seed, 0), epoch)
        batches: list[np.ndarray] = []
        pool = _POOL_BATCHES * batch_size
        for begin in range(0, len(order), pool):
            rows = order[begin : begin + pool]
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        for batch in generator.permutation(len(batches)):
            yield self._pack(batches[batch], batch_size, rank, world_size, dropout_key)

    def evaluation_batches(
        self, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[ClassificationBatch]:
        """Yield every example once over all ranks, by length."""
        order = np.argsort(self.lengths, kind="stable")
        for begin in range(0, len(order), batch_size):
            yield self._pack(order[begin : begin + batch_size], batch_size, rank, world_size)

    def batches_within(self, places: int, multiple: int) -> Iterator[ClassificationBatch]:
        """Yield every example once, by length: as many to a batch as are within so many places.

        Each example of a batch takes as many places as the longest one in it, rounded up to the
        multiple, and beyond `ATTENTION_LENGTH` more, as attention's scores grow with the square.
        An example that alone takes more is a batch of its own.
        """
        order = np.argsort(self.lengths, kind="stable")
        end = len(order)
        while end:
            rounded = -(-int(self.lengths[order[end - 1]]) // multiple) * multiple
            length = min(rounded, self.max_length)
            each = length * max(1, length / ATTENTION_LENGTH)
            rows = order[max(0, end - max(1, int(places // each))) : end]
            yield replace(self._pack(rows, len(rows), 0, 1), max_sequence_length=length)
            end -= len(rows)

    def batches_per_epoch(self, batch_size: int) -> int:
        full, rest = divmod(len(self), _POOL_BATCHES * batch_size)
        return full * _POOL_BATCHES + -(-rest // batch_size)

    def _pack(
        self,
        rows: np.ndarray,
        batch_size: int,
        rank: int,
        world_size: int,
        dropout_key: np.ndarray | int = 0,
    ) -> ClassificationBatch:
        mine = rows[rank::world_size]
        places = -(-min(batch_size, len(self)) // world_size)
        slots = np.full(places, -1)
        slots[: len(mine)] = mine
        return self._batch(
            slots,
            dropout_key,
            labels=self._labels(mine, places),
            rows=mine,
            global_examples=len(rows),
            global_tokens=int(self.lengths[rows].sum()),
            global_losses=self._losses(rows),
        )

    def _losses(self, rows: np.ndarray) -> int:
        """Count the losses of these examples."""
        return len(rows)

    def _batch(
        self, slots: np.ndarray, dropout_key: np.ndarray | int, **others: Any
    ) -> ClassificationBatch:
        """Pack these sequences one behind the other, without padding.

        Args:
            slots: int64 [places], indices of sequences, -1 for an empty one.
            others: what else the batch says.
        """
        filled = slots >= 0
        lengths = np.where(filled, self.lengths[slots], 0)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        sequence_keys = np.where(filled, hash64(dropout_key, slots), np.uint64(0))
        parts = [self.ids[slot] for slot in slots[filled]]
        ids = np.concatenate(parts) if parts else np.zeros(1, int)
        types = np.zeros(len(ids), np.int64)
        for slot, start, length in zip(slots, offsets[:-1], lengths, strict=True):
            types[start + self.first_lengths[slot] : start + length] = 1
        return ClassificationBatch(
            input_ids=torch.from_numpy(ids),
            token_type_ids=torch.from_numpy(types),
            sequence_offsets=torch.from_numpy(offsets.astype(np.int32)),
            sequence_keys=torch.from_numpy(sequence_keys.view(np.int64)),
            max_sequence_length=self.max_length,
            **others,
        )

    def _labels(self, rows: np.ndarray, places: int) -> Tensor:
        """Return the labels of these examples, and for empty places what the losses pass over."""
        if self.labels is None:
            return torch.full((places,), IGNORED_LABEL)
        whole = np.issubdtype(self.labels.dtype, np.integer)
        shape = (places, *self.labels.shape[1:])
        labels = (
            np.full(shape, IGNORED_LABEL, np.int64) if whole else np.full(shape, np.nan, np.float32)
        )
        labels[: len(rows)] = self.labels[rows]
        return torch.from_numpy(labels)


class EncodedExamples(PackedExamples):
    """Sentences and pairs as sequences, truncated to `max_length`.

    Args:
        first, second: the sentences; `second` is None for single sentences.
        labels: int64 or fp32 [examples], or None.
        max_length: tokens, special ones included; the longer sentence is cut first.

    `cut` is how many examples are, `longest` the tokens of the longest before that.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        first: Sequence[str],
        second: Sequence[str] | None,
        labels: np.ndarray | None,
        *,
        max_length: int,
    ):
        special = 2 if second is None else 3
        if max_length < special + 1:
            raise ValueError(f"max_length {max_length}: at least {special + 1} tokens")
        self.cut = self.longest = 0
        ids_a = tokenizer.encode_batch(list(first))
        ids_b = tokenizer.encode_batch(list(second)) if second is not None else None
        sequences: list[np.ndarray] = []
        first_lengths = np.zeros(len(ids_a), np.int64)  # [CLS], first sentence, [SEP]
        cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
        for row, a in enumerate(ids_a):
            b = ids_b[row] if ids_b is not None else []
            keep_a, keep_b = truncated_lengths(len(a), len(b), max_length - special)
            whole = len(a) + len(b) + special
            self.cut += whole > max_length
            self.longest = max(self.longest, whole)
            ids = cls + a[:keep_a] + sep
            first_lengths[row] = len(ids)
            if ids_b is not None:
                ids += b[:keep_b] + sep
            sequences.append(np.array(ids, np.int64))
        super().__init__(sequences, first_lengths, labels, max_length)


def truncated_lengths(first: int, second: int, limit: int) -> tuple[int, int]:
    """Return how much of each sentence stays when both may have `limit` tokens: longer first.

    As if one token after the other were taken from the end of whichever is longer.
    """
    if first + second <= limit:
        return first, second
    if min(first, second) <= limit // 2:
        return (limit - second, second) if first > second else (first, limit - first)
    return limit - limit // 2, limit // 2
