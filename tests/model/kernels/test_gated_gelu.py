"""dropout(gelu(gate) * value) against its formula, and gradients against differences."""

from __future__ import annotations

import math

import pytest
import torch
from exact import DTYPES, KERNELS, ROWS, WIDTH, compare, dropped, leaf, row_keys

from model.kernels import operations as ops

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_device")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("probability", [0.0, 0.4])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("kernels", KERNELS)
def test_gated_gelu(kernels, apart, probability, dtype):
    torch.manual_seed(0)

    def formula(gate_and_value):
        gate, value = gate_and_value.chunk(2, dim=-1)
        inner = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * value
        return dropped(inner, probability, 6, first=100)

    def operation(gate_and_value):
        given = gate_and_value.chunk(2, dim=-1) if apart else gate_and_value
        return ops.gated_gelu(given, probability, row_keys(), 6, 100, kernels)

    compare(formula, operation, kernels, [leaf(ROWS, 1, 2 * WIDTH, dtype=dtype)])


def test_gated_gelu_wider_than_one_tile():
    torch.manual_seed(0)
    wide = leaf(ROWS, 1, 2 * 1300, dtype=torch.float32)
    plain, fused = (ops.gated_gelu(wide, 0.4, row_keys(), 6, 0, k) for k in ("torch", "triton"))
    torch.testing.assert_close(fused, plain)


def test_gelu_by_its_short_series():
    """Within 1e-6 of the erf form wherever it matters."""
    gate = torch.linspace(-12, 12, 4001).view(1, 1, -1).requires_grad_()
    value = torch.ones_like(gate)
    found = ops.gated_gelu((gate, value), 0.0, None, 0, 0, "triton")
    (slope,) = torch.autograd.grad(found.sum(), gate)
    exact = gate.detach().double().requires_grad_()
    expected = torch.nn.functional.gelu(exact)
    (expected_slope,) = torch.autograd.grad(expected.sum(), exact)
    assert (found.double() - expected).abs().max() < 2e-6
    assert (slope.double() - expected_slope).abs().max() < 2e-6


def test_gradients_against_differences():
    torch.manual_seed(0)
    keys = row_keys()[:3]

    def glu(both):
        return ops.gated_gelu(both, 0.4, keys, 6, 0, "triton")

    assert torch.autograd.gradcheck(glu, (leaf(3, 1, 6),))


@pytest.mark.parametrize("apart", [False, True])
def test_outputs_are_written_whole(poisoned_memory, apart):
    wide = leaf(ROWS, 1, 2 * WIDTH)
    given = wide.chunk(2, dim=-1) if apart else wide
    inner = ops.gated_gelu(given, 0.4, row_keys(), 6, 0, "triton")
    inner.square().sum().backward()
    assert inner.isfinite().all() and wide.grad.isfinite().all()
