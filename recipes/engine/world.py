"""All the processes of a run: joining them, agreeing with them, and leaving."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from model.megatron import parallel_state
from model.parallel import initialize_parallel
from recipes.common.errors import MachineError, Result, UserError, refused
from recipes.engine.ds_config import expect_device
from recipes.engine.rendezvous import TIMEOUT, join, launch_environment


@dataclass(frozen=True)
class World:
    """This process's place among all of them."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    data_parallel_rank: int
    data_parallel_size: int
    tensor_parallel_size: int
    host_group: dist.ProcessGroup | None = None
    """All ranks, for numbers that are on the host: a device's group would wait for the device."""

    @property
    def data_parallel_group(self) -> dist.ProcessGroup:
        group: dist.ProcessGroup = parallel_state.get_data_parallel_group()
        return group


def initialize_world(tensor_parallel: int = 1) -> World:
    """Join the other processes; make the data- and tensor-parallel groups.

    Raises:
        UserError: the world size is not a multiple of `tensor_parallel`.
        MachineError: the others could not be reached within `JOIN_TIMEOUT`.
    """
    expect_device()
    import deepspeed

    # DeepSpeed's and Megatron's own calls, which no user of a recipe can mend.
    for old in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", f"`torch.distributed.{old}` is deprecated")
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"} | launch_environment()
    os.environ.update(environment)  # DeepSpeed looks there itself
    rank, local_rank, world_size = (
        int(environment[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    )
    if world_size % tensor_parallel:
        raise UserError(
            f"--tensor-parallel {tensor_parallel} does not divide the {world_size} processes"
        )
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        keep_freed_memory()
        # Otherwise every rank compiles a shared-memory all-reduce at the first start (a minute,
        # and an error where there is no C++ compiler). gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world_size > 1:
        host_group = join(backend, environment)
    else:
        dist.init_process_group(
            backend,
            rank=0,
            world_size=1,
            store=dist.HashStore(),
            timeout=TIMEOUT,
        )
        host_group = dist.group.WORLD
    deepspeed.init_distributed(backend, verbose=False)
    initialize_parallel(tensor_parallel)
    return World(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        device=device,
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
        tensor_parallel_size=tensor_parallel,
        host_group=host_group,
    )


def keep_freed_memory() -> None:
    """Let malloc keep what is freed instead of giving it back to the system within every step.

    glibc gives large blocks back at once. The next step asks for them again, and the system clears
    each of their pages anew: thousands of page faults a step. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 2**30)
        # Some versions refuse more than half of an arena's heap.
        mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)


def told_by_all(mine: Result, world: World) -> list[Result]:
    """Return what each rank tells, rank by rank. Call on every rank."""
    everyone = [mine] * world.world_size
    dist.all_gather_object(everyone, mine)
    return everyone


def told_by_first(mine: Result) -> Result:
    """Return what rank 0 tells. Call on every rank."""
    told = [mine]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def agree(fault: Exception | None, what: str) -> None:
    """Raise on every rank when one failed, so that none waits for another for ever."""
    faults: list[tuple[str, bool] | None] = [None] * dist.get_world_size()
    mine = None if fault is None else (str(fault), isinstance(fault, MachineError))
    dist.all_gather_object(faults, mine)
    found = [(f"rank {rank}: {each[0]}", each[1]) for rank, each in enumerate(faults) if each]
    if found:
        kind = MachineError if any(by_machine for _, by_machine in found) else UserError
        raise kind(*(f"{what} could not be written: {text}" for text, _ in found))


def on_first_rank(action: Callable[[], Result], where: object) -> Result:
    """What `action` returns on rank 0, or the fault that it finds. Call on every rank.

    Args:
        where: what it writes, for the message if the system refuses.
    """
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except UserError as error:
            outcome[1] = error
        except OSError as error:
            outcome[1] = refused(error, where)
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result


def shut_down() -> None:
    """Leave the process groups; without this about one exit in thirty aborts."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
