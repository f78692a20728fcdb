"""The parts of a training step: its batch, the exchange before it, its gradients; evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from model.labels import IGNORED_LABEL
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import seed_dropout
from recipes.corpus.mlm_batches import EvaluationBatches, MlmBatches, PackedBatch, mlm_loader
from recipes.engine.micro_steps import MicroSteps
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


@dataclass(frozen=True)
class GlobalBatch:
    """What an optimizer step needs, and what the ranks told each other when it was fetched."""

    micro_batches: list[PackedBatch]
    """This rank's, on the device."""
    counts: dict[str, int]
    """What the global batch holds, summed over the ranks."""
    asked: dict[str, int]
    """Sums of what the ranks ask for."""
    waited: float
    """Seconds for which the device stood still for this rank's micro-batches."""


def fetch(
    batches: Iterator[PackedBatch], accumulation: int, asked: dict[str, int], world: World
) -> GlobalBatch:
    """Take this rank's micro-batches of the next step, and exchange numbers with the other ranks.

    To be called while the device computes the step before: loader, copies to the device and the
    exchange, which is one between hosts, then cost no time. Two steps' micro-batches are on the
    device meanwhile, which are integers: 1 MB for 512 sequences of 128 tokens.

    Args:
        accumulation: micro-batches of a step.
        asked: what this rank wants all to know.
    """
    idle_seconds = _stopwatch(world.device)
    taken = [next(batches) for _ in range(accumulation)]
    waited = idle_seconds()
    micro_batches = [batch.to(world.device, non_blocking=True) for batch in taken]
    counts, sums = _exchange(taken, asked, world)
    return GlobalBatch(micro_batches, counts, sums, waited)


def _stopwatch(device: torch.device) -> Callable[[], float]:
    """Return what says for how many seconds the device has had nothing to do since this call.

    What it was given before is not counted: a GPU's clock begins when it is done with that.
    """
    if device.type != "cuda":
        began = time.perf_counter()
        return lambda: time.perf_counter() - began
    done, now = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has none
        for _ in range(2)
    )
    done.record()

    def idle_seconds() -> float:
        if not done.query():  # type: ignore[no-untyped-call]  # torch has none
            return 0.0
        now.record()
        now.synchronize()  # the device is idle: this is there at once
        return float(done.elapsed_time(now)) / 1000

    return idle_seconds


def _exchange(
    micro_batches: list[PackedBatch], asked: dict[str, int], world: World
) -> tuple[dict[str, int], dict[str, int]]:
    """Return what the global batch holds, and the sums of what the ranks ask for."""
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


def compute_gradients(
    micro_steps: MicroSteps, batch: GlobalBatch, *, seed: int, step: int, times: RankTimes
) -> Tensor:
    """Do the forward and backward passes of an optimizer step; `update_weights` comes after them.

    On a GPU they are only queued when this returns: nothing of them has been waited for.

    Args:
        micro_steps: does them, with the engine or what acts like it.
        seed: the run's; together with the step it decides what dropout draws.
        step: optimizer steps done before.

    Returns:
        Mean loss over the global batch's masked tokens, in nats, fp32 scalar on the device.
    """
    world, masked = times.world, max(1, batch.counts["masked_tokens"])
    total = torch.zeros((), device=world.device)
    # DeepSpeed averages gradients over the ranks; with this factor the average is the gradient of
    # the sum over all masked tokens of the global batch divided by their number.
    scale = world.data_parallel_size / masked
    for number, micro_batch in enumerate(batch.micro_batches):
        if number:
            micro_steps.engine.step()  # between two micro-batches: only counted
        seed_dropout(seed, step, number, world.data_parallel_rank)  # of attention only
        total += micro_steps(micro_batch, scale, times.forward)
    dist.all_reduce(total, group=world.data_parallel_group)
    return total / masked


@torch.no_grad()
def evaluate(model: RapidBertForMaskedLM, run: Run, world: World) -> dict[str, float]:
    """Return loss in nats and accuracy on held-out text at 15% masking.

    Nothing is returned where chance masks no token of it, as in a text of a few tokens.
    """
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
    return {"loss/eval": loss / masked, "accuracy/eval": hits / masked} if masked else {}
