"""What a number of GPUs makes of a run: the micro-batch that fits, then times, then cost.

A step is the micro-batches one after the other (`compute.py`), the exchange between the GPUs as far
as the backward pass does not hide it (`network.py`), the update, and the wait for the slowest node.
How near these come to data sheets is fitted to Table S2 (`calibration.py`). Batches and memory are
arithmetic; times are predictions, with an interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from recipes.common.errors import UserError
from recipes.common.gpus import SHORT_NAMES
from recipes.engine.batch_plan import BatchPlan, plan_batches
from recipes.engine.ds_config import precision
from recipes.planning.calibration import BACKWARD_SHARE, best, expected, fit, worst
from recipes.planning.compute import (
    Curve,
    MeasuredCurve,
    Rates,
    TabulatedCurve,
    memory_bandwidth,
    work,
)
from recipes.planning.memory import MemoryEstimate, state_bytes
from recipes.planning.network import (
    Collective,
    collective_seconds,
    deepspeed_collectives,
    fabric,
    node_shape,
    staged_bytes,
    waiting_seconds,
)
from recipes.planning.records import MeasuredRow
from recipes.planning.settings import Question
from recipes.training.throughput import mfu

UPDATE_BYTES = 34
"""AdamW reads and writes two moments and the fp32 weight, and reads the gradient (28); the weight
is read again and written in bf16 (6). Per parameter of a rank's share."""
WHOLE_BYTES = 8
"""Of every parameter on every rank: its gradient is read for the norm, and set to zero."""
CALIBRATED_GPUS = 64
"""Table S2 ends there."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they are spent on."""

    compute: float
    exchange: float
    """Of gradients and weights, as far as nothing hides it."""
    update: float
    waiting: float
    """For the slowest node."""

    @property
    def total(self) -> float:
        """The whole step."""
        return self.compute + self.exchange + self.update + self.waiting


@dataclass(frozen=True)
class Cost:
    """What a run of some length takes."""

    length: str
    steps: int
    hours: float
    dollars: float


@dataclass(frozen=True)
class Times:
    """What is predicted of a run on a number of GPUs."""

    step: StepTime
    fast: float
    slow: float
    """Ends of the interval of a step, seconds."""
    tokens_per_second: float
    """Real tokens, all GPUs together."""
    mfu: float
    efficiency: float
    """Tokens/s per GPU, as a share of those on one node with the same global batch."""
    costs: tuple[Cost, ...]
    extrapolated: tuple[str, ...]
    """In what the prediction leaves the range that it was fitted or measured in."""


@dataclass(frozen=True)
class Forecast:
    """The run on one number of GPUs."""

    gpus: int
    plan: BatchPlan
    memory_gb: float
    times: Times | None
    """None where nothing is known: fp32, whose rates are in no table here."""


def forecast(question: Question, gpus: int) -> Forecast:
    """Predict the run on `gpus` GPUs.

    Raises:
        UserError: it does not fit, there are more GPUs than sequences, or nodes do not share the
            GPUs evenly; with what would do.
    """
    node_shape(gpus, question.gpu.gpus_per_node)
    largest = largest_micro_batch(question, gpus, question.memory_gb)
    if not largest:
        raise UserError(
            f"{gpus} GPU{'s' * (gpus != 1)}: not one sequence fits into {question.memory_gb:g} GB: "
            f"{memory(question, gpus, 1)}; {what_would_fit(question, gpus)}"
        )
    try:
        plan = best_plan(question.global_batch, largest, gpus)
    except UserError as error:
        raise UserError(f"{error} (--global-batch plans with another one)") from None
    return Forecast(
        gpus=gpus,
        plan=plan,
        memory_gb=memory(question, gpus, plan.micro_batch).total / 1e9,
        times=predict(question, plan),
    )


