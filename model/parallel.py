"""Process groups, linears that may be split over them, and the random numbers of attention dropout.

Megatron-core's layers look up their tensor-parallel group when they are built, so even a single
process needs one. `initialize_parallel` makes what is missing; it is the only place that does. A
model that is built before anybody called it calls it itself where there is one process.
"""

from __future__ import annotations

import contextlib
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .megatron import (
    ColumnParallelLinear,
    RowParallelLinear,
    get_cuda_rng_tracker,
    model_parallel_cuda_manual_seed,
    parallel_state,
)


def initialize_parallel(tensor_parallel: int = 1) -> None:
    """Make the model-parallel groups; without `torch.distributed`, a world of one process first.

    Raises:
        ValueError: the world size is not a multiple of `tensor_parallel`, or groups of another
            size exist already.
    """
    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    if parallel_state.model_parallel_is_initialized():
        size = parallel_state.get_tensor_model_parallel_world_size()
        if size != tensor_parallel:
            raise ValueError(
                f"tensor-parallel groups of {size} exist already, not {tensor_parallel}"
            )
        return
    world = dist.get_world_size()
    if world % tensor_parallel:
        raise ValueError(
            f"tensor-parallel size {tensor_parallel} does not divide the world size {world}"
        )
    # Megatron's second set of groups, on gloo, is for its own optimizer and checkpoints.
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_parallel, create_gloo_process_groups=False
    )


def ensure_parallel() -> None:
    """Make a world of one process where nothing else was set up.

    Raises:
        RuntimeError: this is one of several processes. They have to say how they share the model.
    """
    if parallel_state.model_parallel_is_initialized():
        return
    world = dist.get_world_size() if dist.is_initialized() else os.environ.get("WORLD_SIZE", "1")
    if int(world) > 1:
        raise RuntimeError(
            f"a model is to be built by {world} processes, and none has said how they share it: "
            "call torch.distributed.init_process_group and "
            "model.parallel.initialize_parallel(tensor_parallel) on each of them first"
        )
    initialize_parallel()


def linear(
    module: ColumnParallelLinear | RowParallelLinear, x: Tensor, *, bias_gradient: bool = True
) -> Tensor:
    """Apply one of Megatron's linears; the bias is left out where the module says so.

    Without `bias_gradient` the bias is added, and its gradient computed by another operation; only
    where the weight is not split.

    Where the weight is not split there is nothing to communicate, and torch's own linear adds the
    bias inside the matmul; Megatron's autograd function adds it in a pass over the output.
    """
    if parallel_size() > 1:
        output: Tensor = module(x)[0]
        return output
    bias = None if module.skip_bias_add else module.bias
    if bias is not None and not bias_gradient:
        bias = bias.detach()
    return F.linear(x, module.weight, bias)


def parallel_size() -> int:
    """Count the ranks that share one copy of the model."""
    size: int = parallel_state.get_tensor_model_parallel_world_size()
    return size


def parallel_rank() -> int:
    """Return this rank's place among those that share its copy of the model."""
    rank: int = parallel_state.get_tensor_model_parallel_rank()
    return rank


def own_dropout(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Draw, inside, random numbers for heads that only this tensor-parallel rank holds.

    All other dropout is a function of place (`hashed_dropout`).
    """
    if parallel_state.get_tensor_model_parallel_world_size() > 1 and device.type == "cuda":
        fork: contextlib.AbstractContextManager[None] = get_cuda_rng_tracker().fork()
        return fork
    return contextlib.nullcontext()


def seed_dropout(seed: int, step: int, micro_step: int, data_parallel_rank: int) -> None:
    """Seed the dropout of attention weights (the BERT baselines') for one micro-batch.

    A function of where the run stands instead of a state to save: a resumed run draws what the
    uninterrupted one would have drawn.
    """
    value = _mix(seed)
    for word in (step, micro_step, data_parallel_rank):
        value = _mix(value ^ _mix(word + 0x9E3779B97F4A7C15))
    if torch.cuda.is_available() and parallel_state.get_tensor_model_parallel_world_size() > 1:
        # Also seeds the tracker from which weights of a rank's own heads are dropped.
        model_parallel_cuda_manual_seed(value & 0x7FFFFFFF)
    else:
        # Not torch.manual_seed: it seeds every device there is, and keeps a stack trace of the call
        # where CUDA is not in use.
        torch.default_generator.manual_seed(value & 0x7FFFFFFFFFFFFFFF)
        if torch.cuda.is_available():
            torch.cuda.manual_seed(value & 0x7FFFFFFFFFFFFFFF)


def _mix(x: int) -> int:
    """Apply splitmix64's finalizer: neighbouring inputs give unrelated outputs."""
    x &= 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)
