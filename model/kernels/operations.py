"""The operations around the matmuls, each as one function with a choice of kernels.

At these sizes the time that is not spent in matmuls is spent in moving activations, so what counts
is how often a tensor is read and written. Worth a kernel of their own are

    residual_norm    LayerNorm(residual + dropout(x + bias)), in places without the dropout
    gated_gelu       dropout(gelu(gate) * value)
    cross_entropy    log-softmax over the vocabulary and the picked label
    dropout          by itself, behind the embedding

`torch`      plain PyTorch, one pass over memory for each operator; what the others must equal.
`compile`    the same functions through torch.compile.
`triton`     `kernels.residual_norm`: one pass forward and one backward, dropout masks computed and
             not stored, the loss without fp32 copies of the logits.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import hashed_dropout as plain

KERNELS = ("torch", "compile", "triton")

# Multiplications and additions of one expression are fused, as they always were: Triton announces
# another default, which would change the rounding, and so the bits of a resumed run.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


def best_kernels(device_type: str) -> str:
    """The fastest ones that need no compiler here."""
    return "triton" if device_type == "cuda" else "torch"


def check_kernels(kernels: str, device_type: str) -> None:
    """Raises ValueError for kernels that are unknown or cannot run on a device of this type."""
    if kernels not in KERNELS:
        raise ValueError(f"unknown kernels {kernels!r}; known: {', '.join(KERNELS)}")
    if kernels == "triton" and (reason := why_no_triton(device_type)):
        raise ValueError(f"kernels 'triton': {reason}; use 'torch' or 'compile'")


@functools.cache
def installed(package: str) -> bool:
    """Whether `package` can be imported; looked up once, since attention asks in every layer."""
    return find_spec(package) is not None


def why_no_triton(device_type: str) -> str | None:
    """What keeps Triton kernels from running on a device of this type; None if nothing does."""
    if not installed("triton"):
        return "the package triton is not installed"
    if device_type == "cuda":
        return None
    import triton

    if triton.knobs.runtime.interpret:
        return None
    return "they need a GPU (or TRITON_INTERPRET=1, which computes them slowly on the CPU)"


def residual_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    norm: torch.nn.LayerNorm,
    probability: float,
    keys: Tensor | None,
    site: int,
    kernels: str,
) -> tuple[Tensor, Tensor]:
    """LayerNorm(residual + dropout(x + bias)), rounded to the dtype of `x` before the norm.

    Args:
        x, residual: [T, 1, N], contiguous; bias: [N].
        probability: of dropout; 0 outside training.
        keys: int64 [T], may be None without dropout; site: see `hashed_dropout`.

    Returns:
        The same values twice, one for the next matmul and one for the next residual sum: a kernel
        that is handed both gradients apart needs no pass over memory to add them.
    """
    if kernels == "triton":
        from model.kernels.residual_norm import ResidualNorm

        return ResidualNorm.apply(
            x, bias, residual, norm.weight, norm.bias, norm.eps, probability, keys, site
        )
    arguments = x, bias, residual, norm.weight, norm.bias, norm.eps, probability, keys
    if kernels == "compile":
        y = _compiled(_residual_norm)(*arguments, torch.tensor(site))
    else:
        y = _residual_norm(*arguments, site)
    return y, y


def _residual_norm(x, bias, residual, weight, norm_bias, eps, probability, keys, site) -> Tensor:
    x = x + bias
    if probability:
        x = plain.dropout(x, probability, keys, site)
    return F.layer_norm(residual + x, weight.shape, weight, norm_bias, eps)


def gated_gelu(
    gate_and_value: Tensor | tuple[Tensor, Tensor],
    probability: float,
    keys: Tensor | None,
    site: int,
    first_column: int,
    kernels: str,
) -> Tensor:
    """dropout(gelu(gate) * value), GELU in its erf form.

    Args:
        gate_and_value: [T, 1, 2F], gate first; or both apart, [T, 1, F] each.
        Others as in `hashed_dropout.dropout`; `keys` may be None without dropout.

    Returns:
        [T, 1, F].
    """
    if kernels == "triton":
        from model.kernels.residual_norm import GatedGelu, GatedGeluApart

        if isinstance(gate_and_value, Tensor):
            return GatedGelu.apply(gate_and_value, probability, keys, site, first_column)
        return GatedGeluApart.apply(*gate_and_value, probability, keys, site, first_column)
    if isinstance(gate_and_value, Tensor):
        gate, value = gate_and_value.chunk(2, dim=-1)
    else:
        gate, value = gate_and_value
    if kernels == "compile":
        function = _compiled(_gated_gelu)
        return function(gate, value, probability, keys, torch.tensor(site), first_column)
    return _gated_gelu(gate, value, probability, keys, site, first_column)


def _gated_gelu(gate, value, probability, keys, site, first_column) -> Tensor:
    inner = F.gelu(gate) * value
    if probability:
        inner = plain.dropout(inner, probability, keys, site, first_column)
    return inner


def dropout(x: Tensor, probability: float, keys: Tensor | None, site: int, kernels: str) -> Tensor:
    """`hashed_dropout.dropout`; `keys` may be None where the probability is 0."""
    if not probability:
        return x
    assert keys is not None
    if kernels == "triton":
        from model.kernels.residual_norm import Dropout

        return Dropout.apply(x, probability, keys, site)
    function = _compiled(plain.dropout) if kernels == "compile" else plain.dropout
    return function(x, probability, keys, site)


def cross_entropy(logits: Tensor, labels: Tensor, ignored: int, kernels: str) -> Tensor:
    """Sum over the rows of logsumexp(row) - row[label], fp32 scalar, in nats.

    Args:
        logits: [K, V]. The Triton kernel puts the gradient into this very memory: give it away.
        labels: int64 [K]; `ignored` on the rows that do not count.
    """
    if kernels == "triton":
        from model.kernels.residual_norm import CrossEntropy

        return CrossEntropy.apply(logits, labels, ignored).sum()
    function = _compiled(_cross_entropy) if kernels == "compile" else _cross_entropy
    return function(logits, labels, ignored)


def _cross_entropy(logits, labels, ignored) -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=ignored, reduction="sum")


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # Of each function a graph for each shape, of which buckets leave a handful (T, K and the
    # evaluation's); the default limit of 8 is an error in the middle of a run. The layers share
    # their graphs: a site is a tensor to them, because a number would be part of the graph.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    # dynamic=False: a graph with symbolic shapes is slower.
    return torch.compile(function, fullgraph=True, dynamic=False)
