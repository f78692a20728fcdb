"""The DeepSpeed engine around a model, and what the recipes ask of it."""

from __future__ import annotations

import functools
import importlib
import math
import socket
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.megatron import parallel_state
from recipes.common.json_content import Json
from recipes.engine import gradient_exchange
from recipes.engine.batch_plan import BatchPlan
from recipes.engine.interface import AdamW, Engine
from recipes.engine.world import World

NORM_PIECE = 2**22
"""Numbers whose squares are summed at once: a CPU's sums in fp32 lose digits beyond."""


class MegatronTopology:
    """Megatron's process groups under the names DeepSpeed asks an `mpu` for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(parallel_state, name)

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        group: dist.ProcessGroup = parallel_state.get_model_parallel_group()
        return group

    def get_model_parallel_world_size(self) -> int:
        return self.get_model_parallel_group().size()

    def get_model_parallel_rank(self) -> int:
        return self.get_model_parallel_group().rank()

    def get_data_parallel_group_ranks(self) -> list[int]:
        return dist.get_process_group_ranks(parallel_state.get_data_parallel_group())


def build_engine(
    model: nn.Module,
    config: Json,
    plan: BatchPlan,
    world: World,
    **adamw: Unpack[AdamW],
) -> Engine:
    """A DeepSpeed engine around `model`, with AdamW over all parameters.

    The learning rate is set by the caller before every step.
    """
    import deepspeed

    import_muon()
    model.to(world.device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=adamw["learning_rate"],
        betas=adamw["betas"],
        eps=adamw["eps"],
        weight_decay=adamw["weight_decay"],
        fused=True,
    )
    made: Engine
    made, *_ = deepspeed.initialize(
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
            # It waits for the device twice in every micro-step.
            "timers": {"throughput": {"enabled": False}},
        },
        dist_init_required=False,
        mpu=MegatronTopology() if world.tensor_parallel_size > 1 else None,
    )
    if getattr(made.optimizer, "immediate_grad_update", False):
        _sum_in_place(made, world)
    return made


def import_muon() -> None:
    """Import DeepSpeed's Muon without the compiler.

    Every engine asks whether its optimizer is Muon. Muon's file hands its functions to
    `torch.compile` when it is imported, and with that loads Inductor: a second at every start
    of every rank.
    """
    from deepspeed.runtime import compiler

    compiling = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compiling


def _sum_in_place(engine: Any, world: World) -> None:
    """Replace what DeepSpeed does with gradients in bf16 and their fp32 sums."""
    optimizer, exchange = engine.optimizer, None
    if gradient_exchange.is_possible(engine, world.tensor_parallel_size):
        exchange = gradient_exchange.GradientExchange(engine)
        engine.allreduce_gradients = exchange.finish
    optimizer._update_hp_grad = functools.partial(_accumulate, optimizer, exchange)
    # The sums are zero by then: the optimizer's step, which comes before, has cleared them.
    optimizer.zero_grad = functools.partial(optimizer.clear_lp_grads, set_to_none=True)
    if world.tensor_parallel_size == 1:
        optimizer.get_grads_for_norm = functools.partial(_pieces, optimizer)


def _accumulate(
    optimizer: Any,
    exchange: gradient_exchange.GradientExchange | None,
    parameter: nn.Parameter,
    group: int,
    index: int,
    clear_lp_grads: bool,
) -> None:
    """Add a bf16 gradient to the fp32 sum of the micro-batches, in place of DeepSpeed's own.

    DeepSpeed's makes an fp32 copy of the gradient first: 18 bytes moved per parameter and
    micro-batch. This moves 10: it reads 2 and 4, and writes 4. The sums are the same to the bit.
    """
    if parameter.grad is None:
        return
    total = optimizer.fp32_groups_gradients[group][index]
    total.data.add_(parameter.grad.data.view(total.shape))
    parameter._hp_grad = total  # type: ignore[attr-defined]  # where DeepSpeed looks for it
    optimizer.fp32_groups_has_gradients[group][index] = True
    if exchange is not None:
        exchange.summed(group, index)


def _pieces(optimizer: Any) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Hand DeepSpeed the summed gradient for its norm in a few pieces, not parameter by parameter:
    it launches several kernels for each. (Nothing is clipped, for which it would ask otherwise.)
    """
    flat: list[Tensor] = optimizer.fp32_groups_actual_gradients_flat
    return [piece for gradients in flat for piece in torch.split(gradients, NORM_PIECE)], {}


def set_learning_rate(engine: Engine, learning_rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


@dataclass(frozen=True)
class Update:
    """What became of the weights after a global batch."""

    applied: bool
    """False where the gradient is not finite: the update is skipped, on every rank."""
    norm: Tensor | float
    """2-norm of the global batch's gradient. `float` of it waits for the device."""


def update_weights(engine: Engine) -> Update:
    """Update the weights, after the backward pass of the last micro-batch of a step.

    Waits for the gradient, which must be known to be finite, but not for the update. Where loss or
    gradient are not finite on any rank, neither weights nor optimizer change on any.
    """
    assert engine.is_gradient_accumulation_boundary()
    if hasattr(next(engine.module.parameters()), "_hp_mapping"):
        deepspeed: Any = engine  # with ZeRO its optimizer computes the norm, and skips by itself
        deepspeed.step()
        return Update(not deepspeed.optimizer.overflow, deepspeed.get_global_grad_norm())
    norm = _unsharded_norm(engine)
    if not math.isfinite(norm):
        # AdamW passes over parameters without a gradient: no update, no moment is touched.
        for parameter in engine.module.parameters():
            parameter.grad = None
    engine.step()
    return Update(math.isfinite(norm), norm)


def _unsharded_norm(engine: Engine) -> float:
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


def check_replicas(engine: Engine, world: World) -> None:
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
    """Add up the bits of all parameters: ranks whose parameters are equal get the same number."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = torch.zeros((), dtype=torch.int64, device=next(module.parameters()).device)
    for number, parameter in enumerate(module.parameters()):
        bits = parameter.detach().view(integers[parameter.element_size()])
        total += (number + 1) * bits.sum(dtype=torch.int64)
    return int(total)


def set_full_precision_parameters(engine: Engine, values: Mapping[str, Tensor]) -> None:
    """Give the optimizer these fp32 weights, each whole or of this tensor-parallel rank.

    An engine in bf16 makes its fp32 weights of the model's, which it has rounded by then.
    """
    from deepspeed.utils import safe_set_full_fp32_param

    for name, parameter in engine.module.named_parameters():
        if hasattr(parameter, "_hp_mapping"):
            safe_set_full_fp32_param(parameter, values[name].to(parameter.device))


def full_precision_parameters(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """This rank's (tensor-parallel) parameters in fp32, as the optimizer has them.

    Where the model itself holds bf16, the fp32 master weights lie spread over the data-parallel
    ranks; every rank must iterate.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in engine.module.named_parameters():
        master = safe_get_full_fp32_param(parameter)
        yield name, (parameter.detach() if master is None else master).float()
