"""LayerNorm(residual + dropout(x + bias)) against its formula and differences."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from exact import DTYPES, KERNELS, ROWS, WIDTH, compare, dropped, leaf, row_keys

from model.kernels import operations as ops

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_device")]


def norm_formula(probability: float):
    def formula(x, bias, residual, weight, norm_bias):
        z = residual + dropped(x + bias, probability, 5)
        z = z - z.mean(-1, keepdim=True)
        y = z / (z.square().mean(-1, keepdim=True) + 1e-12).sqrt() * weight + norm_bias
        return y, y

    return formula


def residual_norm(kernels: str, probability: float):
    def operation(x, bias, residual, weight, norm_bias):
        norm = SimpleNamespace(weight=weight, bias=norm_bias, eps=1e-12)
        return ops.residual_norm(x, bias, residual, norm, probability, row_keys(), 5, kernels)

    return operation


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("probability", [0.0, 0.4])
@pytest.mark.parametrize("kernels", KERNELS)
def test_residual_norm(kernels, probability, dtype):
    torch.manual_seed(0)
    x, residual = leaf(ROWS, 1, WIDTH, dtype=dtype), leaf(ROWS, 1, WIDTH, dtype=dtype)
    inputs = [x, leaf(WIDTH, dtype=dtype), residual, *(leaf(WIDTH, dtype=dtype) for _ in "wb")]
    formula, operation = norm_formula(probability), residual_norm(kernels, probability)
    compare(formula, operation, kernels, inputs, outputs=2)


@pytest.mark.parametrize("used", [0, 1])
def test_residual_norm_with_one_of_its_outputs(used):
    """As behind the last layer, where no residual sum follows."""
    inputs = [leaf(ROWS, 1, WIDTH), leaf(WIDTH), leaf(ROWS, 1, WIDTH), leaf(WIDTH), leaf(WIDTH)]
    results = []
    for operation in (norm_formula(0.4), residual_norm("triton", 0.4)):
        (operation(*inputs)[used] ** 2).sum().backward()
        results.append([x.grad for x in inputs])
        for x in inputs:
            x.grad = None
    torch.testing.assert_close(*results)


def test_gradients_against_differences():
    torch.manual_seed(0)
    rows, keys = 3, row_keys()[:3]
    norm_inputs = (leaf(rows, 1, 5), leaf(5), leaf(rows, 1, 5), leaf(5), leaf(5))

    def norm(x, bias, residual, weight, norm_bias):
        holder = SimpleNamespace(weight=weight, bias=norm_bias, eps=1e-12)
        return ops.residual_norm(x, bias, residual, holder, 0.4, keys, 5, "triton")

    assert torch.autograd.gradcheck(norm, norm_inputs)


def test_outputs_are_written_whole(poisoned_memory):
    inputs = [leaf(ROWS, 1, WIDTH), leaf(WIDTH), leaf(ROWS, 1, WIDTH), leaf(WIDTH), leaf(WIDTH)]
    y, again = residual_norm("triton", 0.4)(*inputs)
    (y.square() + again).sum().backward()
    assert all(x.isfinite().all() for x in (y, *(x.grad for x in inputs)))
