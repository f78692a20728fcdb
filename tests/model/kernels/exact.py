"""What the kernels are compared with: formulas in fp64, within the rounding of each precision.

On a GPU the sizes are those of training, and torch.compile's kernels are compared as well: its
compiler takes a minute on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels.hashed_dropout import keep_mask

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
GPU = torch.cuda.is_available()
TIMES_OF_OTHERS = 5 if GPU else 1
"""Times the tolerance for kernels that are not ours, which may round at every step on a GPU."""
ROWS, WIDTH = (706, 768) if GPU else (11, 48)
DTYPES = list(TOLERANCE)
KERNELS = ["torch", "triton", "compile"] if GPU else ["torch", "triton"]


def row_keys() -> Tensor:
    return torch.arange(ROWS) * 2**40


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (found.double() - expected).norm() / expected.norm()
    assert torch.isfinite(found).all()
    assert error < tolerance, float(error)


def compare(formula, operation, kernels: str, inputs: list[Tensor], outputs: int = 1) -> None:
    """Compare values and gradients of `operation` with those of `formula` in fp64."""
    dtype = inputs[0].dtype
    tolerance = TOLERANCE[dtype] * (1 if kernels == "triton" else TIMES_OF_OTHERS)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected, found = formula(*exact), operation(*inputs)
    expected, found = (x if isinstance(x, tuple) else (x,) for x in (expected, found))
    assert len(found) == outputs
    weights = [torch.randn(x.shape, dtype=torch.float64).to(dtype) for x in found]
    sum((x * w.double()).sum() for x, w in zip(expected, weights, strict=True)).backward()
    sum((x * w).sum() for x, w in zip(found, weights, strict=True)).backward()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype or one.dtype == torch.float32
        close(one, other, tolerance)
    for x, y in zip(inputs, exact, strict=True):
        assert x.grad.dtype == dtype
        close(x.grad, y.grad, tolerance)


def dropped(x: Tensor, probability: float, site: int, first: int = 0) -> Tensor:
    if not probability:
        return x
    kept = keep_mask(row_keys(), site, x.shape[-1], probability, first).view(x.shape)
    return torch.where(kept, x / (1 - probability), 0.0)
