"""dropout(LayerNorm(x + bias)) against its formula and differences."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from exact import DTYPES, KERNELS, ROWS, WIDTH, compare, dropped, leaf, row_keys

from model.kernels import operations as ops

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_device")]


def formula(probability: float):
    def function(x, weight, norm_bias, bias=None):
        z = x if bias is None else x + bias
        z = z - z.mean(-1, keepdim=True)
        y = z / (z.square().mean(-1, keepdim=True) + 1e-12).sqrt() * weight + norm_bias
        return dropped(y, probability, 3)

    return function


def operation(kernels: str, probability: float):
    def function(x, weight, norm_bias, bias=None):
        norm = SimpleNamespace(weight=weight, bias=norm_bias, eps=1e-12)
        keys = row_keys()[: len(x)]
        return ops.norm_dropout(x, bias, norm, probability, keys, 3, kernels)

    return function


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("probability", [0.0, 0.4])
@pytest.mark.parametrize("kernels", KERNELS)
def test_norm_dropout(kernels, probability, biased, dtype):
    torch.manual_seed(0)
    inputs = [leaf(ROWS, WIDTH, dtype=dtype), leaf(WIDTH, dtype=dtype), leaf(WIDTH, dtype=dtype)]
    inputs += [leaf(WIDTH, dtype=dtype)] if biased else []
    compare(formula(probability), operation(kernels, probability), kernels, inputs)


def test_gradients_against_differences():
    torch.manual_seed(0)
    inputs = (leaf(3, 5), leaf(5), leaf(5), leaf(5))
    assert torch.autograd.gradcheck(operation("triton", 0.4), inputs)


def test_outputs_are_written_whole(poisoned_memory):
    inputs = [leaf(ROWS, WIDTH), leaf(WIDTH), leaf(WIDTH), leaf(WIDTH)]
    y = operation("triton", 0.4)(*inputs)
    y.square().sum().backward()
    assert all(x.isfinite().all() for x in (y, *(x.grad for x in inputs)))
