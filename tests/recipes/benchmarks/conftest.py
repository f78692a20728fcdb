"""A packed batch for the tests of the peers."""

from __future__ import annotations

import pytest
import torch

from model.labels import IGNORED_LABEL
from recipes.corpus.mlm_batches import PackedBatch

LENGTHS = (7, 1, 12, 4)


@pytest.fixture
def batch() -> PackedBatch:
    """Rows behind the last sequence, and labels that only fill a bucket, as in training."""
    draw = torch.Generator().manual_seed(3)
    tokens = sum(LENGTHS)
    positions = torch.arange(0, tokens, 3)
    filling = torch.zeros(2, dtype=torch.int64)
    return PackedBatch(
        input_ids=torch.randint(5, 90, (tokens + 4,), generator=draw),
        sequence_offsets=torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        sequence_keys=torch.arange(len(LENGTHS)),
        masked_positions=torch.cat([positions, filling]),
        labels=torch.cat(
            [torch.randint(5, 90, positions.shape, generator=draw), filling + IGNORED_LABEL]
        ),
        max_sequence_length=16,
        sequences=len(LENGTHS),
        real_tokens=tokens,
        masked_tokens=len(positions),
        token_pairs=sum(length**2 for length in LENGTHS),
    )
