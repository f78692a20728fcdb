"""The gradient of a table against plain sums, and that it is the same each time."""

from __future__ import annotations

import pytest
import torch
from exact import DTYPES, GPU, TOLERANCE, close

from model.kernels import operations as ops
from model.kernels.embedding import table_gradient

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_device")]

# Rows, ids and columns: one row; a chunk of 32 rows less one, whole, and one more; ids of many
# chunks, 16 and 32 bits long; fewer columns than a program takes, and more.
SHAPES = [(1, 3, 5), (31, 4, 48), (32, 4, 48), (33, 1, 130), (700, 7, 48), (90, 40_000, 16)]
if GPU:
    SHAPES += [(57_344, 30_528, 768), (57_344, 512, 768), (57_344, 2, 768)]


def batch(rows: int, ids: int, columns: int, dtype: torch.dtype):
    """A gradient of rows, their ids, half of them one and the same, and how many are real."""
    torch.manual_seed(0)
    gradient = torch.randn(rows, columns, dtype=torch.float64).to(dtype)
    looked_up = torch.randint(ids, (rows,))
    looked_up[torch.rand(rows) < 0.5] = ids // 2
    return gradient, looked_up, torch.tensor(rows - rows // 8, dtype=torch.int32)


def sums(gradient: torch.Tensor, looked_up: torch.Tensor, real: torch.Tensor, ids: int):
    table = torch.zeros(ids, gradient.shape[1], dtype=torch.float64)
    return table.index_add_(0, looked_up[:real], gradient[:real].double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "ids", "columns"), SHAPES)
def test_the_gradient_is_the_sum_of_each_ids_rows(poisoned_memory, rows, ids, columns, dtype):
    gradient, looked_up, real = batch(rows, ids, columns, dtype)
    expected = sums(gradient, looked_up, real, ids)
    gradient[real:] = torch.nan  # whatever stands there
    found = table_gradient(gradient, looked_up, real, ids)
    assert found.dtype == dtype
    close(found, expected, TOLERANCE[dtype])
    # No row was added to an id that nobody looked up; the others are rounded once.
    assert not found[looked_up[:real].bincount(minlength=ids) == 0].any()
    again = table_gradient(gradient, looked_up, real, ids)
    assert torch.equal(found, again)


@pytest.mark.parametrize("count", [32, 33, 64, 32 * 33, 32 * 40 + 7])
def test_an_id_that_fills_its_chunks_to_the_edge(count):
    """Before and behind it stand ids of one row each, so that it begins anywhere in a chunk."""
    for ahead in (0, 1, 31):
        looked_up = torch.cat([torch.arange(ahead), torch.full((count,), 40), torch.arange(41, 44)])
        gradient = torch.ones(len(looked_up), 16)
        found = table_gradient(gradient, looked_up, torch.tensor(len(looked_up)), 64)
        assert torch.equal(found, sums(gradient, looked_up, len(looked_up), 64).float())


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_rows_are_looked_up_and_their_gradients_come_back(kernels):
    table = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    looked_up, real = torch.tensor([3, 8, 3, 0, 0]), torch.tensor(4)
    rows = ops.embedding(table, looked_up, real, kernels)
    assert torch.equal(rows, table[looked_up])
    weights = torch.randn(5, 5, dtype=torch.float64)
    weights[4] = 0  # no sequence has this row, so that its gradient is zero
    (rows * weights).sum().backward()
    torch.testing.assert_close(table.grad, sums(weights, looked_up, real, 9))
