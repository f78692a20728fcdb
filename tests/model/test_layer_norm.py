from __future__ import annotations

import torch
from plain_bert import layer_norm, randomise

from model.layer_norm import LowPrecisionLayerNorm


def build() -> LowPrecisionLayerNorm:
    norm = LowPrecisionLayerNorm(64)
    randomise(norm)
    return norm


def test_without_autocast_it_is_plain_layer_norm():
    torch.manual_seed(0)
    norm, x = build(), 3.0 + 5.0 * torch.randn(10, 64)
    torch.testing.assert_close(norm(x), layer_norm(x, norm))
    assert norm.eps == 1e-12


def test_a_constant_row_gives_the_bias():
    norm = build()
    torch.testing.assert_close(norm(torch.zeros(2, 64)), norm.bias.expand(2, 64))


def test_under_autocast_it_stays_in_bf16_and_near_fp32():
    torch.manual_seed(0)
    norm, x = build(), torch.randn(10, 64, requires_grad=True)
    expected = norm(x)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            actual = norm(given)
            assert actual.dtype == torch.bfloat16
            torch.testing.assert_close(actual.float(), expected, rtol=0.02, atol=0.02)
        cotangent = torch.randn(10, 64)
        actual.backward(cotangent.bfloat16())
    exact = torch.autograd.grad(expected, [x, norm.weight, norm.bias], cotangent)
    for tensor, reference in zip([x, norm.weight, norm.bias], exact, strict=True):
        grad = tensor.grad
        assert grad is not None and grad.dtype == torch.float32
        error = (grad - reference).norm() / reference.norm()
        assert error < 0.01


def test_bf16_statistics_are_taken_in_fp32():
    # In bf16 the mean of 64 numbers around 1000 is off by units; their spread here is 8.
    torch.manual_seed(0)
    x = (1000 + 8 * torch.randn(10, 64)).bfloat16()
    norm = LowPrecisionLayerNorm(64)
    expected = norm(x.float())
    actual = norm.bfloat16()(x)
    torch.testing.assert_close(actual.float(), expected, rtol=0.01, atol=0.01)
