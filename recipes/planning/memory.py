"""What pretraining needs of a GPU's memory, before there is a GPU.

All of it is arithmetic, nothing is allocated. The states follow from the number of parameters and
from what DeepSpeed keeps. The activations are those that autograd keeps, per sequence by formula
(tests count them on the CPU) and times the micro-batch. Buffers that live for moments only are
covered by a reserve, so this is an estimate, and does not know better than a user who gives
--gpu-memory-gb.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.config import ModelConfig
from model.kernels.tiling import is_whole
from recipes.common.errors import UserError
from recipes.engine.batch_plan import BatchPlan
from recipes.engine.ds_config import precision
from recipes.engine.world import World

RESERVE = 3 * 10**9
"""Allowance for the CUDA context, NCCL's and cuBLAS's buffers, and fragmentation."""
UNSPLIT_SHARE = 0.22
"""Of the activations: what tensor parallelism leaves whole on every rank (residual stream, norms).
Counted on two layers of width 256 in bf16, tensor-parallel 1, 2 and 4."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each GPU."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    reserve: int = RESERVE

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {size / 1e9:.2f}" for name, size in asdict(self).items())
        return f"{parts} = {self.total / 1e9:.2f} GB per GPU (estimate)"


def estimate(
    config: ModelConfig,
    deepspeed: dict[str, Any],
    plan: BatchPlan,
    *,
    sequence_length: int,
    mask_probability: float,
    tensor_parallel: int = 1,
    attention: str = "sdpa",
    kernels: str = "torch",
    recompute: bool = False,
) -> MemoryEstimate:
    """For full sequences: padding of shorter ones is removed."""
    parameters, gradients, optimizer = state_bytes(
        config.parameters() // tensor_parallel, deepspeed, plan.data_parallel
    )
    dtype = torch.bfloat16 if precision(deepspeed) == "bf16" else torch.float32
    per_sequence = activation_bytes(
        *(config, dtype, sequence_length, mask_probability),
        attention=attention,
        kernels=kernels,
        recompute=recompute,
    )
    if kernels != "triton":
        # The loss reads fp32 logits, which autograd keeps; those in the model's precision live
        # beside them for a moment, and so do their gradients.
        masked = round(mask_probability * sequence_length)
        per_sequence += masked * config.padded_vocab_size * dtype.itemsize
    split = UNSPLIT_SHARE + (1 - UNSPLIT_SHARE) / tensor_parallel
    activations = int(plan.micro_batch * per_sequence * split)
    return MemoryEstimate(parameters, gradients, optimizer, activations)


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU that no other process holds; of a CPU, all that this machine may use."""
    if device.type == "cpu":
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
        for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
            with suppress(OSError, ValueError):  # "max": none
                limits.append(int((Path("/sys/fs/cgroup") / file).read_text()))
        return min(limits)
    free, total = torch.cuda.mem_get_info(device)
    # What this process has of it itself, context and NCCL's buffers, is in the reserve.
    return min(total, free + RESERVE)


def check_devices(
    needed: MemoryEstimate, micro_batch: int, world: World, capacity_gb: float | None
) -> None:
    """Compare with the GPUs of all ranks, the smallest of them. Call on every rank.

    Without GPUs, the ranks of a machine share its memory.

    Args:
        capacity_gb: what to take for each GPU's memory instead of asking it.

    Raises:
        UserError: as `check_fit`, and which rank it is, on all of them.
    """
    host = socket.gethostname()
    where = f"rank {world.rank} ({host}, {world.device})"
    everyone: list[Any] = [(device_bytes(world.device), where, host)] * world.world_size
    dist.all_gather_object(everyone, everyone[0])
    if world.device.type == "cpu":
        ranks = Counter(host for _, _, host in everyone)
        everyone = [(size // ranks[host], where, host) for size, where, host in everyone]
        needed = replace(needed, reserve=0)  # no CUDA context
    smallest, where, _ = min(everyone)
    try:
        check_fit(needed, micro_batch, smallest / 1e9 if capacity_gb is None else capacity_gb)
    except UserError as error:
        raise UserError(
            *(f"{where}: {fault}" for fault in error.faults),
            "if you know that it fits, say so: --gpu-memory-gb",
        ) from None


def check_fit(needed: MemoryEstimate, micro_batch: int, capacity_gb: float) -> None:
    """Compare with a GPU's memory, in 10^9 bytes.

    Raises:
        UserError: it does not fit, with the arithmetic and the largest micro-batch that does.
    """
    capacity = int(capacity_gb * 1e9)
    if needed.total <= capacity:
        return
    free = capacity - needed.total + needed.activations
    largest = max(0, free * micro_batch // needed.activations)
    way_out = (
        f"{largest} sequences fit, set train_micro_batch_size_per_gpu to at most that"
        if largest
        else "not even one sequence fits, use more GPUs, a higher ZeRO stage or --tensor-parallel"
    )
    raise UserError(
        f"micro-batches of {micro_batch} sequences do not fit into {capacity_gb:.4g} GB: {needed}; "
        f"{way_out}"
    )


def state_bytes(parameters: int, deepspeed: dict[str, Any], ranks: int) -> tuple[int, int, int]:
    """Bytes of parameters, gradients and optimizer, as DeepSpeed 0.19 keeps them."""
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    shard = -(-parameters // ranks) if stage else parameters
    if precision(deepspeed) == "fp32":
        # ZeRO updates a second copy of its shard of the weights.
        optimizer = (12 if stage else 8) * shard
        return 4 * parameters, 4 * (shard if stage == 2 else parameters), optimizer
    accumulation = deepspeed.get("data_types", {}).get("grad_accum_dtype")
    gradients = 2 * parameters
    if stage == 2:
        gradients = (4 if accumulation == "fp32" else 2) * shard
    elif accumulation == "fp32":
        gradients += 4 * parameters  # BF16_Optimizer accumulates whole gradients on every rank
    return 2 * parameters, gradients, 12 * shard


def activation_bytes(
    config: ModelConfig,
    dtype: torch.dtype,
    sequence_length: int,
    mask_probability: float,
    *,
    attention: str = "sdpa",
    kernels: str = "torch",
    recompute: bool = False,
) -> int:
    """Bytes per full sequence that one forward pass keeps for its backward pass.

    They are tensors of n rows or, behind the last layer's attention, of the k rows to predict.

    Args:
        attention: `flash` is taken for `sdpa`; kernels: `compile` for `torch`.
        recompute: of all layers but the last only the input is kept, and one of them at a time is
            there as a whole (while the last one, whose turn comes first, is not).
    """
    n, k = sequence_length, round(mask_probability * sequence_length)
    size, h = dtype.itemsize, config.hidden_size
    plain = kernels != "triton"
    dropped = 1 if plain and config.hidden_dropout else 0  # a stored mask has a byte per unit
    per_row = behind_attention_bytes(config, size, plain)
    layer = n * h * size + attention_bytes(config, size, n, attention) + n * per_row
    last = layer - (n - k) * per_row
    if attention == "triton" and not is_whole(n, config.head_dim):
        last += n * h * size  # the backward pass reads the output, before rows are picked
    embedding = n * h * (size + dropped)
    # The head's input, what GELU, norm and decoder read, and of the logits what the loss keeps.
    head = k * (4 * h * size + config.padded_vocab_size * (4 if plain else size))
    between = n * h * size if recompute else layer
    everything = embedding + (config.num_layers - 1) * between + last + head
    return everything + (max(0, layer - last) if recompute and config.num_layers > 1 else 0)


def attention_bytes(config: ModelConfig, size: int, length: int, attention: str) -> int:
    """Bytes that attention keeps of one sequence beside its input, the context left out.

    Args:
        size: bytes of a number in the model's precision.
    """
    n, h, heads = length, config.hidden_size, config.num_heads
    if attention == "triton":
        return 3 * n * h * size + (0 if is_whole(n, config.head_dim) else 4 * n * heads)
    if attention == "reference" or config.attention_dropout:
        # Queries, keys and values in fp32, and the weights; where some are dropped, these before
        # and after it, and which. So does SDPA on the CPU; what it keeps on a GPU may be less.
        squares = 3 if config.attention_dropout else 1
        return 4 * (3 * n * h + squares * heads * n * n)
    bias = heads * n * n if config.positions == "alibi" else n
    return (4 * n * h + bias) * size + 4 * n * heads


def behind_attention_bytes(config: ModelConfig, size: int, plain: bool) -> int:
    """Bytes that a layer keeps of each row behind its attention.

    Context, both sums before a norm, what the feed-forward reads, and what it computes: before and
    after GELU, or gate, value and their product. Two numbers per norm are fp32. The plain kernels
    keep GELU of the gate as well, and the masks of dropout.
    """
    h, f = config.hidden_size, config.ffn_size
    gated = config.feed_forward != "standard"
    values = 4 * h + (4 if gated and plain else 3 if gated else 2) * f
    masks = (h if config.hidden_dropout else 0) * (1 if gated else 2)
    masks += f if config.ffn_dropout else 0
    return values * size + 4 * 2 * 2 + (masks if plain else 0)
