from __future__ import annotations

import pytest
import torch
from plain_bert import gelu, randomise

from model.config import ModelConfig, ModelOptions
from model.feed_forward import FusedGLU, TwoMatmulGLU
from model.kernels.hashed_dropout import keep_mask
from model.megatron_config import megatron_config

HIDDEN, INNER = 24, 40


def build(kind: type, dropout: float = 0.0):
    config = ModelConfig("test", 1, HIDDEN, 3, INNER, ffn_dropout=dropout)
    module = kind(megatron_config(config, ModelOptions()))
    randomise(module)
    return module


def test_fused_equals_two_matmuls_equals_the_formula():
    fused, two = build(FusedGLU), build(TwoMatmulGLU)
    weights = dict(two.named_parameters())
    with torch.no_grad():
        fused.linear_in.weight[:INNER] = weights["linear_gate.weight"]
        fused.linear_in.weight[INNER:] = weights["linear_value.weight"]
        fused.linear_out.weight.copy_(weights["linear_out.weight"])
        fused.linear_out.bias.copy_(weights["linear_out.bias"])

    torch.manual_seed(0)
    x = torch.randn(7, 1, HIDDEN, requires_grad=True)
    cotangent = torch.randn(7, 1, HIDDEN)
    inner = gelu(x @ weights["linear_gate.weight"].T) * (x @ weights["linear_value.weight"].T)
    formula = inner @ weights["linear_out.weight"].T + weights["linear_out.bias"]
    expected = [formula, *torch.autograd.grad(formula, [x, *two.parameters()], cotangent)]

    # The output comes without its bias, for the layer to add.
    output = torch.add(*two(x, None, 0))
    actual = [output, *torch.autograd.grad(output, [x, *two.parameters()], cotangent)]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)

    output = torch.add(*fused(x, None, 0))
    torch.testing.assert_close(output, formula, rtol=0, atol=1e-5)
    output.backward(cotangent)
    torch.testing.assert_close(x.grad, expected[1], rtol=0, atol=1e-5)
    by_name = dict(zip(weights, expected[2:], strict=True))
    gate_and_value = torch.cat([by_name["linear_gate.weight"], by_name["linear_value.weight"]])
    torch.testing.assert_close(fused.linear_in.weight.grad, gate_and_value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [FusedGLU, TwoMatmulGLU])
def test_the_gated_units_have_one_bias(kind):
    names = [name for name, _ in build(kind).named_parameters() if name.endswith("bias")]
    assert names == ["linear_out.bias"]


@pytest.mark.parametrize("kind", [FusedGLU, TwoMatmulGLU])
def test_dropout_between_activation_and_output(kind):
    module = build(kind, dropout=0.1)
    module.train()
    with torch.no_grad():
        module.linear_out.weight.copy_(torch.eye(HIDDEN, INNER))  # shows the first units
    x, keys = torch.randn(500, 1, HIDDEN), torch.arange(500)
    dropped = module(x, keys, 7)[0]
    whole = module.eval()(x, keys, 7)[0]
    kept = keep_mask(keys, 7, INNER, 0.1)[:, :HIDDEN].unsqueeze(1)
    torch.testing.assert_close(dropped, torch.where(kept, whole / 0.9, 0.0))
    # 12,000 draws: five standard deviations are 0.0137.
    assert (~kept).float().mean().item() == pytest.approx(0.1, abs=0.0137)
