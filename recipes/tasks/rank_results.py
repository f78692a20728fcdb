"""What the evaluations of all kinds share: the ranks compute a part each, and all get numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from recipes.common.errors import UserError
from recipes.engine.world import World, told_by_all
from recipes.tasks.classification_batches import ClassificationBatch, PackedExamples

Part = TypeVar("Part")


@torch.no_grad()
def computed_by_all(
    model: nn.Module,
    compute: Callable[..., Tensor],
    examples: PackedExamples,
    batch_size: int,
    world: World,
    part: Callable[[ClassificationBatch, Tensor], Part],
) -> list[Part]:
    """Compute all examples, each rank its share of every batch. Call on every rank.

    Args:
        model: is in evaluation mode meanwhile, and in training mode afterwards.
        compute: uses the model; takes what is packed in a batch.
        part: makes what is kept of a batch on the device and of what was computed for it.

    Returns:
        What was kept, rank by rank.
    """
    model.eval()
    mine: list[Part] = []
    for batch in examples.evaluation_batches(
        batch_size, rank=world.data_parallel_rank, world_size=world.data_parallel_size
    ):
        batch = batch.to(world.device)
        if len(batch.rows):
            mine.append(part(batch, compute(*batch.packed)))
    model.train()
    return [kept for of_rank in told_by_all(mine, world) for kept in of_rank]


def rows_by_all(
    model: nn.Module,
    compute: Callable[..., Tensor],
    examples: PackedExamples,
    batch_size: int,
    world: World,
    *,
    width: int,
    what: str,
) -> np.ndarray:
    """Compute a row for each example, fp32 [examples, width]. Call on every rank.

    Args:
        model, compute: as for `computed_by_all`; gives [sequences, width].
        what: the examples are, for a fault.

    Raises:
        UserError: the model computes something else than numbers.
    """

    def part(batch: ClassificationBatch, values: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return batch.rows, values[: len(batch.rows)].cpu().numpy()

    found = np.zeros((len(examples), width), np.float32)
    for rows, values in computed_by_all(model, compute, examples, batch_size, world, part):
        found[rows] = values
    check_numbers(int((~np.isfinite(found)).any(-1).sum()), len(examples), what)
    return found


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
