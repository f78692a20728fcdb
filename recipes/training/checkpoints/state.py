"""What a run must remember between steps, as pieces of named parameters.

DeepSpeed's own checkpoints hold one flat buffer per rank, cut for one world size and one ZeRO
stage. Here every rank names what its buffer holds: elements `start` to `start + n` of parameter
`name` (flattened), with the fp32 weight and Adam's two moments. Pieces say nothing about the world
that wrote them, so any other world, at any ZeRO stage, can put them together again, and no rank has
to gather anything to write its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recipes.engine.interface import Engine
from recipes.engine.world import World

KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""fp32 weight, and Adam's moments."""


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `start + numel` of a flattened parameter, as one rank holds them."""

    name: str
    start: int
    tensors: dict[str, Tensor]
    """Per kind, fp32 [numel]; the live memory, not a copy."""

    @property
    def numel(self) -> int:
        return self.tensors["weight"].numel()


class Reader(Protocol):
    """Gives elements of one kind of one parameter: fp32 [numel]."""

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor: ...


def pieces(engine: Engine, world: World) -> Iterator[Piece]:
    """Yield this rank's share of the state; each element is one data-parallel rank's."""
    _make_moments(engine)
    held = list(_held(engine))
    if _is_sharded(engine):
        yield from held
        return
    # Every rank holds everything: cut it in equal parts, as ZeRO would.
    total = sum(piece.numel for piece in held)
    size = -(-total // world.data_parallel_size)
    first, last = world.data_parallel_rank * size, (world.data_parallel_rank + 1) * size
    position = 0
    for piece in held:
        start, end = max(first - position, 0), min(last - position, piece.numel)
        if start < end:
            cut = {kind: tensor[start:end] for kind, tensor in piece.tensors.items()}
            yield Piece(piece.name, start, cut)
        position += piece.numel


@torch.no_grad()
def load(engine: Engine, reader: Reader, optimizer_steps: int) -> None:
    """Put a state into the engine.

    Args:
        optimizer_steps: updates made so far, on which Adam's bias correction depends.
    """
    _make_moments(engine)
    for parameter_state in _optimizer(engine).state.values():
        parameter_state["step"].fill_(optimizer_steps)
    for piece in _held(engine):
        for kind, tensor in piece.tensors.items():
            tensor.copy_(reader.read(kind, piece.name, piece.start, piece.numel))
    if _is_sharded(engine):  # the weights that forward and backward use are copies
        for name, parameter in engine.module.named_parameters():
            weight = reader.read("weight", name, 0, parameter.numel())
            parameter.copy_(weight.view_as(parameter))


def _is_sharded(engine: Engine) -> bool:
    return hasattr(next(engine.module.parameters()), "_hp_mapping")


def _optimizer(engine: Engine) -> torch.optim.Optimizer:
    """Return the AdamW inside."""
    sharded = _is_sharded(engine)
    inner: torch.optim.Optimizer = engine.optimizer.optimizer if sharded else engine.optimizer
    return inner


def _held(engine: Engine) -> Iterator[Piece]:
    state = _optimizer(engine).state
    for name, parameter in engine.module.named_parameters():
        if not _is_sharded(engine):
            moments = {kind: state[parameter][kind].view(-1) for kind in KINDS[1:]}
            yield Piece(name, 0, {"weight": parameter.detach().view(-1), **moments})
        elif (mapping := parameter._hp_mapping) is not None:
            moments = {kind: mapping.optim_fragment[kind] for kind in KINDS[1:]}
            start = mapping.lp_fragment_address.start
            yield Piece(name, start, {"weight": mapping.hp_fragment, **moments})


def _make_moments(engine: Engine) -> None:
    """Make the moments that AdamW would make in its first step, for DeepSpeed to find them."""
    optimizer = _optimizer(engine)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
    if _is_sharded(engine):
        engine.optimizer._lazy_init_hp_params_optimizer_state()
