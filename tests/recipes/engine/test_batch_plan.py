"""Batch arithmetic: every global batch is cut well, or refused with two ways out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.common.errors import UserError
from recipes.engine.batch_plan import BatchPlan, plan_batches


@given(st.integers(1, 10_000), st.integers(1, 600), st.integers(1, 300))
def test_plans(requested, limit, ranks):
    try:
        plan = plan_batches(requested, limit, ranks)
    except UserError as error:
        nearest = int(str(error).split("train_batch_size to ")[1].split()[0].rstrip("."))
        assert plan_batches(nearest, limit, ranks).global_batch == nearest
        if " or use " in str(error):
            plan_batches(requested, limit, int(str(error).split(" or use ")[1].split()[0]))
        # Nothing was near: not even with any number of micro-batches of the largest size.
        whole = max(1, round(requested / (limit * ranks))) * limit * ranks
        assert abs(whole - requested) > requested / 10
        return
    assert 1 <= plan.micro_batch <= limit
    assert plan.global_batch == plan.micro_batch * plan.accumulation * ranks
    off = abs(plan.global_batch - requested)
    assert off <= requested / 10
    for micro_batch in (plan.micro_batch - 1, plan.micro_batch + 1):
        if 1 <= micro_batch <= limit:
            assert off <= abs(micro_batch * plan.accumulation * ranks - requested)
    if plan.accumulation > 1:  # fewer micro-batches do not fit the memory, or fit less well
        fewer = limit * (plan.accumulation - 1) * ranks
        assert fewer < requested and off < requested - fewer


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (512, {8: (512, 1), 16: (256, 1), 32: (128, 1), 64: (64, 1), 128: (32, 1), 200: (20, 1)}),
        (256, {8: (256, 2), 16: (256, 1), 32: (128, 1), 64: (64, 1), 128: (32, 1), 200: (20, 1)}),
    ],
    ids=["base", "large"],
)
def test_the_published_batch_on_8_to_200_gpus(limit, expected):
    for gpus, (micro_batch, accumulation) in expected.items():
        plan = plan_batches(4096, limit, gpus)
        assert plan == BatchPlan(4096, micro_batch, accumulation, gpus)
        assert plan.global_batch == (4000 if gpus == 200 else 4096)
    assert "rounded from 4096" in str(plan_batches(4096, limit, 200))


def test_batches_that_the_limit_cuts_unevenly():
    # One more micro-batch would be 30 sequences.
    assert plan_batches(21, 1, 10) == BatchPlan(21, 1, 2, 10)
    # Two micro-batches of 4 would be no nearer than one of 8.
    assert plan_batches(100, 8, 12) == BatchPlan(100, 8, 1, 12)


def test_more_ranks_than_sequences_shows_the_arithmetic_and_two_ways_out():
    with pytest.raises(UserError) as caught:
        plan_batches(64, 32, 200)
    message = str(caught.value)
    assert "64 / 200 ranks = 0.32" in message
    assert "train_batch_size to 200" in message
    assert "use 70 ranks" in message  # one sequence each: 70 is within a tenth of 64
