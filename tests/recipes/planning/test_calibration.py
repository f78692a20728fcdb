"""The fit to Table S2: what it says, and what it does not."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.planning.calibration import (
    WAITING,
    best,
    expected,
    fit,
    left_out_errors,
    share_range,
    worst,
)
from recipes.planning.published import TABLE_S2


def test_the_rows_used_are_met_and_the_others_are_near():
    found = fit()
    assert [str(row) for row in found.unused] == ["16 x a100-40", "32 x a100-40"]
    assert [str(row) for row in found.used] == ["8 x a100-80", "8 x a100-40", "64 x a100-40"]
    assert all(abs(found.error(row)) < 1e-9 for row in found.used)
    assert all(abs(found.error(row)) < 0.05 for row in found.unused)


def by_hand(rate_80: float) -> tuple[float, float]:
    """Share of the peak and bytes per token, without the network, from the rows of 8 GPUs.

    704 MFLOP a token, 65,536 tokens per GPU and step, and for each micro-batch half a wave of tiles
    in each product: 0.5 x 108 x 128 x 256 x 2 x (sum of inner widths, 12 layers of 15,360). With
    524,288 tokens / rate = (F + 1 half wave) / M + B / 2.039 TB/s in one micro-batch, and 558.9 ms
    = (F + 4) / M + B / 1.555 in four.
    """
    flops, wave = 704e6 * 65_536, 0.5 * 108 * 128 * 256 * 2 * 12 * 15_360
    left = [[flops + wave, 1 / 2.039e12], [flops + 4 * wave, 1 / 1.555e12]]
    seconds_per_flop, moved = np.linalg.inv(left) @ [524_288 / rate_80, 0.5589]
    return 1 / seconds_per_flop / 312e12, moved / 65_536


def test_the_fitted_numbers_are_physical():
    found, (share, moved) = fit(), by_hand(1.1e6)
    assert found.matmul_share == pytest.approx(share, rel=0.02) and share < 1
    assert found.published_token_bytes == pytest.approx(moved, rel=0.02)
    # As few passes as fused kernels need are 1.0 MB a token; eager ones are several times that.
    assert found.published_token_bytes > 3 * 1.0e6
    # On 64 GPUs a step is one micro-batch of 64: half of one of the four of 128 on 8.
    rest = 4096 * 128 / 4.77e6 - 0.5589 / 4 / 2
    harmonic = 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5 + 1 / 6 + 1 / 7 + 1 / 8
    assert found.waiting_seconds == pytest.approx(rest / harmonic, rel=0.12)


def test_what_the_printed_digits_allow_is_the_interval():
    low, high = share_range()
    assert low == pytest.approx(by_hand(1.05e6)[0], rel=0.02)
    assert high == pytest.approx(by_hand(1.15e6)[0], rel=0.02)
    assert worst().matmul_share == low < 0.45
    assert best().matmul_share == pytest.approx(790 / 989, abs=0.005) and high > 1


def test_each_row_is_predicted_from_the_others():
    """By hand: 558.9 ms on one node, in proportion beyond, no network, the last row as it is."""
    rows = [row for row in TABLE_S2 if row.gpu.short_name == "a100-40"]
    seconds = np.array([row.step_seconds for row in rows])
    forms = {
        "constant": [0, 1, 1, 1],
        "linear": [0, 1, 3, 7],
        "logarithm": [0, 1, 2, 3],
        "slowest node": [0, 0.5, 0.5 + 1 / 3 + 1 / 4, sum(1 / k for k in range(2, 9))],
    }
    assert list(WAITING) == list(forms)
    largest = {}
    for name, waits in forms.items():
        found = left_out_errors(name)
        assert list(found) == rows
        left = np.stack([0.5589 / np.array([1, 2, 4, 8]), waits], 1) / seconds[:, None]
        for out, error in enumerate(found.values()):
            kept = [row for row in range(4) if row != out]
            normal = left[kept].T @ left[kept]
            speed, wait = np.linalg.inv(normal) @ left[kept].sum(0)
            assert error == pytest.approx(left[out] @ (speed, wait) - 1, abs=0.03)
        largest[name] = max(map(abs, found.values()))
    assert min(largest, key=largest.__getitem__) == "slowest node"
    assert fit().residual == largest["slowest node"] < 0.05
    assert abs(largest["logarithm"] - largest["slowest node"]) < 0.01
    assert min(largest["constant"], largest["linear"]) > 0.15


def test_what_is_expected_lies_between_the_ends():
    for name in ("matmul_share", "memory_share", "link_share"):
        assert getattr(worst(), name) < getattr(expected(), name) < getattr(best(), name) <= 0.9
    for name in ("launch_seconds", "update_seconds", "waiting_seconds"):
        assert getattr(worst(), name) > getattr(expected(), name) > getattr(best(), name) >= 0
