"""The parts of a training step: its batches, the exchange before it, the step, the evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from model.labels import IGNORED_LABEL
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import seed_dropout
from recipes.corpus.mlm_batches import EvaluationBatches, MlmBatches, PackedBatch, mlm_loader
from recipes.engine.engine import Update, set_learning_rate, update_weights
from recipes.engine.world import World
from recipes.training.run import Run
from recipes.training.stragglers import RankTimes

ENDLESS = 2**40
"""Optimizer steps: more than any run has."""


def training_batches(run: Run, world: World, step: int) -> Iterator[PackedBatch]:
    """Yield this rank's micro-batches from optimizer step `step` on."""
    identity, plan = run.identity, run.plan
    dataset = MlmBatches(
        run.train,
        sequence_length=identity.sequence_length,
        documents=run.documents,
        seed=identity.seed,
        mask_probability=run.mask_probability,
        micro_batch=plan.micro_batch,
        rank=world.data_parallel_rank,
        world_size=world.data_parallel_size,
    )
    # The clock ends a run at any step.
    last = ENDLESS if run.total_steps is None else run.total_steps
    first, end = step * plan.accumulation, last * plan.accumulation
    return iter(mlm_loader(dataset, first, end, workers=run.adjustable.loader_workers))


def next_step(
    batches: Iterator[PackedBatch], accumulation: int, world: World
) -> tuple[list[PackedBatch], float]:
    """Return this rank's micro-batches of one step, on the device; and the seconds waited."""
    began = time.perf_counter()
    micro_batches = [next(batches) for _ in range(accumulation)]
    waited = time.perf_counter() - began
    return [batch.to(world.device, non_blocking=True) for batch in micro_batches], waited


def global_counts(
    micro_batches: list[PackedBatch], asked: dict[str, int], world: World
) -> tuple[dict[str, int], dict[str, int]]:
    """Return what the global batch holds, and the sums of what the ranks ask for.

    One exchange between hosts, while the devices are still busy with the step before.
    """
    names = ("sequences", "real_tokens", "masked_tokens", "token_pairs")
    counts = [sum(getattr(batch, name) for batch in micro_batches) for name in names]
    counts.append(sum(len(batch.input_ids) for batch in micro_batches))
    numbers = torch.tensor([*counts, *asked.values()])
    if world.world_size > 1:
        dist.all_reduce(numbers, group=world.host_group)
    numbers[: len(counts)] //= world.tensor_parallel_size  # whose ranks hold the same batch
    sums = numbers.tolist()
    held = dict(zip((*names, "padded_tokens"), sums[: len(counts)], strict=True))
    return held, dict(zip(asked, sums[len(counts) :], strict=True))


def train_step(
    engine: Any,
    micro_batches: list[PackedBatch],
    counts: dict[str, int],
    lr: float,
    *,
    seed: int,
    step: int,
    times: RankTimes,
) -> tuple[Tensor, Update]:
    """Do one optimizer step on the global batch.

    Args:
        engine: DeepSpeed's, or what acts like it.
        micro_batches: this rank's, on the device.
        counts: what the global batch holds.
        lr: learning rate of this step.
        seed: the run's; together with the step it decides what dropout draws.
        step: optimizer steps done before.

    Returns:
        Mean loss over the global batch's masked tokens, in nats, fp32 scalar on the device, and
        what became of the weights. Where loss or gradient are not finite on any rank, neither
        weights nor optimizer have changed on any.
    """
    world = times.world
    set_learning_rate(engine, lr)
    total = torch.zeros((), device=world.device)
    # DeepSpeed averages gradients over the ranks; with this factor the average is the gradient of
    # the sum over all masked tokens of the global batch divided by their number.
    scale = world.data_parallel_size / max(1, counts["masked_tokens"])
    update = None
    for micro_step, batch in enumerate(micro_batches):
        seed_dropout(seed, step, micro_step, world.data_parallel_rank)  # of attention only
        with times.forward():
            loss = engine(
                batch.input_ids,
                batch.sequence_offsets,
                batch.max_sequence_length,
                batch.masked_positions,
                batch.labels,
                sequence_keys=batch.sequence_keys,
            )
        # 1, or not a number where the loss is not finite: the gradient must not be, either.
        poison = loss.detach() * 0 + 1
        engine.backward(loss * (scale * poison), scale_wrt_gas=False)
        total += loss.detach()
        update = update_weights(engine)
    assert update is not None
    dist.all_reduce(total, group=world.data_parallel_group)
    return total / max(1, counts["masked_tokens"]), update


@torch.no_grad()
def evaluate(model: RapidBertForMaskedLM, run: Run, world: World) -> dict[str, float]:
    """Return loss in nats and accuracy on held-out text at 15% masking."""
    dataset = EvaluationBatches(
        run.validation,
        sequence_length=run.identity.sequence_length,
        documents=run.documents,
        micro_batch=run.plan.micro_batch,
        rank=world.data_parallel_rank,
        world_size=world.data_parallel_size,
        limit=run.adjustable.eval_sequences,
    )
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)  # loss, hits, masked tokens
    for batch in mlm_loader(dataset, 0, len(dataset)):
        batch = batch.to(world.device, non_blocking=True)
        logits = model.logits(
            batch.input_ids,
            batch.sequence_offsets,
            batch.max_sequence_length,
            batch.masked_positions,
        ).float()
        sums[0] += F.cross_entropy(
            logits, batch.labels, ignore_index=IGNORED_LABEL, reduction="sum"
        )
        sums[1] += (logits.argmax(-1) == batch.labels).sum()
        sums[2] += batch.masked_tokens
    model.train()
    dist.all_reduce(sums, group=world.data_parallel_group)
    loss, hits, masked = sums.tolist()
    return {"loss/eval": loss / masked, "accuracy/eval": hits / masked}
