"""Process groups + DeepSpeed JSON + model -> a DeepSpeed engine.

No other file imports deepspeed.

One home per number: the JSON owns precision, ZeRO, communication and batch sizes; the recipe owns
model, data, optimizer, schedule and duration. A key that has its home elsewhere, or that nobody
knows, is an error.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import socket
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.megatron import parallel_state
from model.parallel import initialize_parallel
from recipes.common.errors import MachineError, Result, UserError, refused
from recipes.engine.rendezvous import TIMEOUT, join, launch_environment

# What a configuration may say: a type, a choice of values, or the keys of a section. `None`:
# DeepSpeed's own (pydantic) check of the section is used; it has none for the others.
JSON_KEYS: dict[str, Any] = {
    "train_batch_size": object,
    "train_micro_batch_size_per_gpu": object,
    "bf16": None,
    "data_types": {"grad_accum_dtype": ("fp32", "bf16")},
    "zero_optimization": None,
    "communication_data_type": ("fp32", "bf16"),
    "prescale_gradients": bool,
    "gradient_predivide_factor": float,
    "disable_allgather": bool,
    "comms_logger": {
        "enabled": bool,
        "verbose": bool,
        "prof_all": bool,
        "prof_ops": list,
        "debug": bool,
    },
    "wall_clock_breakdown": bool,
    "steps_per_print": int,
}

# What of it decides numbers, beyond the order in which they are summed.
NUMERIC_KEYS = ("bf16", "data_types", "communication_data_type")

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


MOST_SEQUENCES = 100_000_000
"""Of a batch: more would be no step but a run."""


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
        return parallel_state.get_data_parallel_group()


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

    Where equal micro-batches of at most `micro_batch_limit` sequences do not give exactly
    `requested`, the global batch is rounded.

    Raises:
        UserError: the global batch would be more than a tenth away (more ranks than sequences).
    """
    plan = _nearest_plan(requested, micro_batch_limit, data_parallel)
    if not _is_near(plan):
        fewer = [
            ranks
            for ranks in range(1, data_parallel)
            if _is_near(_nearest_plan(requested, micro_batch_limit, ranks))
        ]
        raise UserError(
            f"train_batch_size {requested} / {data_parallel} ranks = "
            f"{requested / data_parallel:.3g} sequences per rank; the nearest possible global "
            f"batch is {plan.global_batch}. Set train_batch_size to {plan.global_batch}"
            + (f" or use {fewer[-1]} ranks." if fewer else ".")
        )
    return plan


def _nearest_plan(requested: int, micro_batch_limit: int, data_parallel: int) -> BatchPlan:
    # The limit may cut the request a little above a whole number of micro-batches: leaving that
    # out can be nearer than one more micro-batch.
    most = -(-requested // (micro_batch_limit * data_parallel))
    plans = []
    for accumulation in {max(1, most - 1), most}:
        per_rank = round(requested / (data_parallel * accumulation))
        micro_batch = min(micro_batch_limit, max(1, per_rank))
        plans.append(BatchPlan(requested, micro_batch, accumulation, data_parallel))
    return min(plans, key=lambda plan: (abs(plan.global_batch - requested), plan.accumulation))


def _is_near(plan: BatchPlan) -> bool:
    return 10 * abs(plan.global_batch - plan.requested) <= plan.requested


def read_config(path: Path, *, batch_sizes: bool = True) -> dict[str, Any]:
    """Read and check a DeepSpeed JSON.

    Args:
        batch_sizes: whether the file is the home of the batch sizes, and must have them; for
            finetuning the table of tasks is, and it must not.

    Raises:
        UserError: all faults at once: unreadable, unknown or misplaced keys, impossible values.
    """
    try:
        config = json.loads(path.read_bytes(), object_pairs_hook=_no_duplicates)
    except OSError as error:
        available = sorted(str(p) for p in Path("ds_configs").glob("*.json"))
        raise UserError(f"{path}: {error.strerror}; there are {', '.join(available)}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: the DeepSpeed configuration must be a JSON object")
    faults = [f"{path}: {fault}" for fault in _config_faults(config, batch_sizes)]
    if faults:
        raise UserError(*faults)
    return config


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"key {', '.join(twice)} given twice")
    return dict(pairs)