def predict(question: Question, plan: BatchPlan) -> Times | None:
    """Return the times of a run, None where neither a measurement nor a table says anything."""
    curve = curve_of(question, expected())
    if curve is None:
        return None
    gpu, step = question.gpu, step_time(question, plan, expected())
    tokens = plan.global_batch * tokens_per_sequence(question)
    rate = tokens / step.total
    residual = fit().residual
    costs = []
    for length in question.lengths:
        steps = math.ceil(length.sequences / plan.global_batch)
        hours = steps * step.total / 3600
        dollars = hours * plan.data_parallel * (gpu.dollars_per_hour or 0.0)
        costs.append(Cost(length.name, steps, hours, dollars))
    return Times(
        step=step,
        fast=step_time(question, plan, best()).total * (1 - residual),
        slow=step_time(question, plan, worst()).total * (1 + residual),
        tokens_per_second=rate,
        mfu=mfu(question.model.parameters(), rate, plan.data_parallel, gpu.peak_bf16_tflops * 1e12),
        efficiency=rate / plan.data_parallel / one_node_rate(question),
        costs=tuple(costs),
        extrapolated=tuple(_extrapolated(question, plan, curve)),
    )


def _extrapolated(question: Question, plan: BatchPlan, curve: Curve) -> list[str]:
    found = []
    if plan.data_parallel > CALIBRATED_GPUS:
        found.append(f"more than the {CALIBRATED_GPUS} GPUs of Table S2")
    if isinstance(curve, MeasuredCurve) and not curve.is_measured(plan.micro_batch):
        found.append("a micro-batch beyond those measured")
    return found


def step_time(question: Question, plan: BatchPlan, rates: Rates) -> StepTime:
    """Predict a step of a run of which something is known."""
    gpu, parameters, ranks = question.gpu, question.model.parameters(), plan.data_parallel
    curve = curve_of(question, rates)
    assert curve and gpu.network_gbit_per_s
    links = fabric(gpu, gpu.network_gbit_per_s, rates.link_share)
    micro_batch = curve.seconds(plan.micro_batch)
    exchange = 0.0
    if ranks > 1:
        staged = staged_bytes(question.deepspeed, plan.accumulation)
        exchange = staged * parameters / memory_bandwidth(gpu, rates)
    for collective in deepspeed_collectives(parameters, question.deepspeed, plan.accumulation):
        seconds = collective_seconds(collective, ranks, links)
        if collective.beside_backward:
            seconds = _exposed_seconds(question, plan, collective, seconds, micro_batch)
        exchange += seconds
    return StepTime(
        compute=plan.accumulation * micro_batch,
        exchange=exchange,
        update=update_seconds(question, ranks, rates),
        waiting=waiting_seconds(rates.waiting_seconds, links.nodes(ranks)),
    )


def _exposed_seconds(
    question: Question, plan: BatchPlan, collective: Collective, seconds: float, micro_batch: float
) -> float:
    """Return what the backward pass leaves of an exchange that runs beside it.

    The last call is made when the pass is over. It has the embedding, whose gradient comes last.
    """
    model, zero = question.model, question.deepspeed.get("zero_optimization", {})
    embedding = model.vocab_size * model.hidden_size / model.parameters()
    last = max(1 / max(1, collective.calls), embedding)
    passes = 1
    if zero.get("stage") == 2:
        passes, last = plan.accumulation, last / plan.accumulation
    return max(min(1.0, last) * seconds, seconds - passes * BACKWARD_SHARE * micro_batch)


def update_seconds(question: Question, ranks: int, rates: Rates) -> float:
    """Predict the update of the weights: the host's part, and the memory that is moved."""
    stage = question.deepspeed.get("zero_optimization", {}).get("stage", 0)
    each = UPDATE_BYTES / (ranks if stage else 1) + WHOLE_BYTES
    moved = each * question.model.parameters()
    return rates.update_seconds + moved / memory_bandwidth(question.gpu, rates)


def one_node_rate(question: Question) -> float:
    """Predict real tokens/s of each GPU on one node, with the same global batch."""
    gpus = min(question.gpu.gpus_per_node, question.global_batch)
    largest = largest_micro_batch(question, gpus, question.memory_gb)
    # Where it does not fit on one node, the rate that a single sequence at a time would have.
    plan = best_plan(question.global_batch, max(1, largest), gpus)
    seconds = step_time(question, plan, expected()).total
    return plan.global_batch * tokens_per_sequence(question) / seconds / gpus


