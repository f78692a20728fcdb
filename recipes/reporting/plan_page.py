"""A plan in words: tables of the forecasts, which line to change, what the numbers stand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.common.gpus import PEAK_BF16_FLOPS, peak_flops
from recipes.common.settings import flat
from recipes.engine.batch_plan import plan_batches
from recipes.engine.ds_config import precision
from recipes.planning.forecast import (
    GPUS_PER_NODE,
    NODE_GBPS,
    Forecast,
    largest_micro_batch,
)
from recipes.planning.settings import ROOT, Question
from recipes.reporting.tables import markdown, shown

MICRO_BATCH_KEY = "train_micro_batch_size_per_gpu"
CARDS_GB = (40, 80, 94, 141)


def page(question: Question, forecasts: Sequence[Forecast]) -> str:
    """Return the plan for a console."""
    cards = markdown(card_table(question), to_the_right=True)
    parts = [heading(question)]
    if peak_flops(gpu := question.settings.hardware.gpu) is None:
        known = ", ".join(PEAK_BF16_FLOPS)
        parts.append(f"peak of {gpu} unknown: no MFU, no ceiling; known: {known}")
    parts += [markdown(forecast_table(forecasts), to_the_right=True)]
    parts += [f"Largest micro-batch that fits, in sequences:\n\n{cards}"]
    parts += [advice(question, forecasts)]
    parts += ["\n".join(f"- {line}" for line in explanation(question, forecasts))]
    return "\n\n".join(parts)


def heading(question: Question) -> str:
    """Return in one line what is planned."""
    model, deepspeed, hardware = question.model, question.deepspeed, question.settings.hardware
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    return (
        f"{model.name}, {model.parameters() / 1e6:.1f}M parameters, {precision(deepspeed)}, ZeRO "
        f"stage {stage}, {question.settings.run.sequence_length} tokens per sequence, "
        f"{question.sequences:,} sequences, on {hardware.gpu} of {hardware.gpu_memory_gb:g} GB at "
        f"${hardware.price_per_gpu_hour:g} an hour"
    )


def forecast_table(forecasts: Sequence[Forecast]) -> list[tuple[str, ...]]:
    """Return a header, then a row for each number of GPUs."""
    measured = any(each.times for each in forecasts)
    times = ("ms a step", "tokens/s", "MFU", "hours", "dollars", "measured") if measured else ()
    header = (
        *("GPUs", "micro-batch", "accumulation", "global batch", "steps", "GB per GPU"),
        *("network ms", *(times or ("time",)), "ceiling tokens/s", "ceiling hours"),
    )
    return [header, *(_row(each, measured) for each in forecasts)]


def _row(each: Forecast, measured: bool) -> tuple[str, ...]:
    plan, times = each.plan, each.times
    known: tuple[str, ...] = ("not measured",)
    if times:
        known = (
            f"{1e3 * times.step_seconds:,.0f}",
            f"{times.tokens_per_second:,.0f}",
            shown(times.mfu, "{:.1%}", "unknown"),
            f"{times.hours:,.2f}",
            f"{times.dollars:,.2f}",
            times.measured,
        )
    elif measured:
        known = (*["unknown"] * 5, *known)
    return (
        *map(str, (each.gpus, plan.micro_batch, plan.accumulation)),
        f"{plan.global_batch:,}",
        f"{each.steps:,}",
        f"{each.memory_gb:.1f}",
        f"{1e3 * each.communication_seconds:.0f}",
        *known,
        shown(each.ceiling_tokens_per_second, "{:,.0f}", "unknown"),
        shown(each.ceiling_hours, "{:,.2f}", "unknown"),
    )


def card_table(question: Question) -> list[tuple[str, ...]]:
    """Return the largest micro-batch for GPUs of other sizes, whether it divides a batch or not."""
    gpus = question.settings.hardware.gpus
    sizes = {card: [largest_micro_batch(question, n, card) for n in gpus] for card in CARDS_GB}
    return [
        ("GB", *(f"{count} GPUs" for count in gpus)),
        *((str(card), *map(str, fitting)) for card, fitting in sizes.items()),
    ]


def advice(question: Question, forecasts: Sequence[Forecast]) -> str:
    """Return which line of which file to change to which micro-batch."""
    path = question.config_path
    lines = path.read_text("utf-8").splitlines()
    number = next(n for n, line in enumerate(lines, 1) if f'"{MICRO_BATCH_KEY}"' in line)
    where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    now = question.deepspeed[MICRO_BATCH_KEY]
    # The file sets an upper limit. The largest of all is right for every number of GPUs, if
    # pretraining then cuts each batch as planned.
    one = max(each.plan.micro_batch for each in forecasts)
    sizes = {one}
    for each in forecasts:
        plan = plan_batches(question.global_batch, one, each.gpus)
        if (plan.micro_batch, plan.accumulation) != (each.plan.micro_batch, each.plan.accumulation):
            sizes = {each.plan.micro_batch for each in forecasts}
    if sizes == {now}:
        return f'{where}, line {number}: "{MICRO_BATCH_KEY}": {now} is right'
    said = []
    for size in sorted(sizes, reverse=True):
        counts = [str(each.gpus) for each in forecasts if each.plan.micro_batch == size]
        who = "" if len(sizes) == 1 else f" on {', '.join(counts)} GPUs"
        said.append(f"{size}{who}")
    return f'{where}, line {number}: "{MICRO_BATCH_KEY}": {now}, better {"; ".join(said)}'


def explanation(question: Question, forecasts: Sequence[Forecast]) -> list[str]:
    """Return what the numbers stand on, line by line."""
    hardware, evidence = question.settings.hardware, question.settings.evidence
    lines = ["Memory is an estimate, for full sequences."]
    fits = ((question.record or {}).get("largest_micro_batch") or {}).get(question.model.name)
    if fits:
        lines[0] += (
            f" Measured on {hardware.gpu}: micro-batches of {fits['micro_batch']} sequences fit, "
            f"of {2 * fits['micro_batch']} do not."
        )
    if any(each.times for each in forecasts):
        given = evidence.tokens_per_second_per_gpu is not None
        source = "the rate given" if given else str(evidence.record)
        lines.append(f"Times are predictions from {source}, not measurements.")
    else:
        lines.append(
            f"Times: not measured. {evidence.record} has no {question.model.name} on "
            f"{hardware.gpu}; benchmark.py throughput makes it, or give "
            "--tokens-per-second-per-gpu."
        )
    lines.append(
        f"Network: ring all-reduce and all-gather at {hardware.network_gbps:g} Gbit/s per GPU "
        f"({NODE_GBPS:g} inside a node of {GPUS_PER_NODE}), nothing of it hidden; latency, "
        "stragglers and input left out. Checked on Table S2: up to 15% too slow."
    )
    lines.append(
        "Ceiling: a bound, not a prediction. Matrix products at the peak of the GPU's data sheet, "
        "fused memory traffic at its bandwidth, nothing else, no network."
    )
    return lines


def record(question: Question, forecasts: Sequence[Forecast]) -> dict[str, Any]:
    """Return the plan as JSON types."""
    gpus = question.settings.hardware.gpus
    options = flat(question.settings)
    return {
        "model": question.model.name,
        "parameters": question.model.parameters(),
        "deepspeed": question.deepspeed,
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in options.items()},
        "forecasts": [_forecast_record(each) for each in forecasts],
        "largest_micro_batch": [
            {"gb": card, "gpus": n, "sequences": largest_micro_batch(question, n, card)}
            for card in CARDS_GB
            for n in gpus
        ],
        "stands_on": explanation(question, forecasts),
    }


_TIMES = ("step_seconds", "tokens_per_second", "mfu", "hours", "dollars", "measured")


def _forecast_record(each: Forecast) -> dict[str, Any]:
    plan = each.plan
    times = asdict(each.times) if each.times else dict.fromkeys(_TIMES)
    return {
        "gpus": each.gpus,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "global_batch": plan.global_batch,
        "steps": each.steps,
        "memory_gb": each.memory_gb,
        "ceiling_tokens_per_second": each.ceiling_tokens_per_second,
        "ceiling_hours": each.ceiling_hours,
        "communication_seconds": each.communication_seconds,
        **times,
    }
