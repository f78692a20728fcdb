"""The masks against plain integers, and as random numbers."""

from __future__ import annotations

import pytest
import torch

from model.kernels.hashed_dropout import dropout, keep_mask, row_keys

M = 0xFFFFFFFF


def finalizer(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x85EBCA6B & M
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & M
    return x ^ (x >> 16)


def kept_by_hand(key: int, site: int, column: int, probability: float) -> bool:
    a = finalizer((key & M) ^ (site * 0x9E3779B9 & M))
    b = finalizer(((key >> 32) & M) ^ a)
    x = (column * 0x9E3779B9 & M) ^ a
    x = (x ^ (x >> 16)) * 0x85EBCA6B + b & M
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & M
    return x >= round(probability * 2**32)


def test_murmur_by_its_published_values():
    # MurmurHash3's fmix32 of small numbers, as its reference code prints them.
    assert [finalizer(x) for x in (0, 1, 2)] == [0, 0x514E28B7, 0x30F4C306]


def test_masks_by_hand():
    keys = torch.tensor([0, 1, -1, 2**62 + 12345, -(2**63)])
    for site, first in ((0, 0), (51, 0), (51, 7)):
        found = keep_mask(keys, site, 9, 0.3, first)
        for row, key in enumerate(keys.tolist()):
            expected = [kept_by_hand(key, site, first + c, 0.3) for c in range(9)]
            assert found[row].tolist() == expected


def test_row_keys_by_hand():
    offsets = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    golden = 0x9E3779B97F4A7C15
    keys = row_keys(torch.tensor([10, 20, -30]), offsets, 7)
    expected = [10, 10 + golden, -30, -30 + golden, -30 + 2 * golden]
    signed = [(x + 2**63) % 2**64 - 2**63 for x in expected]
    assert keys.shape == (7,)
    assert keys[:5].tolist() == signed


def test_kept_units_are_scaled_and_the_gradient_passes_through_the_same_mask():
    x = torch.randn(6, 1, 10, requires_grad=True)
    keys = torch.arange(6)
    y = dropout(x, 0.25, keys, 3)
    kept = keep_mask(keys, 3, 10, 0.25).unsqueeze(1)
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(y, torch.where(kept, x / 0.75, 0.0))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(kept, 1 / 0.75, 0.0))


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_masks_look_random(probability):
    """Rates and pairwise agreements of 2,048 x 768 draws, each within five standard deviations."""
    # The keys that a run has: of neighbouring positions of sequences with hashed keys.
    offsets = torch.arange(0, 2049, 128, dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    sequence_keys = torch.randint(-(2**62), 2**62, (16,), generator=generator)
    keys = row_keys(sequence_keys, offsets, 2048)
    mask = keep_mask(keys, 8, 768, probability).double() - (1 - probability)
    variance = probability * (1 - probability)
    assert abs(mask.mean()) < 5 * (variance / mask.numel()) ** 0.5
    rows, columns = mask.shape
    assert mask.mean(0).abs().max() < 5 * (variance / rows) ** 0.5
    assert mask.mean(1).abs().max() < 5 * (variance / columns) ** 0.5
    others = {
        "next column": (mask[:, 1:], mask[:, :-1]),
        "next row": (mask[1:], mask[:-1]),
        "next row and column": (mask[1:, 1:], mask[:-1, :-1]),
        "next site": (keep_mask(keys, 9, 768, probability).double() - (1 - probability), mask),
        "next sequence": (mask[128:], mask[:-128]),
    }
    for name, (one, other) in others.items():
        agreement = (one * other).mean()
        assert abs(agreement) < 5 * variance / one.numel() ** 0.5, name
