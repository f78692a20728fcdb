"""The parts of Megatron-core that the model is built from, imported in one place.

Importing them warns, on every rank, that Transformer Engine and Apex are missing. Nothing here uses
either, so these warnings are held back while the import lasts, and no others. Megatron also hands
small functions to `torch.compile` while it is imported, which imports the compiler: 1.5 s of every
process, for functions that this model calls nowhere. They are compiled by their first call instead.

Megatron-core has no `py.typed`, so type checkers take all of this for `Any`.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

_compile = torch.compile


def _compile_when_called(
    function: Callable[..., Any] | None = None, **options: Any
) -> Callable[..., Any]:
    """Return `function` as a stand-in that hands it to `torch.compile` when it is first called.

    Without a function, return what does so with one: `@torch.compile(dynamic=True)`.
    """
    if function is None:
        return functools.partial(_compile_when_called, **options)
    compiled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal compiled
        if torch.compiler.is_compiling():  # inside another function's graph: part of it
            return function(*arguments, **named)
        if compiled is None:
            compiled = _compile(function, **options)
        return compiled(*arguments, **named)

    return call


@contextlib.contextmanager
def _compiling_when_called() -> Iterator[None]:
    torch.compile = _compile_when_called  # type: ignore[assignment]  # torch's is overloaded
    try:
        yield
    finally:
        torch.compile = _compile


with warnings.catch_warnings(), _compiling_when_called():
    warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import (
        ColumnParallelLinear,
        RowParallelLinear,
        VocabParallelEmbedding,
        copy_to_tensor_model_parallel_region,
        get_cuda_rng_tracker,
        model_parallel_cuda_manual_seed,
        set_tensor_model_parallel_attributes,
        vocab_parallel_cross_entropy,
    )
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.spec_utils import ModuleSpec, build_module
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import (
        TransformerLayer,
        TransformerLayerSubmodules,
    )

__all__ = [
    "MLP",
    "AttnMaskType",
    "ColumnParallelLinear",
    "MLPSubmodules",
    "ModuleSpec",
    "RowParallelLinear",
    "SelfAttention",
    "SelfAttentionSubmodules",
    "TransformerConfig",
    "TransformerLayer",
    "TransformerLayerSubmodules",
    "VocabParallelEmbedding",
    "build_module",
    "copy_to_tensor_model_parallel_region",
    "get_cuda_rng_tracker",
    "model_parallel_cuda_manual_seed",
    "parallel_state",
    "set_tensor_model_parallel_attributes",
    "vocab_parallel_cross_entropy",
]
