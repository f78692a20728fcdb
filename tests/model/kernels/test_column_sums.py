"""Sums over the first dimension against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from exact import GPU

from model.kernels.column_sums import column_sums

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_device")]


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (33, 3, 70), (100, 5)])
def test_sums_are_rounded_once(shape):
    torch.manual_seed(0)
    partial = torch.randn(shape, device="cuda" if GPU else "cpu")
    exact = partial.double().sum(0)
    precise = column_sums(partial, torch.float32).double()
    torch.testing.assert_close(precise, exact, rtol=1e-5, atol=1e-5)
    # Half a step of bf16, a whole one in the interpreter, which cuts; and fp32's own rounding.
    step = 2**-8 if GPU else 2**-7
    rounded = column_sums(partial, torch.bfloat16).double()
    assert ((rounded - exact).abs() <= step * 1.001 * exact.abs() + 1e-5).all()


def test_fp64_stays_fp64():
    partial = torch.rand(50, 7, dtype=torch.float64, device="cuda" if GPU else "cpu")
    torch.testing.assert_close(column_sums(partial, torch.float64), partial.sum(0))