def _config_faults(config: dict[str, Any], batch_sizes: bool) -> list[str]:
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
            faults += _value_faults(key, value, JSON_KEYS[key])
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu"):
        value = config.get(key)
        if not batch_sizes:
            if key in config:
                faults.append(f"{key}: finetuning takes the batch size from its task, remove it")
        elif type(value) is not int or not 1 <= value <= MOST_SEQUENCES:
            faults.append(
                f"{key} must be a positive whole number up to {MOST_SEQUENCES:,}, got {value!r}"
            )
    stage = config.get("zero_optimization", {})
    stage = stage.get("stage", 0) if isinstance(stage, dict) else 0
    if _enabled(config, "bf16") and stage == 0:
        # Without ZeRO gradients accumulate in bf16, and the fp32 master weights are out of reach of
        # the export, which would silently be bf16.
        faults.append("bf16 needs ZeRO: set zero_optimization.stage to 1")
    return faults


def _value_faults(key: str, value: Any, allowed: Any) -> list[str]:
    if allowed is None:
        return _section_faults(key, value)
    if isinstance(allowed, dict):
        if not isinstance(value, dict):
            return [f"{key} must be an object, got {value!r}"]
        faults = []
        for name, inner in value.items():
            if name in allowed:
                faults += _value_faults(f"{key}.{name}", inner, allowed[name])
            else:
                faults.append(f"unknown key '{key}.{name}'; known: {', '.join(sorted(allowed))}")
        return faults
    if isinstance(allowed, tuple):
        fits, wanted = value in allowed, " or ".join(map(repr, allowed))
    else:
        fits, wanted = isinstance(value, allowed), allowed.__name__
        if allowed in (int, float):
            fits = isinstance(value, int | allowed) and not isinstance(value, bool)
    return [] if fits else [f"{key} must be {wanted}, got {value!r}"]


def _section_faults(key: str, value: Any) -> list[str]:
    """What DeepSpeed finds wrong with a section that it checks itself."""
    import pydantic
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    if not isinstance(value, dict):
        return [f"{key} must be an object, got {value!r}"]
    faults = []
    if key == "zero_optimization":
        stage = value.get("stage", 0)
        if type(stage) is not int or not 0 <= stage <= 2:  # pydantic takes "1" for 1, and 3
            why = "; 3 shards the weights themselves, which evaluation and export need whole"
            faults.append(
                f"{key}.stage must be 0, 1 or 2, got {stage!r}{why if stage == 3 else ''}"
            )
            value = {**value, "stage": 0}
    section = {"bf16": DeepSpeedBF16Config, "zero_optimization": DeepSpeedZeroConfig}[key]
    try:
        section(**value)
    except pydantic.ValidationError as error:
        return faults + [
            f"{'.'.join([key, *map(str, e['loc'])])}: {e['msg']}" for e in error.errors()
        ]
    if key == "zero_optimization":
        return faults + _zero_faults(value)
    # pydantic takes "false" for False, everything else here would take it for true.
    faults = [
        f"{key}.{name}: master weights, Adam's state and the overflow check stay as they are, "
        "remove it"
        for name in (
            "bf16_master_weights_and_grads",
            "bf16_optimizer_states",
            "check_grad_overflow",
        )
        if name in value
    ]
    return faults + _value_faults(f"{key}.enabled", value.get("enabled", False), bool)


def _zero_faults(section: dict[str, Any]) -> list[str]:
    return [
        f"zero_optimization.{name}: the recipe's AdamW keeps its state on the device, remove it"
        for name in ("offload_optimizer", "offload_param", "zenflow")
        if section.get(name)
    ]


def _enabled(config: dict[str, Any], section: str) -> bool:
    value = config.get(section, {})
    return isinstance(value, dict) and value.get("enabled") is True


def precision(config: dict[str, Any]) -> str:
    """ "bf16" (with fp32 master weights in the optimizer) or "fp32"."""
    return "bf16" if _enabled(config, "bf16") else "fp32"


