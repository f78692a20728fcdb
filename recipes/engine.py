"""Process groups + DeepSpeed JSON + model -> a DeepSpeed engine.

No other file imports deepspeed.

One home per number: the JSON owns precision, ZeRO, communication and batch sizes; the recipe owns
model, data, optimizer, schedule and duration. A key that has its home elsewhere, or that nobody
knows, is an error.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn

from model.parallel import initialize_parallel
from recipes.cli import UserError

# Start-up includes reading shards and compiling on a cold file system; afterwards a rank that is
# silent for this long is gone.
TIMEOUT = timedelta(minutes=30)

# What a configuration may say, and for nested sections, which keys. `None`: DeepSpeed's own
# (pydantic) check of the section is used.
JSON_KEYS: dict[str, set[str] | None] = {
    "train_batch_size": set(),
    "train_micro_batch_size_per_gpu": set(),
    "bf16": None,
    "data_types": {"grad_accum_dtype"},
    "zero_optimization": None,
    "communication_data_type": set(),
    "prescale_gradients": set(),
    "gradient_predivide_factor": set(),
    "disable_allgather": set(),
    "comms_logger": {"enabled", "verbose", "prof_all", "prof_ops", "debug"},
    "wall_clock_breakdown": set(),
    "steps_per_print": set(),
}

# Keys DeepSpeed knows and this recipe sets elsewhere.
RECIPE_KEYS = {
    "optimizer": "the recipe builds AdamW: --learning-rate, --weight-decay",
    "scheduler": "the recipe sets the schedule: --warmup-fraction, --final-lr-fraction",
    "gradient_clipping": "the recipe trains without clipping and passes 0 to DeepSpeed",
    "gradient_accumulation_steps": "it follows from the batch sizes and the world size",
    "tensorboard": "the recipe writes TensorBoard itself",
    "fp16": "these models train in bf16 or fp32",
    "torch_autocast": "Megatron's layers keep fp32 biases, so autocast runs most of them in fp32; "
    "bf16 with ZeRO keeps fp32 master weights as well",
}


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


@dataclass(frozen=True)
class BatchPlan:
    """How one global batch is cut into micro-batches."""

    requested: int
    """Sequences per global batch asked for by `train_batch_size`."""
    micro_batch: int
    """Sequences per micro-batch on each data-parallel rank."""
    accumulation: int
    """Micro-batches per rank and optimizer step."""
    data_parallel: int
    """Data-parallel ranks."""

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.data_parallel

    def __str__(self) -> str:
        product = (
            f"{self.global_batch} = {self.micro_batch} sequences x {self.accumulation} "
            f"micro-batches x {self.data_parallel} ranks"
        )
        if self.global_batch == self.requested:
            return f"global batch {product}"
        return f"global batch {product} (rounded from {self.requested} to what the ranks divide)"


def plan_batches(requested: int, micro_batch_limit: int, data_parallel: int) -> BatchPlan:
    """Cut a global batch for `data_parallel` ranks with as few micro-batches as memory allows.

    The micro-batch is the nearest whole number, at most `micro_batch_limit`; where that does not
    give exactly `requested`, the global batch is rounded.

    Raises:
        UserError: the nearest global batch is more than a tenth away (more ranks than sequences).
    """
    per_rank = requested / data_parallel
    accumulation = max(1, -(-requested // (micro_batch_limit * data_parallel)))
    micro_batch = min(micro_batch_limit, max(1, round(per_rank / accumulation)))
    plan = BatchPlan(requested, micro_batch, accumulation, data_parallel)
    if abs(plan.global_batch - requested) > requested / 10:
        raise UserError(
            f"train_batch_size {requested} / {data_parallel} ranks = {per_rank:.3g} sequences per "
            f"rank; the nearest possible global batch is {plan.global_batch}. Set train_batch_size "
            f"to {plan.global_batch} or use at most {requested} ranks."
        )
    return plan


def read_config(path: Path) -> dict[str, Any]:
    """Read and check a DeepSpeed JSON.

    Raises:
        UserError: all faults at once: unreadable, unknown or misplaced keys, impossible values.
    """
    try:
        config = json.loads(path.read_text(), object_pairs_hook=_no_duplicates)
    except OSError as error:
        available = sorted(str(p) for p in Path("ds_configs").glob("*.json"))
        raise UserError(f"{path}: {error.strerror}; there are {', '.join(available)}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: the DeepSpeed configuration must be a JSON object")
    faults = [f"{path}: {fault}" for fault in _config_faults(config)]
    if faults:
        raise UserError(*faults)
    return config


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"key {', '.join(twice)} given twice")
    return dict(pairs)


def _config_faults(config: dict[str, Any]) -> list[str]:
    faults = []
    for key, value in config.items():
        if key in RECIPE_KEYS:
            faults.append(
                f"{key!r} has no place in the DeepSpeed configuration: {RECIPE_KEYS[key]}"
            )
        elif key not in JSON_KEYS:
            near = difflib.get_close_matches(key, JSON_KEYS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            faults.append(f"unknown key {key!r}{hint}; known: {', '.join(JSON_KEYS)}")
        else:
            faults += _section_faults(key, value)
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu"):
        value = config.get(key)
        if type(value) is not int or value < 1:
            faults.append(f"{key} must be a positive whole number, got {value!r}")
    stage = config.get("zero_optimization", {})
    stage = stage.get("stage", 0) if isinstance(stage, dict) else 0
    fp32_accumulation = config.get("data_types", {}) == {"grad_accum_dtype": "fp32"}
    if _enabled(config, "bf16") and stage == 0 and fp32_accumulation:
        faults.append(
            "bf16 with fp32 gradient accumulation needs ZeRO: set zero_optimization.stage to 1"
        )
    return faults


def _section_faults(key: str, value: Any) -> list[str]:
    known = JSON_KEYS[key]
    if known == set():
        return []
    if not isinstance(value, dict):
        return [f"{key} must be an object, got {value!r}"]
    if known is not None:
        return [
            f"unknown key '{key}.{name}'; known: {', '.join(sorted(known))}"
            for name in value
            if name not in known
        ]
    import pydantic
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    section = {"bf16": DeepSpeedBF16Config, "zero_optimization": DeepSpeedZeroConfig}[key]
    try:
        section(**value)
    except pydantic.ValidationError as error:
        return [f"{'.'.join([key, *map(str, e['loc'])])}: {e['msg']}" for e in error.errors()]
    return []


def _enabled(config: dict[str, Any], section: str) -> bool:
    value = config.get(section, {})
    return isinstance(value, dict) and bool(value.get("enabled"))


def precision(config: dict[str, Any]) -> str:
    """ "bf16" (with fp32 master weights in the optimizer) or "fp32"."""
    return "bf16" if _enabled(config, "bf16") else "fp32"


def launched_world_size() -> int:
    """Processes this launch has, before any of them has talked to another."""
    return int(_launch_environment().get("WORLD_SIZE", 1))


def _launch_environment() -> dict[str, str]:
    """RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT as the launcher set them.

    `deepspeed` and `torchrun` set them themselves; under `srun` (more than one task) they follow
    from SLURM's variables; a plain `python` is a world of one and gets none.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if "RANK" in found or int(os.environ.get("SLURM_NTASKS", 1)) <= 1:
        return found if "RANK" in found else {}
    if "SLURM_PROCID" not in os.environ or "SLURM_STEP_ID" not in os.environ:
        return {}
    nodes = os.environ["SLURM_STEP_NODELIST"]
    found.setdefault(
        "MASTER_ADDR",
        subprocess.run(
            ["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True
        ).stdout.split()[0],
    )
    # Two jobs on one node must not meet: the port follows from the job.
    found.setdefault("MASTER_PORT", str(20000 + int(os.environ["SLURM_JOB_ID"]) % 20000))
    found["RANK"] = os.environ["SLURM_PROCID"]
    found["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    found["WORLD_SIZE"] = os.environ["SLURM_STEP_NUM_TASKS"]
    return found


def initialize_world(tensor_parallel: int = 1) -> World:
    """Join the other processes; make the data- and tensor-parallel groups.

    Raises:
        UserError: the world size is not a multiple of `tensor_parallel`.
    """
    import deepspeed

    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"} | _launch_environment()
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
        # Otherwise every rank compiles a shared-memory all-reduce at the first start (a minute,
        # and an error where there is no C++ compiler). gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world_size > 1:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        dist.init_process_group(
            backend, rank=0, world_size=1, store=dist.HashStore(), timeout=TIMEOUT
        )
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
    )


