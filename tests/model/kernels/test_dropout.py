"""Dropout by itself, against the masks of the plain form."""

from __future__ import annotations

import pytest
from exact import DTYPES, KERNELS, ROWS, WIDTH, compare, dropped, leaf, row_keys

from model.kernels import operations as ops

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_device")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernels", KERNELS)
def test_dropout(kernels, dtype):
    compare(
        lambda x: dropped(x, 0.4, 0),
        lambda x: ops.dropout(x, 0.4, row_keys(), 0, kernels),
        kernels,
        [leaf(ROWS, WIDTH, dtype=dtype)],
    )
    x = leaf(ROWS, WIDTH)
    assert ops.dropout(x, 0.0, None, 0, kernels) is x


def test_outputs_are_written_whole(poisoned_memory):
    x = leaf(ROWS, WIDTH)
    y = ops.dropout(x, 0.4, row_keys(), 0, "triton")
    y.square().sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
