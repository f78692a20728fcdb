"""Whether a finetuning's batch fits the memory there is."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from recipes.common.errors import UserError
from recipes.engine.ds_config import precision
from recipes.engine.world import World, told_by_all
from recipes.planning.memory import activation_bytes, device_bytes, state_bytes
from recipes.tasks.classification_batches import PackedExamples
from recipes.tasks.work import Finetuning


def check_memory(work: Finetuning, train: PackedExamples, world: World) -> None:
    """Compare a rank's part of the longest batch with the memory there is. Call on every rank.

    Raises:
        UserError: it does not fit, on all ranks, with the arithmetic and the batch that does.
    """
    ranks = world.data_parallel_size
    batch = min(work.task.batch_size, len(train))
    dtype = torch.bfloat16 if precision(work.deepspeed) == "bf16" else torch.float32
    sequences = -(-batch // ranks) * train.sequences_per_example
    longest = np.sort(train.lengths)[::-1][:sequences]
    lengths, places = np.unique(longest, return_inverse=True)
    sizes = [
        activation_bytes(
            *(work.config, dtype, int(length), 0.0),
            attention=work.settings.kernel_choice.attention,
            kernels=work.settings.kernel_choice.kernels,
        )
        for length in lengths
    ]
    kept = np.cumsum(np.array(sizes)[places])  # of so many of the longest
    states = sum(state_bytes(work.config.parameters(), work.deepspeed, ranks))
    free = min(free_bytes(world))
    if states + kept[-1] > free:
        fitting = int(np.searchsorted(kept, free - states, side="right"))
        fitting = ranks * (fitting // train.sequences_per_example)
        raise UserError(
            f"a batch of {batch:,} examples of up to {longest[0]:,} tokens: {states / 1e9:.1f} GB "
            f"for the model and {kept[-1] / 1e9:.1f} GB for what its backward pass needs "
            f"(estimates), {free / 1e9:.1f} GB are free for each of {ranks} processes; "
            + (f"--batch-size {fitting} fits" if fitting else "give a shorter --max-length")
        )


def free_bytes(world: World) -> list[int]:
    """Memory that each rank may use; ranks of one host without GPUs share its memory."""
    on_gpu = world.device.type == "cuda"
    everyone = told_by_all((socket.gethostname(), free_here(world.device)), world)
    hosts = [host for host, _ in everyone]
    return [size if on_gpu else size // hosts.count(host) for host, size in everyone]


def free_here(device: torch.device) -> int:
    """Memory that this process may use; without a GPU, no more than others have left of it."""
    free = device_bytes(device)  # a container's limit
    return free if device.type == "cuda" else min(free, host_bytes())


def host_bytes() -> int:
    """Memory of the machine that is free or can be freed; all of it where that is not told."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