class MegatronTopology:
    """Megatron's process groups under the names DeepSpeed asks an `mpu` for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(parallel_state, name)

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return parallel_state.get_model_parallel_group()

    def get_model_parallel_world_size(self) -> int:
        return self.get_model_parallel_group().size()

    def get_model_parallel_rank(self) -> int:
        return self.get_model_parallel_group().rank()

    def get_data_parallel_group_ranks(self) -> list[int]:
        return dist.get_process_group_ranks(parallel_state.get_data_parallel_group())


def build_engine(
    model: nn.Module,
    config: dict[str, Any],
    plan: BatchPlan,
    world: World,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Any:
    """A DeepSpeed engine around `model`, with AdamW over all parameters.

    `weight_decay` is AdamW's own (weights are multiplied by 1 - lr * weight_decay). The learning
    rate is set by the caller before every step.
    """
    import deepspeed

    model.to(world.device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=learning_rate,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "steps_per_print": 2**31 - 1,
            **config,
            "train_batch_size": plan.global_batch,
            "train_micro_batch_size_per_gpu": plan.micro_batch,
            "gradient_accumulation_steps": plan.accumulation,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
        },
        dist_init_required=False,
        mpu=MegatronTopology() if world.tensor_parallel_size > 1 else None,
    )
    return engine


def gradient_norm(engine: Any) -> Tensor | float | None:
    """2-norm of the last step's gradients over all ranks, or None where nobody computed it.

    ZeRO and the bf16 optimizers compute it in their step; plain fp32 (stage 0) does not.
    """
    return engine.get_global_grad_norm()


def full_precision_parameters(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """This rank's (tensor-parallel) parameters in fp32, as the optimizer has them.

    Where the model itself holds bf16, the fp32 master weights lie spread over the data-parallel
    ranks; every rank must iterate.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in engine.module.named_parameters():
        master = safe_get_full_fp32_param(parameter)
        yield name, (parameter.detach() if master is None else master).float()


def shut_down() -> None:
    """Leave the process groups; without this about one exit in thirty aborts."""
    if dist.is_initialized():
        dist.destroy_process_group()
