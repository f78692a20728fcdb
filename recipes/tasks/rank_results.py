"""What the evaluations of all kinds share: the parts of all ranks, and that they are numbers."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

from recipes.common.errors import UserError
from recipes.engine.world import World

Part = TypeVar("Part")


def of_all_ranks(mine: list[Part], world: World) -> list[Part]:
    """Return what each rank has found, rank by rank. Call on every rank."""
    gathered: list[Any] = [None] * world.world_size
    dist.all_gather_object(gathered, mine)
    return [part for of_rank in gathered for part in of_rank]


def check_numbers(broken: int, count: int, what: str) -> None:
    """Refuse what is not finite.

    Args:
        broken: how many of `count` it is.
        what: they are, such as "examples".

    Raises:
        UserError: there are some.
    """
    if broken:
        raise UserError(
            f"for {broken:,} of {count:,} {what} the model computes something else than numbers "
            "(NaN or infinity); nothing of it is written, a lower --learning-rate is the usual cure"
        )
