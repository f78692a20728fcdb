"""What pretraining needs of a GPU's memory, before there is a GPU.

The states follow from the number of parameters and from what DeepSpeed keeps. The activations are
those that autograd keeps: of the Triton kernels by formula, of the plain ones counted on the CPU in
a forward pass of the real layers over two sequences, scaled to the micro-batch. Buffers that live
for moments only are covered by a reserve, so this is an estimate, and does not know better than a
user who gives --gpu-memory-gb.
"""

from __future__ import annotations

import functools
import socket
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from model.config import ModelConfig
from model.kernels.tiling import is_whole
from model.masked_lm import MaskedLM
from model.parallel import initialize_parallel
from recipes.cli import UserError
from recipes.engine import BatchPlan, World, precision

PROBE_SEQUENCES = 2
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
    shape = config, dtype, sequence_length, mask_probability
    if kernels == "triton" and attention == "triton" and config.feed_forward != "standard":
        per_sequence = triton_activation_bytes(*shape, recompute=recompute)
    else:
        per_sequence = activation_bytes(
            *shape, "sdpa" if attention in ("triton", "flash") else attention, recompute
        )
        # The loss reads fp32 logits, which autograd keeps; those in the model's precision live
        # beside them for a moment, and so do their gradients.
        masked = round(mask_probability * sequence_length)
        per_sequence += masked * config.padded_vocab_size * dtype.itemsize
    split = UNSPLIT_SHARE + (1 - UNSPLIT_SHARE) / tensor_parallel
    activations = int(plan.micro_batch * per_sequence * split)
    return MemoryEstimate(parameters, gradients, optimizer, activations)


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU that no other process holds."""
    free, total = torch.cuda.mem_get_info(device)
    # What this process has of it itself, context and NCCL's buffers, is in the reserve.
    return min(total, free + RESERVE)


def check_devices(
    needed: MemoryEstimate, micro_batch: int, world: World, capacity_gb: float | None
) -> None:
    """Compare with the GPUs of all ranks, the smallest of them. Call on every rank.

    Args:
        capacity_gb: what to take for each GPU's memory instead of asking it.

    Raises:
        UserError: as `check_fit`, and which rank it is, on all of them.
    """
    where = f"rank {world.rank} ({socket.gethostname()}, {world.device})"
    everyone: list[Any] = [(device_bytes(world.device), where)] * world.world_size
    dist.all_gather_object(everyone, everyone[0])
    smallest, where = min(everyone)
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


@functools.cache
def activation_bytes(
    config: ModelConfig,
    dtype: torch.dtype,
    sequence_length: int,
    mask_probability: float,
    attention: str = "sdpa",
    recompute: bool = False,
) -> int:
    """Bytes per full sequence that one forward pass keeps for its backward pass.

    Measured on models of one and of two layers: every further layer keeps what the second does, or
    only its input where it is computed again (and all of one layer then, when its turn comes).
    Needs a world of one process, and makes it where there is none.
    """
    initialize_parallel()
    one, two = (
        kept_bytes(
            replace(config, num_layers=layers),
            dtype,
            PROBE_SEQUENCES,
            sequence_length,
            mask_probability,
            attention,
        )
        for layers in (1, 2)
    )
    layer = (two - one) // PROBE_SEQUENCES
    kept = sequence_length * config.hidden_size * dtype.itemsize if recompute else layer
    return one // PROBE_SEQUENCES + (config.num_layers - 1) * kept


def triton_activation_bytes(
    config: ModelConfig,
    dtype: torch.dtype,
    sequence_length: int,
    mask_probability: float,
    recompute: bool = False,
) -> int:
    """`activation_bytes` of a gated model with Triton kernels: tensors of n rows or, in the last
    layer and the head, of the k rows to predict.
    """
    n, k = sequence_length, round(mask_probability * sequence_length)
    h, f, vocabulary = config.hidden_size, config.ffn_size, config.padded_vocab_size
    whole = is_whole(sequence_length, config.head_dim)
    statistics = 4 * 2 * 2  # two numbers per row, fp32, twice
    log_sums = 0 if whole else 4 * n * config.num_heads
    qkv_and_input = 4 * n * h
    # Context, both sums before a norm, what the feed-forward reads; gate, value and their product.
    behind_attention = 4 * h + 3 * f
    layer = (qkv_and_input + n * behind_attention) * dtype.itemsize + n * statistics + log_sums
    last = (qkv_and_input + k * behind_attention) * dtype.itemsize + k * statistics + log_sums
    if not whole:  # the backward pass of the kernel reads its output, before rows are picked
        last += n * h * dtype.itemsize
    embedding = n * h * dtype.itemsize
    # The head's input, what GELU, norm and decoder read, and the logits.
    head = k * (4 * h + vocabulary) * dtype.itemsize
    between = n * h * dtype.itemsize if recompute else layer
    everything = embedding + (config.num_layers - 1) * between + last + head
    # Recomputed, one of the layers is there as a whole, but the last one never meets another.
    return everything + (max(0, layer - last) if recompute else 0)


def kept_bytes(
    config: ModelConfig,
    dtype: torch.dtype,
    sequences: int,
    sequence_length: int,
    mask_probability: float,
    attention: str = "sdpa",
    kernels: str = "torch",
) -> int:
    """Bytes that autograd keeps of one forward pass, parameters left out."""
    model = MaskedLM(config, attention, kernels).to(dtype)
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}  # storages, held so that no address is used twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = sequences * sequence_length
    masked = round(mask_probability * sequence_length)
    starts = torch.arange(sequences) * sequence_length
    positions = (starts[:, None] + torch.arange(masked)).flatten()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(
            torch.zeros(tokens, dtype=torch.long),
            torch.arange(sequences + 1, dtype=torch.int32) * sequence_length,
            sequence_length,
            positions,
            torch.zeros(len(positions), dtype=torch.long),
            sequence_keys=torch.zeros(sequences, dtype=torch.long),
        )
    return sum(storage.nbytes() for storage in kept.values())
