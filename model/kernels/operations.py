"""The operations around the matmuls, each as one function with a choice of kernels.

The plain form stands here, in PyTorch, and is what the kernels must equal. What each choice means
stands in `model.kernels`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import hashed_dropout as plain


def embedding(table: Tensor, ids: Tensor, real: Tensor, kernels: str) -> Tensor:
    """Look up rows of `table` [V, N]: int64 [T] to [T, N].

    Args:
        real: integer scalar; the rows behind so many belong to no sequence, and have no part in the
            gradient of the table.
    """
    if kernels == "triton":
        from .embedding import Embedding

        rows: Tensor = Embedding.apply(table, ids, real)
        return rows
    return F.embedding(ids, table)


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
    """Compute LayerNorm(residual + dropout(x + bias)), the sum rounded to the dtype of `x`.

    Args:
        x, residual: [T, 1, N], contiguous; bias: [N].
        probability: of dropout; 0 outside training.
        keys: int64 [T], may be None without dropout; site: see `hashed_dropout`.

    Returns:
        The same values twice, one for the next matmul and one for the next residual sum: a kernel
        that is handed both gradients apart needs no pass over memory to add them.
    """
    if kernels == "triton":
        from .residual_norm import ResidualNorm

        twice: tuple[Tensor, Tensor] = ResidualNorm.apply(
            x, bias, residual, norm.weight, norm.bias, norm.eps, probability, keys, site
        )
        return twice
    arguments = x, bias, residual, norm.weight, norm.bias, norm.eps, probability, keys
    if kernels == "compile":
        y = _compiled(_residual_norm)(*arguments, torch.tensor(site))
    else:
        y = _residual_norm(*arguments, site)
    return y, y


def _residual_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    probability: float,
    keys: Tensor | None,
    site: int | Tensor,
) -> Tensor:
    x = x + bias
    if probability:
        assert keys is not None
        x = plain.dropout(x, probability, keys, site)
    return F.layer_norm(residual + x, weight.shape, weight, norm_bias, eps)


def norm_dropout(
    x: Tensor,
    bias: Tensor | None,
    norm: torch.nn.LayerNorm,
    probability: float,
    keys: Tensor | None,
    site: int,
    kernels: str,
) -> Tensor:
    """Compute dropout(LayerNorm(x + bias)), the sum rounded to the dtype of `x`.

    Args:
        x: [T, N]; bias: [N], or None for none.
        Others as in `residual_norm`.
    """
    if kernels == "triton":
        from .norm_dropout import NormDropout

        y: Tensor = NormDropout.apply(
            x, bias, norm.weight, norm.bias, norm.eps, probability, keys, site
        )
        return y
    x = x if bias is None else x + bias
    x = F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
    return dropout(x, probability, keys, site, kernels)


def gated_gelu(
    gate_and_value: Tensor | tuple[Tensor, Tensor],
    probability: float,
    keys: Tensor | None,
    site: int,
    first_column: int,
    kernels: str,
) -> Tensor:
    """Compute dropout(gelu(gate) * value), with GELU in its erf form.

    Args:
        gate_and_value: [T, 1, 2F], gate first; or both apart, [T, 1, F] each.
        Others as in `hashed_dropout.dropout`; `keys` may be None without dropout.

    Returns:
        [T, 1, F].
    """
    if kernels == "triton":
        from .gated_gelu import GatedGelu, GatedGeluApart

        if isinstance(gate_and_value, Tensor):
            inner: Tensor = GatedGelu.apply(gate_and_value, probability, keys, site, first_column)
        else:
            inner = GatedGeluApart.apply(*gate_and_value, probability, keys, site, first_column)
        return inner
    if isinstance(gate_and_value, Tensor):
        gate, value = gate_and_value.chunk(2, dim=-1)  # [T, 1, 2F] to [T, 1, F] each
    else:
        gate, value = gate_and_value
    if kernels == "compile":
        function = _compiled(_gated_gelu)
        return function(gate, value, probability, keys, torch.tensor(site), first_column)
    return _gated_gelu(gate, value, probability, keys, site, first_column)


def _gated_gelu(
    gate: Tensor,
    value: Tensor,
    probability: float,
    keys: Tensor | None,
    site: int | Tensor,
    first_column: int,
) -> Tensor:
    inner = F.gelu(gate) * value
    if probability:
        assert keys is not None
        inner = plain.dropout(inner, probability, keys, site, first_column)
    return inner


def dropout(x: Tensor, probability: float, keys: Tensor | None, site: int, kernels: str) -> Tensor:
    """Compute `hashed_dropout.dropout`; `keys` may be None where the probability is 0."""
    if not probability:
        return x
    assert keys is not None
    if kernels == "triton":
        from .dropout import Dropout

        y: Tensor = Dropout.apply(x, probability, keys, site)
        return y
    function = _compiled(plain.dropout) if kernels == "compile" else plain.dropout
    return function(x, probability, keys, site)


def cross_entropy(logits: Tensor, labels: Tensor, ignored: int, kernels: str) -> Tensor:
    """Sum logsumexp(row) - row[label] over the rows: fp32 scalar, in nats.

    Args:
        logits: [K, V]. The Triton kernel puts the gradient into this very memory: give it away.
        labels: int64 [K]; `ignored` on the rows that do not count.
    """
    if kernels == "triton":
        from .cross_entropy import CrossEntropy

        losses: Tensor = CrossEntropy.apply(logits, labels, ignored)  # [K]
        return losses.sum()
    function = _compiled(_cross_entropy) if kernels == "compile" else _cross_entropy
    return function(logits, labels, ignored)


def _cross_entropy(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=ignored, reduction="sum")


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # Of each function a graph for each shape, of which buckets leave a handful (T, K and the
    # evaluation's); the default limit of 8 is an error in the middle of a run. The layers share
    # their graphs: a site is a tensor to them, because a number would be part of the graph.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    # dynamic=False: a graph with symbolic shapes is slower.
    return torch.compile(function, fullgraph=True, dynamic=False)