def curve_of(question: Question, rates: Rates) -> Curve | None:
    """Return how long a micro-batch takes: as measured, or as tabulated.

    Args:
        rates: `best()` and `worst()` take the fastest and slowest steps that were measured.
    """
    run = question.settings.run
    if question.record is not None:
        return _measured_curve(question, rates)
    if precision(question.deepspeed) != "bf16":
        return None
    asked = work(question.model, run.sequence_length, run.mask_probability, recompute=run.recompute)
    return TabulatedCurve(asked, question.gpu, rates)


def _measured_curve(question: Question, rates: Rates) -> MeasuredCurve:
    """Take the predicted update off the measured steps; the rest is their micro-batches."""
    assert question.record
    update = update_seconds(question, 1, expected())
    points: dict[int, tuple[int, float]] = {}
    for row in question.record.rows:
        seconds = _seconds(row, rates)
        each = max(seconds - update, 0.5 * seconds) / row.accumulation
        # Of several rows the longest accumulation says most about a micro-batch.
        if row.micro_batch not in points or row.accumulation > points[row.micro_batch][0]:
            points[row.micro_batch] = (row.accumulation, each)
    return MeasuredCurve(tuple((size, each) for size, (_, each) in sorted(points.items())))


def _seconds(row: MeasuredRow, rates: Rates) -> float:
    return {best(): row.fastest, worst(): row.slowest}.get(rates, row.seconds)


def tokens_per_sequence(question: Question) -> float:
    """Return real tokens: those of the measured rows, or all where nothing was measured."""
    if question.record:
        rows = question.record.rows
        return sum(row.tokens_per_sequence for row in rows) / len(rows)
    return question.settings.run.sequence_length


def memory(question: Question, gpus: int, micro_batch: int) -> MemoryEstimate:
    """Return what each of `gpus` GPUs has to hold."""
    states = state_bytes(question.model.parameters(), question.deepspeed, gpus)
    return MemoryEstimate(*states, micro_batch * question.activations)


def largest_micro_batch(question: Question, gpus: int, capacity_gb: float) -> int:
    """Return how many sequences fit on each GPU, 0 where not even one does."""
    free = int(capacity_gb * 1e9) - memory(question, gpus, 0).total
    return max(0, free // question.activations)


def what_would_fit(question: Question, gpus: int) -> str:
    """Return the ways out where not one sequence fits."""
    ways = []
    others = [
        name
        for name, gpu in SHORT_NAMES.items()
        if gpu.memory_gb and largest_micro_batch(question, gpus, gpu.memory_gb)
    ]
    if others:
        ways.append(f"it fits on {', '.join(others)}")
    counts = [2**power for power in range(14) if 2**power > gpus]
    more = [n for n in counts if largest_micro_batch(question, n, question.memory_gb)]
    if more:
        ways.append(f"on {more[0]} GPUs of this memory")
    stage = question.deepspeed.get("zero_optimization", {}).get("stage", 0)
    for higher in range(stage + 1, 3):
        zero = {**question.deepspeed.get("zero_optimization", {}), "stage": higher}
        tried = replace(question, deepspeed={**question.deepspeed, "zero_optimization": zero})
        if largest_micro_batch(tried, gpus, question.memory_gb):
            ways.append(f"at ZeRO stage {higher}")
            break
    return " or ".join(ways) or "no GPU of the table has room for it: --tensor-parallel splits it"


def best_plan(global_batch: int, largest: int, gpus: int) -> BatchPlan:
    """Cut a global batch evenly, in micro-batches as large as possible but of at most `largest`.

    A batch that the GPUs do not divide, or only into small pieces, is rounded as pretraining rounds
    it.

    Raises:
        UserError: there are more GPUs than sequences.
    """
    share, rest = divmod(global_batch, gpus)
    even = None
    if share and not rest:
        size = max(size for size in range(1, min(share, largest) + 1) if share % size == 0)
        even = BatchPlan(global_batch, size, share // size, gpus)
    try:
        rounded = plan_batches(global_batch, largest, gpus)
        # Its micro-batch becomes the limit in the JSON, from which pretraining cuts the batch anew.
        while (again := plan_batches(global_batch, rounded.micro_batch, gpus)) != rounded:
            rounded = again
    except UserError:  # three sequences in twos would be two
        if even is None:
            raise
        return even
    return even if even and 2 * even.micro_batch > rounded.micro_batch else rounded
