"""Durations, the learning rate at its corners, and the decay convention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.schedule import adamw_weight_decay, duration_in_sequences, learning_rate


def test_durations():
    assert duration_in_sequences("70k-steps") == 286_720_000
    assert duration_in_sequences("178k-steps") == 729_088_000
    assert duration_in_sequences("2560") == 2560
    assert duration_in_sequences("1_000_000") == duration_in_sequences("1,000,000") == 1_000_000


@pytest.mark.parametrize("wrong", ["0", "-5", "70k", "1.5", "", "1e6"])
def test_a_wrong_duration_is_told_what_there_is(wrong):
    with pytest.raises(ValueError, match="70k-steps \\(286,720,000\\)"):
        duration_in_sequences(wrong)


def test_the_published_schedule_at_its_corners():
    def rate(step: int) -> float:
        return learning_rate(step, 70_000, peak=5e-4, warmup_fraction=0.06, final_fraction=0.02)

    assert rate(0) == pytest.approx(5e-4 / 4200)
    assert rate(2099) == pytest.approx(2.5e-4)
    assert rate(4199) == 5e-4  # the last step of the warm-up
    assert rate(4200) == pytest.approx(5e-4 * (1 - 0.98 / 65_800))
    assert rate(4199 + 32_900) == pytest.approx(5e-4 * 0.51)
    assert rate(69_999) == pytest.approx(1e-5)  # 2% of the peak


@pytest.mark.parametrize(
    ("total", "warmup", "expected"),
    [
        (1, 0.06, [1.0]),
        (1, 0.0, [1.0]),
        (1, 1.0, [1.0]),
        (2, 0.0, [1.0, 0.1]),
        (4, 1.0, [0.25, 0.5, 0.75, 1.0]),
        (4, 0.5, [0.5, 1.0, 0.55, 0.1]),
    ],
)
def test_short_runs(total, warmup, expected):
    shape = dict(peak=2.0, warmup_fraction=warmup, final_fraction=0.1)
    rates = [learning_rate(step, total, **shape) / 2.0 for step in range(total)]
    assert rates == pytest.approx(expected)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_up_once_down_once_never_zero_before_the_end(total, warmup, final):
    shape = dict(peak=1.0, warmup_fraction=warmup, final_fraction=final)
    rates = [learning_rate(step, total, **shape) for step in range(total)]
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(1.0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(rate > 0 for rate in rates[:-1])


def test_adamw_with_the_converted_decay_takes_the_published_step():
    peak, decoupled, beta1, beta2, eps = 5e-2, 1e-1, 0.9, 0.98, 1e-6
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))
    optimizer = torch.optim.AdamW(
        [weight],
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=adamw_weight_decay(decoupled, peak),
    )
    expected = weight.detach().clone()
    first, second = torch.zeros_like(expected), torch.zeros_like(expected)
    for step in range(3):
        lr = learning_rate(step, 3, peak=peak, warmup_fraction=0.5, final_fraction=0.02)
        gradient = torch.randn(5, generator=generator, dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = gradient
        optimizer.step()

        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        adam = (first / (1 - beta1 ** (step + 1))) / (
            (second / (1 - beta2 ** (step + 1))).sqrt() + eps
        )
        expected = expected - lr * adam - (lr / peak) * decoupled * expected
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=0)
