"""Records of texts that belong together to packed batches: first all anchors, then all positives.

Each text is [CLS] text [SEP], a sequence of its own. Which records make up a batch is drawn and has
nothing to do with their lengths: the others of a batch are what an anchor is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from recipes.common.hashing import hash64
from recipes.corpus.tokenizer import Tokenizer
from recipes.tasks.classification_batches import (
    ClassificationBatch,
    EncodedExamples,
    PackedExamples,
)


class EncodedPairs(PackedExamples):
    """Records as sequences, each text truncated to `max_length` tokens, special ones included.

    `cut` is how many texts are, `longest` the tokens of the longest before that.

    Args:
        columns: anchors, positives and maybe hard negatives, in the order of the records.
    """

    def __init__(self, tokenizer: Tokenizer, columns: Sequence[Sequence[str]], max_length: int):
        self.sequences_per_example = len(columns)
        texts = [text for column in columns for text in column]
        encoded = EncodedExamples(tokenizer, texts, None, None, max_length=max_length)
        self.cut, self.longest = encoded.cut, encoded.longest
        numbers: dict[str, int] = {}
        same = [numbers.setdefault(text, len(numbers)) for text in texts]
        super().__init__(encoded.ids, encoded.first_lengths, None, max_length)
        self.texts = np.array(same, np.int64).reshape(len(columns), -1)  # [columns, records]

    def training_batches(
        self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[ClassificationBatch]:
        """Yield an epoch; batches differ by one record at most, so that none has few others."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        dropout_key = hash64(hash64(seed, 0), epoch)
        for rows in np.array_split(order, self.batches_per_epoch(batch_size)):
            yield self._pack(rows, batch_size, rank, world_size, dropout_key)

    def batches_per_epoch(self, batch_size: int) -> int:
        """Count the batches of an epoch."""
        return -(-len(self) // batch_size)

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
        columns = self.sequences_per_example
        first = np.arange(columns)[:, None] * len(self)  # sequence of each column's first record
        slots = np.full((columns, places), -1)
        slots[:, : len(mine)] = first + mine
        labels = np.full((columns, places), -1, np.int64)
        labels[:, : len(mine)] = self.texts[:, mine]
        return self._batch(
            slots.ravel(),
            dropout_key,
            labels=torch.from_numpy(labels),
            rows=mine,
            global_examples=len(rows),
            global_tokens=int(self.lengths[first + rows].sum()),
            global_losses=len(rows),
        )
