"""How much memory a GPU needs for pretraining, by arithmetic: no GPU is needed to ask.

A GPU holds two kinds of things. States (parameters, gradients, the optimizer's copies) depend on
the number of parameters and on the DeepSpeed JSON. Activations are the tensors that the forward
pass keeps for the backward pass; a formula gives their bytes per sequence, and tests count the same
bytes on the CPU. Buffers that live only for a moment are covered by a fixed reserve. The sum is
therefore an estimate, and a user who knows better gives --gpu-memory-gb.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from model.config import ModelConfig
from model.kernels.tiling import is_whole
from recipes.common.errors import UserError
from recipes.common.json_content import Json
from recipes.engine.batch_plan import BatchPlan
from recipes.engine.ds_config import precision
from recipes.engine.world import World, told_by_all

RESERVE = 3 * 10**9
"""Bytes set aside for the CUDA context, buffers of NCCL and cuBLAS, and fragmentation."""
UNSPLIT_SHARE = 0.22
"""Share of the activations that every rank of a tensor-parallel group keeps whole: the residual
stream and the norms. It was counted on two layers of width 256 in bf16, with 1, 2 and 4 ranks."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that each GPU needs, by what they are for."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    reserve: int = RESERVE

    @property
    def total(self) -> int:
        """All bytes together."""
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {size / 1e9:.2f}" for name, size in asdict(self).items())
        return f"{parts} = {self.total / 1e9:.2f} GB per GPU (estimate)"


def estimate(
    config: ModelConfig,
    deepspeed: Json,
    plan: BatchPlan,
    *,
    sequence_length: int,
    mask_probability: float,
    tensor_parallel: int = 1,
    attention: str = "sdpa",
    kernels: str = "torch",
    recompute: bool = False,
) -> MemoryEstimate:
    """Estimate the memory for micro-batches of full sequences.

    Shorter sequences need less, because their padding is removed.
    """
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
        # Autograd keeps the fp32 logits that the loss reads. The logits in the model's precision,
        # and later their gradients, lie beside them for a moment.
        masked = round(mask_probability * sequence_length)
        per_sequence += masked * config.padded_vocab_size * dtype.itemsize
    split = UNSPLIT_SHARE + (1 - UNSPLIT_SHARE) / tensor_parallel
    activations = int(plan.micro_batch * per_sequence * split)
    return MemoryEstimate(parameters, gradients, optimizer, activations)


def device_bytes(device: torch.device) -> int:
    """Return the memory that this process may use: what no other process holds of a GPU, or on
    the CPU what this machine or container has."""
    if device.type == "cpu":
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
        for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
            with suppress(OSError, ValueError):  # "max" stands for no limit
                limits.append(int((Path("/sys/fs/cgroup") / file).read_text()))
        return min(limits)
    free, total = torch.cuda.mem_get_info(device)
    # This process itself holds its CUDA context and NCCL's buffers, which the reserve counts.
    return min(total, free + RESERVE)