def initialize_world(tensor_parallel: int = 1) -> World:
    """Join the other processes; make the data- and tensor-parallel groups.

    Raises:
        UserError: the world size is not a multiple of `tensor_parallel`.
        MachineError: the others could not be reached within `JOIN_TIMEOUT`.
    """
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
        # Otherwise every rank compiles a shared-memory all-reduce at the first start (a minute,
        # and an error where there is no C++ compiler). gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world_size > 1:
        host_group = join(backend, environment)
    else:
        dist.init_process_group(
            backend, rank=0, world_size=1, store=dist.HashStore(), timeout=TIMEOUT
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


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """For the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


@dataclass(frozen=True)
class Update:
    """What became of the weights after a global batch."""

    applied: bool
    """False where the gradient is not finite: the update is skipped, on every rank."""
    norm: Tensor | float
    """2-norm of the global batch's gradient. `float` of it waits for the device."""


def step(engine: Any) -> Update | None:
    """After each micro-batch's backward; updates the weights after the last one.

    Waits for the gradient, which must be known to be finite, but not for the update.

    Returns:
        None between updates.
    """
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return None
    if hasattr(next(engine.module.parameters()), "_hp_mapping"):
        engine.step()  # with ZeRO the optimizer computes the norm, and skips by itself
        return Update(not engine.optimizer.overflow, engine.get_global_grad_norm())
    norm = _unsharded_norm(engine)
    if not math.isfinite(norm):
        # AdamW passes over parameters without a gradient: no update, no moment is touched.
        for parameter in engine.module.parameters():
            parameter.grad = None
    engine.step()
    return Update(math.isfinite(norm), norm)


def _unsharded_norm(engine: Any) -> float:
    """What DeepSpeed does not compute at ZeRO stage 0."""
    parameters = list(engine.module.parameters())
    parts = [  # those that all tensor-parallel ranks hold alike count once
        parameter.grad
        for parameter in parameters
        if parameter.grad is not None
        and (
            getattr(parameter, "tensor_model_parallel", False)
            or parallel_state.get_tensor_model_parallel_rank() == 0
        )
    ]
    squares = torch.zeros((), dtype=torch.float32, device=parameters[0].device)
    if parts:
        squares = torch.nn.utils.get_total_norm(parts).float().square()
    dist.all_reduce(squares, group=parallel_state.get_tensor_model_parallel_group())
    return math.sqrt(squares.item()) if squares.isfinite() else math.inf


def check_replicas(engine: Any, world: World) -> None:
    """Compare the bits of the parameters that data-parallel ranks hold alike.

    Raises:
        RuntimeError: some differ: a device or its memory is faulty.
    """
    mine = (checksum(engine.module), f"rank {world.rank} ({socket.gethostname()})")
    group = world.data_parallel_group
    sums: list[Any] = [None] * world.data_parallel_size
    dist.all_gather_object(sums, mine, group=group)
    usual = statistics.mode(value for value, _ in sums)
    others = [where for value, where in sums if value != usual]
    if others:
        raise RuntimeError(
            f"the parameters of {', '.join(others)} differ from those of the other ranks; a device "
            "is faulty. Nothing was saved; start again without it, from the last checkpoint."
        )


def checksum(module: nn.Module) -> int:
    """Of the bits of all parameters: equal on ranks whose parameters are equal."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = torch.zeros((), dtype=torch.int64, device=next(module.parameters()).device)
    for number, parameter in enumerate(module.parameters()):
        bits = parameter.detach().view(integers[parameter.element_size()])
        total += (number + 1) * bits.sum(dtype=torch.int64)
    return int(total)


def full_precision_parameters(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """This rank's (tensor-parallel) parameters in fp32, as the optimizer has them.

    Where the model itself holds bf16, the fp32 master weights lie spread over the data-parallel
    ranks; every rank must iterate.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in engine.module.named_parameters():
        master = safe_get_full_fp32_param(parameter)
        yield name, (parameter.detach() if master is None else master).float()


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
    return outcome[0]


def shut_down() -> None:
    """Leave the process groups; without this about one exit in thirty aborts."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
