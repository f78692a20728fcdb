"""Dropout whose masks are a function of place instead of the state of a generator.

Whether a unit is dropped is a hash of four things: the key of its sequence (which the batch brings
along, a hash of the seed and of the sequence's place in the data stream), its position in the
sequence, the site (which dropout of which layer) and its column. So the mask of a unit is the same
on any number of GPUs, in any micro-batch, under tensor parallelism, in a resumed run, in a layer
that is computed again during the backward pass, and in a kernel that never stores it.

The hash is two rounds of MurmurHash3's 32-bit finalizer, keyed with both halves of the row's key.
This file is the plain form; `dropout.kept_units` computes the same bits in Triton.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..padding import sequence_of_row

_M = 0xFFFFFFFF
# 2^64 / golden ratio as a signed number (SplitMix64's increment), and its upper half, odd.
_GOLDEN_64 = 0x9E3779B97F4A7C15 - 2**64
GOLDEN_32 = 0x9E3779B9
# MurmurHash3's finalizer.
MIX_1, MIX_2 = 0x85EBCA6B, 0xC2B2AE35


def row_keys(sequence_keys: Tensor, sequence_offsets: Tensor, tokens: int) -> Tensor:
    """Return what the masks of each packed row are a hash of.

    Args:
        sequence_keys: int64 [S].
        sequence_offsets: int32 [S+1] (see `model.padding`).
        tokens: T, packed rows, those behind the last sequence included.

    Returns:
        int64 [T]; some key on the rows behind the last sequence.
    """
    sequence, position = sequence_of_row(sequence_offsets, tokens)
    of = sequence_keys[sequence.clamp(max=sequence_keys.shape[0] - 1)]
    return of + position * _GOLDEN_64  # wraps


def threshold(probability: float) -> int:
    """Return the hash, of 2^32, below which a unit is dropped."""
    return round(probability * 2**32)


def dropout(
    x: Tensor, probability: float, keys: Tensor, site: int | Tensor, first_column: int = 0
) -> Tensor:
    """Zero some units and scale the others by 1 / (1 - probability).

    Args:
        x: [T, ..., N]; all dimensions between are one.
        keys: int64 [T] (see `row_keys`).
        site: which dropout this is, different for each in the model.
        first_column: of this tensor-parallel rank's columns among all.
    """
    kept = keep_mask(keys, site, x.shape[-1], probability, first_column)  # [T, N]
    kept = kept.view(x.shape)  # [T, ..., N]
    return torch.where(kept, x * (1.0 / (1.0 - probability)), 0.0)


def keep_mask(
    keys: Tensor, site: int | Tensor, columns: int, probability: float, first_column: int = 0
) -> Tensor:
    """Say which units stay: bool [T, columns]."""
    a = _mix((keys & _M) ^ (site * GOLDEN_32 & _M))
    b = _mix(((keys >> 32) & _M) ^ a)
    column = torch.arange(first_column, first_column + columns, device=keys.device)
    x = (column * GOLDEN_32 & _M) ^ a[:, None]
    x = ((x ^ (x >> 16)) * MIX_1 + b[:, None]) & _M
    # Without the finalizer's last step, which the comparison would see once in 65,536 times.
    return (((x ^ (x >> 13)) * MIX_2) & _M) >= threshold(probability)


def _mix(x: Tensor) -> Tensor:
    """Apply MurmurHash3's finalizer to uint32 numbers held in int64."""
    x = ((x ^ (x >> 16)) * MIX_1) & _M
    x = ((x ^ (x >> 13)) * MIX_2) & _M
    return x ^ (x >> 16)
