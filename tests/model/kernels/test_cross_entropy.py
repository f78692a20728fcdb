"""The loss over the vocabulary against its formula, and gradients against differences."""

from __future__ import annotations

import math

import pytest
import torch
from exact import DTYPES, GPU, KERNELS, ROWS, WIDTH, compare, leaf

from model.kernels import operations as ops

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_device")]


@pytest.mark.parametrize("columns", [70, 30_528 if GPU else 9000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernels", KERNELS)
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

    compare(formula, operation, kernels, [leaf(ROWS, columns, dtype=dtype)])


def test_cross_entropy_of_extreme_logits():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    loss = ops.cross_entropy(logits * 1, torch.tensor([1, 2]), -100, "triton")
    loss.backward()
    assert loss.item() == pytest.approx(2e4 + math.log(3))
    torch.testing.assert_close(logits.grad[0], torch.tensor([1.0, -1.0, 0.0]))


def at_the_edge(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels as training may bring them, each an edge of the kernel's loop."""
    torch.manual_seed(0)
    rows, columns = {"one row": (1, 5000), "one column": (4, 1)}.get(case, (4, 5000))
    logits, labels = torch.randn(rows, columns) * 5, torch.arange(rows) * 1234 % columns
    if case == "rows that pad the vocabulary":
        logits[:, 4990:] = -torch.inf
    elif case == "whole blocks and groups at minus infinity":
        logits[:, :2060] = -torch.inf
        logits[:, 4096:] = -torch.inf
        labels = labels % 1000 + 2060
    elif case == "all rows ignored":
        labels[:] = -100
    return logits, labels


@pytest.mark.parametrize(
    "case",
    [
        *("one row", "one column", "all rows ignored"),
        *("rows that pad the vocabulary", "whole blocks and groups at minus infinity"),
    ],
)
def test_cross_entropy_at_the_edge(case):
    logits, labels = at_the_edge(case)
    exact = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, labels, reduction="sum")
    expected.backward()
    logits.requires_grad_()
    loss = ops.cross_entropy(logits * 1, labels, -100, "triton")
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's, of the interpreter
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_logit_that_is_no_number_makes_no_number_of_the_loss(wrong):
    """By which a step is skipped: it must not be lost in a maximum."""
    logits = torch.zeros(2, 5000)
    logits[1, 4097] = wrong
    assert ops.cross_entropy(logits, torch.tensor([1, 2]), -100, "triton").isnan()


def test_cross_entropy_gives_its_gradient_once():
    logits = torch.randn(3, 5, requires_grad=True)
    loss = ops.cross_entropy(logits * 1, torch.tensor([1, 2, 3]), -100, "triton")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="the logits are gone"):
        loss.backward()


def test_gradients_against_differences():
    torch.manual_seed(0)

    # gradcheck goes through a graph more than once, which this one does not allow.
    def loss(logits):
        return ops.cross_entropy(logits * 1, torch.tensor([1, -100, 4]), -100, "triton")

    logits, step = leaf(3, 5), 1e-6
    loss(logits).backward()
    with torch.no_grad():
        for place in torch.eye(logits.numel(), dtype=torch.float64).view(-1, 3, 5):
            slope = (loss(logits + step * place) - loss(logits - step * place)) / (2 * step)
            assert (logits.grad * place).sum().item() == pytest.approx(slope.item(), abs=1e-8)


def test_outputs_are_written_whole(poisoned_memory):
    logits = leaf(ROWS, WIDTH)
    labels = torch.zeros(ROWS, dtype=torch.long)
    loss = ops.cross_entropy(logits * 1, labels, -100, "triton")
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
