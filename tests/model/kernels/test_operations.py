"""Every kernel against fp64 formulas written out here, and its gradients against differences."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from model.kernels import attention_tiled as attention_kernel
from model.kernels import operations as ops
from model.kernels import residual_norm as triton_kernels
from model.kernels.hashed_dropout import keep_mask

pytestmark = pytest.mark.usefixtures("on_device")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
ROWS, WIDTH = 11, 48
DTYPES = list(TOLERANCE)


def row_keys() -> Tensor:
    return torch.arange(ROWS) * 2**40


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (found.double() - expected).norm() / expected.norm()
    assert torch.isfinite(found).all()
    assert error < TOLERANCE[dtype], float(error)


def compare(formula, operation, inputs: list[Tensor], outputs: int = 1) -> None:
    """Values and gradients of `operation` against those of `formula` in fp64."""
    dtype = inputs[0].dtype
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected, found = formula(*exact), operation(*inputs)
    expected, found = (x if isinstance(x, tuple) else (x,) for x in (expected, found))
    assert len(found) == outputs
    weights = [torch.randn(x.shape, dtype=torch.float64).to(dtype) for x in found]
    sum((x * w.double()).sum() for x, w in zip(expected, weights, strict=True)).backward()
    sum((x * w).sum() for x, w in zip(found, weights, strict=True)).backward()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype or one.dtype == torch.float32
        close(one, other, dtype)
    for x, y in zip(inputs, exact, strict=True):
        assert x.grad.dtype == dtype
        close(x.grad, y.grad, dtype)


def dropped(x: Tensor, probability: float, site: int, first: int = 0) -> Tensor:
    if not probability:
        return x
    kept = keep_mask(row_keys(), site, x.shape[-1], probability, first).view(x.shape)
    return torch.where(kept, x / (1 - probability), 0.0)


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
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_residual_norm(kernels, probability, dtype):
    torch.manual_seed(0)
    x, residual = leaf(ROWS, 1, WIDTH, dtype=dtype), leaf(ROWS, 1, WIDTH, dtype=dtype)
    inputs = [x, leaf(WIDTH, dtype=dtype), residual, *(leaf(WIDTH, dtype=dtype) for _ in "wb")]
    formula, operation = norm_formula(probability), residual_norm(kernels, probability)
    compare(formula, operation, inputs, outputs=2)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("probability", [0.0, 0.4])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_gated_gelu(kernels, apart, probability, dtype):
    torch.manual_seed(0)

    def formula(gate_and_value):
        gate, value = gate_and_value.chunk(2, dim=-1)
        inner = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * value
        return dropped(inner, probability, 6, first=100)

    def operation(gate_and_value):
        given = gate_and_value.chunk(2, dim=-1) if apart else gate_and_value
        return ops.gated_gelu(given, probability, row_keys(), 6, 100, kernels)

    compare(formula, operation, [leaf(ROWS, 1, 2 * WIDTH, dtype=dtype)])


def test_layers_share_compiled_graphs(monkeypatch):
    """A graph for each site would soon be more than a function may have, which is an error."""
    counter = CompileCounter()
    monkeypatch.setattr(ops.torch, "compile", functools.partial(torch.compile, backend=counter))
    ops._compiled.cache_clear()
    x, wide, vector = torch.ones(ROWS, 1, WIDTH), torch.ones(ROWS, 1, 2 * WIDTH), torch.ones(WIDTH)
    norm = SimpleNamespace(weight=vector, bias=vector, eps=1e-12)
    for site in range(12):
        found = [
            (
                ops.residual_norm(x, vector, x, norm, 0.4, row_keys(), site, kernels)[0],
                ops.gated_gelu(wide, 0.4, row_keys(), site, 0, kernels),
            )
            for kernels in ("compile", "torch")
        ]
        torch.testing.assert_close(*found)
    assert counter.frame_count == 2
    ops._compiled.cache_clear()


def test_gated_gelu_wider_than_one_tile():
    torch.manual_seed(0)
    wide = leaf(ROWS, 1, 2 * 1300, dtype=torch.float32)
    plain, fused = (ops.gated_gelu(wide, 0.4, row_keys(), 6, 0, k) for k in ("torch", "triton"))
    torch.testing.assert_close(fused, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_dropout(kernels, dtype):
    compare(
        lambda x: dropped(x, 0.4, 0),
        lambda x: ops.dropout(x, 0.4, row_keys(), 0, kernels),
        [leaf(ROWS, WIDTH, dtype=dtype)],
    )
    x = leaf(ROWS, WIDTH)
    assert ops.dropout(x, 0.0, None, 0, kernels) is x


@pytest.mark.parametrize("columns", [70, 9000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_cross_entropy(kernels, dtype, columns):
    torch.manual_seed(0)
    labels = torch.randint(columns, (ROWS,))
    labels[[2, ROWS - 1]] = -100

    def formula(logits):
        shifted = logits - logits.amax(-1, keepdim=True)
        log_weights = shifted - shifted.exp().sum(-1, keepdim=True).log()
        counted = labels != -100
        return -log_weights[counted, labels[counted]].sum()

    def operation(logits):
        return ops.cross_entropy(logits * 1, labels, -100, kernels)  # a copy to give away

    compare(formula, operation, [leaf(ROWS, columns, dtype=dtype)])


def test_cross_entropy_of_extreme_logits():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    loss = ops.cross_entropy(logits * 1, torch.tensor([1, 2]), -100, "triton")
    loss.backward()
    assert loss.item() == pytest.approx(2e4 + math.log(3))
    torch.testing.assert_close(logits.grad[0], torch.tensor([1.0, -1.0, 0.0]))


def test_cross_entropy_gives_its_gradient_once():
    logits = torch.randn(3, 5, requires_grad=True)
    loss = ops.cross_entropy(logits * 1, torch.tensor([1, 2, 3]), -100, "triton")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="the logits are gone"):
        loss.backward()


def test_gradients_of_the_kernels_against_differences():
    torch.manual_seed(0)
    rows, keys = 3, row_keys()[:3]
    norm_inputs = (leaf(rows, 1, 5), leaf(5), leaf(rows, 1, 5), leaf(5), leaf(5))

    def norm(x, bias, residual, weight, norm_bias):
        holder = SimpleNamespace(weight=weight, bias=norm_bias, eps=1e-12)
        return ops.residual_norm(x, bias, residual, holder, 0.4, keys, 5, "triton")

    assert torch.autograd.gradcheck(norm, norm_inputs)

    def glu(both):
        return ops.gated_gelu(both, 0.4, keys, 6, 0, "triton")

    assert torch.autograd.gradcheck(glu, (leaf(rows, 1, 6),))

    # gradcheck goes through a graph more than once, which this one does not allow.
    def loss(logits):
        return ops.cross_entropy(logits * 1, torch.tensor([1, -100, 4]), -100, "triton")

    logits, step = leaf(rows, 5), 1e-6
    loss(logits).backward()
    with torch.no_grad():
        for place in torch.eye(logits.numel(), dtype=torch.float64).view(-1, rows, 5):
            slope = (loss(logits + step * place) - loss(logits - step * place)) / (2 * step)
            assert (logits.grad * place).sum().item() == pytest.approx(slope.item(), abs=1e-8)


def test_outputs_are_written_whole(poisoned_memory):
    inputs = [leaf(ROWS, 1, WIDTH), leaf(WIDTH), leaf(ROWS, 1, WIDTH), leaf(WIDTH), leaf(WIDTH)]
    y, _ = residual_norm("triton", 0.4)(*inputs)
    both = torch.cat([y, y], -1)
    inner = ops.dropout(
        ops.gated_gelu(both, 0.4, row_keys(), 6, 0, "triton"), 0.4, row_keys(), 0, "triton"
    )
    labels = torch.zeros(ROWS, dtype=torch.long)
    loss = ops.cross_entropy(inner.squeeze(1), labels, -100, "triton")
    loss.backward()
    assert loss.isfinite()
    for x in inputs:
        assert x.grad.isfinite().all()


def test_what_cannot_run_is_named(monkeypatch):
    with pytest.raises(ValueError, match="unknown kernels 'fast'; known: torch, compile, triton"):
        ops.check_kernels("fast", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ops.check_kernels("triton", "cpu")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="'triton': they need a GPU .*; use 'torch' or 'compile'"):
        ops.check_kernels("triton", "cpu")
    assert ops.best_kernels("cpu") == "torch" and ops.best_kernels("cuda") == "triton"


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


# Shared memory that a block may have (CUDA programming guide, compute capabilities).
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
# Registers of a thread that go to memory and back, in bytes: some do in the backward pass of
# attention, which is memory's to wait for anyway.
SPILLED_BYTES = 160


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_kernels_compile_for_gpus(capability):
    """The interpreter takes more than the compiler does. No A100 or H100 need be here."""
    script = Path(__file__).parents[1] / "compile_kernels.py"
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2])}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(script), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = list(map(json.loads, done.stdout.splitlines()))
    kernels = {
        name
        for module in (attention_kernel, triton_kernels)
        for name, value in vars(module).items()
        if name.startswith(("_forward_", "_backward_", "_dropout"))
        or name.endswith(("_forward", "_backward"))
        if isinstance(value, triton.runtime.KernelInterface)
    }
    assert {facts["name"] for facts in found} == kernels and len(kernels) == 12
    for facts in found:
        assert facts["shared_bytes"] <= SHARED_BYTES[capability], facts
        assert facts["spilled_bytes"] <= SPILLED_BYTES, facts
        assert facts["tensor_cores"] == (facts["name"] in vars(attention_kernel)), facts
