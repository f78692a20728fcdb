"""Durations, the learning rate at its corners, and the decay convention."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.training.schedule import (
    StepBudget,
    TimeBudget,
    adamw_weight_decay,
    duration_in_sequences,
    learning_rate,
    learning_rate_at,
)


def test_durations():
    assert duration_in_sequences("70k-steps") == 286_720_000
    assert duration_in_sequences("178k-steps") == 729_088_000
    assert duration_in_sequences("2560") == 2560
    assert duration_in_sequences("1_000_000") == duration_in_sequences("1,000,000") == 1_000_000


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("1e3", "did you mean 1000?"),
        ("70k", "did you mean 70000 or 70k-steps?"),
        ("70k-step", "did you mean 70k-steps?"),
        ("70K steps", "did you mean 70k-steps?"),
        ("178000-steps", "did you mean 178k-steps?"),
        ("100k-steps", "did you mean 409600000?"),
        ("1e3.5", None),
        ("inf", None),
        ("nan-steps", None),
        ("steps", None),
        ("1e12-steps", None),
        ("9" * 5000, None),
    ],
)
def test_a_duration_that_is_none_is_told_what_may_be_meant(wrong, meant):
    with pytest.raises(ValueError, match="neither") as refused:
        duration_in_sequences(wrong)
    assert meant in str(refused.value) if meant else "did you mean" not in str(refused.value)


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


def composer(step: int, total_steps: int) -> float:
    """The published schedule by Composer's definition, its clock in sequences of 4,096 a step."""
    now, warmup, end = 4096 * step, int(0.06 * 4096 * total_steps), 4096 * total_steps
    if now < warmup:
        return now / warmup
    return 1 + (0.02 - 1) * (now - warmup) / (end - warmup)


@pytest.mark.parametrize(("total", "more"), [(70_000, 5.6e-7), (178_000, 2.2e-7)])
def test_the_rate_of_a_step_is_composers_of_the_next(total, more):
    shape = dict(peak=1.0, warmup_fraction=0.06, final_fraction=0.02)
    ours = [learning_rate(step, total, **shape) for step in range(total)]
    theirs = [composer(step, total) for step in range(total + 1)]
    assert theirs[0] == 0
    assert max(abs(a - b) for a, b in zip(ours, theirs[1:], strict=True)) < 1e-12
    assert math.fsum(ours) / math.fsum(theirs[:-1]) - 1 == pytest.approx(more, rel=0.01)


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


@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.5, 1.0])
@pytest.mark.parametrize("final", [0.0, 0.02, 1.0])
def test_by_time_it_is_the_same_schedule(warmup, final):
    """A run of equal steps, told by their number and told by the clock when they end."""
    shape = dict(peak=3.0, warmup_fraction=warmup, final_fraction=final)
    for step in range(99):  # at the end of a whole run of warm-up, the clock has it over
        by_time = learning_rate_at((step + 1) / 100, **shape)
        assert by_time == pytest.approx(learning_rate(step, 100, **shape), abs=0.03 + 1e-9)


def test_by_time_at_its_corners():
    shape = dict(peak=2.0, warmup_fraction=0.25, final_fraction=0.1)
    times = (0, 0.125, 0.25, 0.625, 1, 1.5)
    assert [learning_rate_at(t, **shape) for t in times] == pytest.approx([0, 1, 2, 1.1, 0.2, 0.2])
    assert learning_rate_at(0, peak=2.0, warmup_fraction=0, final_fraction=0.1) == 2
    assert learning_rate_at(1, peak=2.0, warmup_fraction=1, final_fraction=0.1) == 0.2


def test_a_budget_of_steps_and_one_of_seconds():
    shape = dict(peak=1.0, warmup_fraction=0.5, final_fraction=0.1)
    shares = [0.5, 0.6, 0.9]
    budget, passed = StepBudget(4), []
    for step in range(4):
        assert not budget.spent
        budget.begin_step(1e9)
        assert budget.learning_rate(**shape) == learning_rate(step, 4, **shape)
        passed.append(budget.reached(shares))
    assert budget.spent and passed == [[], [0.5], [0.6], [0.9]]
    resumed = StepBudget(4, begun=2)
    resumed.begin_step(0)
    assert StepBudget(4, begun=4).spent and resumed.reached([0.5, 0.75]) == [0.75]

    timed, passed, rates = TimeBudget(10), [], []
    for clock in (0.5, 4, 7, 10.5):
        assert not timed.spent
        timed.begin_step(clock)
        passed.append(timed.reached(shares))
        rates.append(timed.learning_rate(**shape))
    assert timed.spent and passed == [[], [], [0.5, 0.6], [0.9]]
    assert rates == pytest.approx([0.1, 0.8, 1 - 0.9 * 0.4, 0.1])
    resumed = TimeBudget(10, elapsed=5)
    resumed.begin_step(5.5)
    assert resumed.reached([0.5, 0.55]) == [0.55]
    assert TimeBudget(10, elapsed=10).spent and not TimeBudget(10, elapsed=9.9).spent


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
