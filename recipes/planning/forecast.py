"""What a number of GPUs makes of a run: the micro-batch that fits, then times, then cost.

Batches and memory are arithmetic. Times are predictions and stand on a measurement on one GPU: a
row of `throughput.json`, or a rate that was given. Without one there is only a ceiling, which no
run reaches.

A step takes as long as its sequences took where they were measured. The network comes on top, once,
as if none of it were hidden behind the backward pass: the all-reduce of the gradients and ZeRO's
gathering of the weights. Each of n GPUs sends

    (n - 1) / n x parameters x (2 x bytes of a gradient + bytes of a weight)

bytes. Latency, stragglers and input are left out. From the 8 GPUs of the paper's Table S2, at 200
Gbit/s, 16, 32 and 64 GPUs are predicted 15, 10 and 3% too slow (`test_forecast.py`); the published
code hides part of its communication.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from model.config import ModelConfig, training_flops
from recipes.common.errors import UserError
from recipes.common.gpus import MEMORY_BANDWIDTH, peak_flops
from recipes.engine.batch_plan import BatchPlan, plan_batches
from recipes.engine.ds_config import precision
from recipes.planning.memory import MemoryEstimate, state_bytes
from recipes.planning.settings import Question
from recipes.training.throughput import mfu

GPUS_PER_NODE = 8
NODE_GBPS = 2400.0
"""Gbit/s of each GPU inside a node, in one direction: NVLink of the A100 data sheet, 600 GB/s in
both directions together. That of an H100 or H200 is half as fast again."""


@dataclass(frozen=True)
class Measurement:
    """A step that was timed on one GPU."""

    seconds: float
    sequences: float
    tokens_per_sequence: float
    """Real tokens, without padding."""
    source: str


@dataclass(frozen=True)
class Times:
    """What follows for a run from a measurement."""

    step_seconds: float
    tokens_per_second: float
    """Real tokens, all GPUs together."""
    mfu: float | None
    """None for a GPU whose peak is not known."""
    hours: float
    dollars: float
    measured: str
    """Where the measurement is from."""


@dataclass(frozen=True)
class Forecast:
    """The run on one number of GPUs."""

    gpus: int
    plan: BatchPlan
    steps: int
    memory_gb: float
    communication_seconds: float
    """Of each step, on the network."""
    ceiling_tokens_per_second: float | None
    """None for a GPU that is not in the tables."""
    ceiling_hours: float | None
    times: Times | None
    """None where nothing was measured."""


def forecast(question: Question, gpus: int) -> Forecast:
    """Predict the run on `gpus` GPUs.

    Raises:
        UserError: it does not fit, or there are more GPUs than sequences.
    """
    run, hardware = question.settings.run, question.settings.hardware
    largest = largest_micro_batch(question, gpus, hardware.gpu_memory_gb)
    if not largest:
        raise UserError(
            f"{gpus} GPUs: not one sequence fits into {hardware.gpu_memory_gb:g} GB: "
            f"{memory(question, gpus, 1)}; use more GPUs, ZeRO, or --recompute"
        )
    plan = best_plan(question.global_batch, largest, gpus)
    steps = math.ceil(question.sequences / plan.global_batch)
    limit = ceiling(question.model, hardware.gpu, run.sequence_length, run.mask_probability)
    tokens = steps * plan.global_batch * run.sequence_length
    return Forecast(
        gpus=gpus,
        plan=plan,
        steps=steps,
        memory_gb=memory(question, gpus, plan.micro_batch).total / 1e9,
        communication_seconds=communication_seconds(question, plan),
        ceiling_tokens_per_second=limit and gpus * limit,
        ceiling_hours=limit and tokens / (gpus * limit) / 3600,
        times=predict(question, plan, steps),
    )


def predict(question: Question, plan: BatchPlan, steps: int) -> Times | None:
    """Return the times of a run, None where nothing was measured."""
    timed = measurement(question, plan)
    if timed is None:
        return None
    hardware, gpus = question.settings.hardware, plan.data_parallel
    share = plan.micro_batch * plan.accumulation
    seconds = timed.seconds * share / timed.sequences + communication_seconds(question, plan)
    rate = plan.global_batch * timed.tokens_per_sequence / seconds
    peak = peak_flops(hardware.gpu)
    hours = steps * seconds / 3600
    return Times(
        step_seconds=seconds,
        tokens_per_second=rate,
        mfu=peak and mfu(question.model.parameters(), rate, gpus, peak),
        hours=hours,
        dollars=hours * gpus * hardware.price_per_gpu_hour,
        measured=timed.source,
    )


def memory(question: Question, gpus: int, micro_batch: int) -> MemoryEstimate:
    """Return what each of `gpus` GPUs has to hold."""
    states = state_bytes(question.model.parameters(), question.deepspeed, gpus)
    return MemoryEstimate(*states, micro_batch * question.activations)


def largest_micro_batch(question: Question, gpus: int, capacity_gb: float) -> int:
    """Return how many sequences fit on each GPU, 0 where not even one does."""
    free = int(capacity_gb * 1e9) - memory(question, gpus, 0).total
    return max(0, free // question.activations)


def best_plan(global_batch: int, largest: int, gpus: int) -> BatchPlan:
    """Cut a global batch evenly, in micro-batches as large as possible but of at most `largest`.

    A batch that the GPUs do not divide is rounded as pretraining rounds it.

    Raises:
        UserError: there are more GPUs than sequences.
    """
    share, rest = divmod(global_batch, gpus)
    if rest or not share:
        return plan_batches(global_batch, largest, gpus)
    micro_batch = max(size for size in range(1, min(share, largest) + 1) if share % size == 0)
    return BatchPlan(global_batch, micro_batch, share // micro_batch, gpus)


def communication_bytes(parameters: int, deepspeed: dict[str, Any], plan: BatchPlan) -> float:
    """Return what each GPU sends per step: gradients in a ring, and the weights that ZeRO gathers.

    DeepSpeed 0.19 reduces gradients with an all-reduce at every ZeRO stage; at stage 2 it does so
    after every micro-batch, otherwise once per step.
    """
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    weight = 2 if precision(deepspeed) == "bf16" else 4
    gradient = {"fp32": 4, "bf16": 2}.get(deepspeed.get("communication_data_type", ""), weight)
    all_reduces = plan.accumulation if stage == 2 else 1
    each = 2 * gradient * all_reduces + (weight if stage else 0)
    return (plan.data_parallel - 1) / plan.data_parallel * parameters * each


def communication_seconds(question: Question, plan: BatchPlan) -> float:
    """Return the time of one step on the network, nothing of it hidden behind computation."""
    inside = plan.data_parallel <= GPUS_PER_NODE
    gbps = NODE_GBPS if inside else question.settings.hardware.network_gbps
    sent = communication_bytes(question.model.parameters(), question.deepspeed, plan)
    return 8 * sent / (gbps * 1e9)


def ceiling(
    model: ModelConfig, device: str, sequence_length: int, mask_probability: float
) -> float | None:
    """Return tokens per second of one GPU that reaches its data sheet's numbers.

    Matrix products run at the sheet's peak, values between them move at the sheet's bandwidth, in
    as few passes as fused kernels need, and nothing else takes time.

    Returns:
        None for a device that is not in the tables.
    """
    peak, bandwidth = peak_flops(device), MEMORY_BANDWIDTH.get(device)
    if peak is None or bandwidth is None:
        return None
    flops = training_flops(
        model,
        tokens=sequence_length,
        masked_tokens=round(mask_probability * sequence_length),
        token_pairs=sequence_length**2,
    )
    # Values of 2 bytes read and written per token and layer, forward and backward: attention moves
    # 12 widths, the two residual sums with their norms 12 as well, the activation 8 inner widths
    # where it is gated and 5 where it is not.
    inner = (5 if model.feed_forward == "standard" else 8) * model.ffn_size
    moved = 2 * model.num_layers * (24 * model.hidden_size + inner) * sequence_length
    return sequence_length / (flops / peak + moved / bandwidth)


def measurement(question: Question, plan: BatchPlan) -> Measurement | None:
    """Return what the prediction for `plan` stands on: the given rate, or a row of the record.

    That row is nearest in sequences per step and, among equals, in sequences per micro-batch.
    """
    given = question.settings.evidence.tokens_per_second_per_gpu
    if given is not None:
        tokens = question.settings.run.sequence_length
        return Measurement(tokens / given, 1, tokens, "the rate given")
    rows = _rows(question)
    if not rows:
        return None
    share = plan.micro_batch * plan.accumulation

    def distance(row: dict[str, Any]) -> tuple[float, float]:
        pairs = (row["global_batch"], share), (row["micro_batch"], plan.micro_batch)
        first, second = (abs(math.log(a / b)) for a, b in pairs)
        return first, second

    row = min(rows, key=distance)
    return Measurement(
        row["step_seconds"]["median"],
        row["sequences_per_step"],
        row["real_tokens_per_step"] / row["sequences_per_step"],
        f"{row['micro_batch']} x {row['global_batch'] // row['micro_batch']} on 1 GPU",
    )


def _rows(question: Question) -> list[dict[str, Any]]:
    """Return the record's rows of this model that were computed in the same way."""
    record, name = question.record, question.model.name
    if record is None:
        return []
    setup = record["settings"]["setups"].get(name, {})
    same = setup.get("recompute") == question.settings.run.recompute
    return [row for row in record["rows"] if same and row["model"] == name]