def check_devices(
    needed: MemoryEstimate, micro_batch: int, world: World, capacity_gb: float | None
) -> None:
    """Compare the need with the smallest memory of all ranks. Call it on every rank.

    Without GPUs, the ranks of one machine share its memory.

    Args:
        capacity_gb: each GPU's memory, if it is not to be asked for.

    Raises:
        UserError: on all ranks, as `check_fit`, with the rank that has too little.
    """
    host = socket.gethostname()
    where = f"rank {world.rank} ({host}, {world.device})"
    everyone = told_by_all((device_bytes(world.device), where, host), world)
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
    """Compare the need with a GPU's memory, in 10^9 bytes.

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


def state_bytes(parameters: int, deepspeed: Json, ranks: int) -> tuple[int, int, int]:
    """Return the bytes of parameters, gradients and optimizer that DeepSpeed 0.19 keeps on a rank.

    Args:
        ranks: how many share what the ZeRO stage splits: from stage 1 on the optimizer's states, at
            stage 2 the gradients as well.
    """
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    shard = -(-parameters // ranks) if stage else parameters
    if precision(deepspeed) == "fp32":
        # ZeRO updates a second copy of its shard of the weights.
        optimizer = (12 if stage else 8) * shard
        return 4 * parameters, 4 * (shard if stage == 2 else parameters), optimizer
    accumulation = deepspeed.get("data_types", {}).get("grad_accum_dtype")
    # Added to the fp32 sum as soon as it is there, a gradient in bf16 does not stay.
    immediate = deepspeed["bf16"].get("immediate_grad_update") and accumulation == "fp32"
    gradients = 0 if immediate and stage == 1 else 2 * parameters
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
    """Return the bytes per full sequence that a forward pass keeps for its backward pass.

    A sequence has n tokens, of which k are to be predicted. Tensors have n rows; behind the last
    layer's attention they have k rows.

    Args:
        attention: the backend; `flash` keeps as much as `sdpa`.
        kernels: those around the matrix products; `compile` keeps as much as `torch`.
        recompute: whether layers keep only their input and are computed again in the backward
            pass, one at a time. The last layer keeps everything, and is gone before the others
            are computed again.
    """
    n, k = sequence_length, round(mask_probability * sequence_length)
    size, h = dtype.itemsize, config.hidden_size
    plain = kernels != "triton"
    dropped = 1 if plain and config.hidden_dropout else 0  # a dropout mask has a byte per value
    per_row = behind_attention_bytes(config, size, plain)
    layer = n * h * size + attention_bytes(config, size, n, attention) + n * per_row
    last = layer - (n - k) * per_row
    if attention == "triton" and not is_whole(n, config.head_dim):
        last += n * h * size  # the backward pass reads attention's output for all n rows
    embedding = n * h * (size + dropped)
    # The inputs of the head's dense layer, GELU, norm and decoder, and the logits.
    head = k * (4 * h * size + config.padded_vocab_size * (4 if plain else size))
    between = n * h * size if recompute else layer
    embedding += padding_bytes(config, size, n, attention)
    everything = embedding + (config.num_layers - 1) * between + last + head
    return everything + (max(0, layer - last) if recompute and config.num_layers > 1 else 0)


def attention_bytes(config: ModelConfig, size: int, length: int, attention: str) -> int:
    """Return the bytes that attention keeps of one sequence, without its input and its output.

    Args:
        size: bytes of a number in the model's precision.
    """
    n, h, heads = length, config.hidden_size, config.num_heads
    if attention == "triton":
        return 3 * n * h * size + (0 if is_whole(n, config.head_dim) else 4 * n * heads)
    if attention == "reference" or config.attention_dropout:
        # Queries, keys, values and attention weights in fp32. Dropout keeps three squares: the
        # weights before it, after it, and its mask. SDPA does so on the CPU; on a GPU it may keep
        # less.
        squares = 3 if config.attention_dropout else 1
        return 4 * (3 * n * h + squares * heads * n * n)
    return 4 * n * h * size + 4 * n * heads


def padding_bytes(config: ModelConfig, size: int, length: int, attention: str) -> int:
    """Return the bytes that all layers' attention through padding shares for one sequence.

    They are what is added to the scores, and to find a token in padding and back 26 bytes.

    Args:
        size: bytes of a number in the model's precision.
    """
    if attention not in ("reference", "sdpa"):
        return 0
    size = 4 if attention == "reference" else size
    bias = length * config.num_heads if config.positions == "alibi" else 1
    return length * (bias * size + 26)


def behind_attention_bytes(config: ModelConfig, size: int, plain: bool) -> int:
    """Return the bytes that a layer keeps of each row behind its attention.

    Four values have the layer's width: attention's output, the two residual sums that the norms
    read, and the input of the feed-forward. The inner width has the values before and after GELU
    or, where it is gated, gate, value and their product. Each of the two norms keeps two fp32
    numbers. Plain kernels (those of torch) keep GELU of the gate and the dropout masks as well.
    """
    h, f = config.hidden_size, config.ffn_size
    gated = config.feed_forward != "standard"
    values = 4 * h + (4 if gated and plain else 3 if gated else 2) * f
    masks = (h if config.hidden_dropout else 0) * (1 if gated else 2)
    masks += f if config.ffn_dropout else 0
    return values * size + 4 * 2 * 2 + (masks if plain else 0)
