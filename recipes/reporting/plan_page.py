"""A plan in words: a table of the forecasts, the lines to paste, then what the numbers stand on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from recipes.common.json_content import Json
from recipes.common.settings import flat
from recipes.common.tables import markdown
from recipes.engine.ds_config import precision
from recipes.planning.calibration import (
    LARGEST_MATMUL_SHARE,
    best,
    expected,
    fit,
    left_out_errors,
    share_range,
    worst,
)
from recipes.planning.commands import lines_to_paste
from recipes.planning.compute import TabulatedCurve, launches
from recipes.planning.forecast import Forecast, Times, curve_of
from recipes.planning.published import TABLE_S2, inconsistencies
from recipes.planning.settings import Length, Question
from recipes.training.schedule import STEP_SEQUENCES

DEARER = 1.5
"""How many times the lowest cost a faster run may be to be called a good exchange."""


def page(question: Question, forecasts: Sequence[Forecast]) -> str:
    """Return the plan for a console."""
    parts = [heading(question), markdown(forecast_table(question, forecasts), to_the_right=True)]
    parts += ["\n".join([*notes(question, forecasts), *recommendation(forecasts)])]
    pasted = "\n".join(f"    {line}" for line in lines_to_paste(question, forecasts))
    parts += [f"{starting(forecasts)} (data in data/c4):\n\n{pasted}"]
    if any(each.times for each in forecasts):
        parts += [f"A step in ms:\n\n{markdown(step_table(forecasts), to_the_right=True)}"]
    parts += ["\n".join(f"- {line}" for line in explanation(question))]
    return "\n\n".join(part for part in parts if part)


def heading(question: Question) -> str:
    """Return what is planned, and on what."""
    model, deepspeed, gpu = question.model, question.deepspeed, question.gpu
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    return (
        f"{model.name}, {model.parameters() / 1e6:.1f}M parameters, {precision(deepspeed)}, ZeRO "
        f"stage {stage}, {question.settings.run.sequence_length} tokens per sequence, global batch "
        f"{question.global_batch:,}\n"
        f"on {gpu.name}: {gpu.memory_gb:g} GB, {gpu.peak_bf16_tflops:g} TFLOP/s, "
        f"{gpu.gpus_per_node} in a node at {gpu.nvlink_gb_per_s:g} GB/s, "
        f"network {gpu.network_gbit_per_s:g} Gbit/s per GPU, "
        f"${gpu.dollars_per_hour:.2f} an hour\n"
        f"{basis(question)}"
    )


def basis(question: Question) -> str:
    """Return in one line where the times are from."""
    if question.record is not None:
        return f"Times are PREDICTED from {question.record.path}, measured on one such GPU."
    if curve_of(question, expected()) is None:
        return "No times: the JSON is in fp32, and rates of fp32 are not in the tables."
    return "Times are PREDICTED from data sheets: nothing was measured on this GPU."


def forecast_table(question: Question, forecasts: Sequence[Forecast]) -> list[tuple[str, ...]]:
    """Return a header, then a row for each number of GPUs."""
    header, with_steps = ["GPUs", "micro-batch x accum.", "GB per GPU"], False
    if any(each.times for each in forecasts):
        header += ["ms a step", "between", "tokens/s", "MFU", "efficiency"]
        with_steps = _has_other_steps(question, forecasts)
        for length in question.lengths:
            name = in_sequences(length) if with_steps else length.name
            header += [f"hours to {name}", *["steps"] * with_steps, "dollars"]
    return [tuple(header), *(_row(each, with_steps) for each in forecasts)]


def _has_other_steps(question: Question, forecasts: Sequence[Forecast]) -> bool:
    """Whether 70k-steps are another number of steps here: they are of 4,096 sequences."""
    asked = {each.plan.requested for each in forecasts}
    return question.settings.run.tokens is None and asked != {STEP_SEQUENCES}


def in_sequences(length: Length) -> str:
    """Return the length as `286.7M sequences`."""
    count = length.sequences
    return f"{count / 1e6:,.1f}M sequences" if count >= 1e6 else f"{count:,} sequences"


def _row(each: Forecast, with_steps: bool) -> tuple[str, ...]:
    plan, times = each.plan, each.times
    batch = f"{plan.micro_batch} x {plan.accumulation}"
    cells = [f"{each.gpus}{'*' if times and times.extrapolated else ''}"]
    cells += [batch, f"{each.memory_gb:.1f}"]
    if times:
        cells += [
            milliseconds(times.step.total),
            f"{milliseconds(times.fast)}-{milliseconds(times.slow)}",
            f"{times.tokens_per_second:,.0f}",
            f"{times.mfu:.1%}",
            f"{times.efficiency:.0%}",
        ]
        for cost in times.costs:
            steps = [f"{cost.steps:,}"] * with_steps
            cells += [f"{cost.hours:,.2f}", *steps, f"{cost.dollars:,.2f}"]
    return tuple(cells)


def milliseconds(seconds: float) -> str:
    """Return a time in ms with as many digits as it deserves."""
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.01 else f"{1e3 * seconds:.1f}"


def step_table(forecasts: Sequence[Forecast]) -> list[tuple[str, ...]]:
    """Return what a step is spent on, a row for each number of GPUs."""
    rows: list[tuple[str, ...]]
    rows = [("GPUs", "micro-batches", "exchange", "update", "waiting", "sum")]
    for each in forecasts:
        if times := each.times:
            parts = (*asdict(times.step).values(), times.step.total)
            rows.append((str(each.gpus), *(f"{1e3 * part:,.1f}" for part in parts)))
    return rows


def notes(question: Question, forecasts: Sequence[Forecast]) -> list[str]:
    """Return what has to be known to read the table."""
    lines = []
    if question.global_batch != STEP_SEQUENCES and question.settings.run.tokens is None:
        lines += [
            f"{length.name}: {length.sequences:,} sequences, here "
            f"{math.ceil(length.sequences / question.global_batch):,} steps."
            for length in question.lengths
        ]
    reasons = dict.fromkeys(
        reason for each in forecasts if each.times for reason in each.times.extrapolated
    )
    if reasons:
        lines.append(f"* extrapolated: {'; '.join(reasons)}.")
    for each in forecasts:
        plan = each.plan
        if plan.global_batch != plan.requested:
            below = plan.requested // each.gpus * each.gpus
            nearest = [f"{size:,}" for size in (below, below + each.gpus) if size]
            lines.append(
                f"{plan.requested:,} sequences / {each.gpus} GPUs = "
                f"{plan.requested / each.gpus:.4g}: pretraining takes {plan.global_batch:,} = "
                f"{plan.micro_batch} x {plan.accumulation} x {each.gpus}. Batches that "
                f"{each.gpus} GPUs divide: {', '.join(nearest)}."
            )
    return lines


def recommendation(forecasts: Sequence[Forecast]) -> list[str]:
    """Return which number of GPUs is cheapest, and which is faster at little more."""
    known = [(each.gpus, each.times.costs[0]) for each in forecasts if each.times]
    if len(known) < 2:
        return []
    gpus, cheapest = min(known, key=lambda pair: pair[1].dollars)
    affordable = [pair for pair in known if pair[1].dollars <= DEARER * cheapest.dollars]
    more, fastest = min(affordable, key=lambda pair: pair[1].hours)
    said = f"Cheapest: {counted(gpus)}, {cheapest.hours:,.1f} h and ${cheapest.dollars:,.2f}"
    if more != gpus:
        said += (
            f"; fastest for at most {DEARER:g} times that: {more} GPUs, {fastest.hours:,.1f} h and "
            f"${fastest.dollars:,.2f}"
        )
    return [f"{said} ({cheapest.length})."]


def starting(forecasts: Sequence[Forecast]) -> str:
    """Return what is said above the lines to paste."""
    if len(forecasts) == 1:
        return "To start it, from the repository's root"
    return "To start it, choose one sbatch line, from the repository's root"


def counted(gpus: int) -> str:
    """Return `1 GPU`, `8 GPUs`."""
    return f"{gpus} GPU{'s' * (gpus != 1)}"


def explanation(question: Question) -> list[str]:
    """Return what the numbers stand on, line by line."""
    lines = ["Memory is an estimate, for full sequences."]
    record = question.record
    if record and record.largest_micro_batch:
        lines[0] += (
            f" Measured on {question.gpu.name}: micro-batches of {record.largest_micro_batch} "
            f"sequences fit, of {2 * record.largest_micro_batch} do not."
        )
    lines.append(f"{question.gpu.name}: {question.gpu.source}.")
    curve = curve_of(question, expected())
    if curve is None:
        return lines
    return [*lines, *_assumptions(question, isinstance(curve, TabulatedCurve))]


def _assumptions(question: Question, tabulated: bool) -> list[str]:
    now, low, high = expected(), worst(), best()
    lines = []
    if tabulated:
        host = [
            f"{1e3 * rates.launch_seconds * launches(question.model):.0f}"
            for rates in (now, low, high)
        ]
        lines.append(
            f"Micro-batches: matrix products at {now.matmul_share:.0%} of the peak (between: "
            f"{low.matmul_share:.0%} and {high.matmul_share:.0%}), other passes at "
            f"{now.memory_share:.0%} of the memory's bandwidth ({low.memory_share:.0%}, "
            f"{high.memory_share:.0%}), and no less than the host needs for {question.model.name}, "
            f"{host[0]} ms ({host[1]}, {host[2]}): {launches(question.model):.0f} launches were "
            f"counted, {1e6 * now.launch_seconds:.0f} us for each are assumed. "
            "CUDA graphs, off by default, would take most of the host's time away; benchmark.py "
            "throughput replaces all of this by a measurement."
        )
        if question.model.attention_dropout:
            lines[-1] += (
                f" {question.model.name} drops attention weights, for which there is no kernel of "
                "ours: it will be slower than this."
            )
    return [
        *lines,
        *_from_table_s2(),
        "Exchange: all gradients once per step (ZeRO 2: per micro-batch), then the weights; links "
        f"at {now.link_share:.0%} of their speed. The interval assumes waiting from zero to 1.25 "
        f"times the fitted value, and links at {low.link_share:.0%} to {high.link_share:.0%}. The "
        "waiting is what is known least: the step times of a run on two nodes beside one tell "
        "yours.",
        "Left out: input that is too slow, evaluation, checkpoints (0.2% for Base, by a CPU's "
        "times), restarts. The interval of a step is that of hours and dollars too, in proportion. "
        "Efficiency: tokens/s per GPU, as a share of that on one full node with the same global "
        "batch.",
        f"The paper's own numbers differ: {'; '.join(inconsistencies())}.",
    ]


def _from_table_s2() -> list[str]:
    """Return what was fitted to Table S2, and what the table does not say."""
    found, (least, most) = fit(), share_range()
    unused = ", ".join(f"{row} {found.error(row):+.1%}" for row in found.unused)
    left_out = ", ".join(f"{row} {error:+.1%}" for row, error in left_out_errors().items())
    [bert] = (row for row in TABLE_S2 if row.model == "bert-base")
    eight, sixteen = found.used[1], found.unused[0]
    scaled = eight.step_seconds / sixteen.step_seconds
    modelled = found.step_seconds(eight) / found.step_seconds(sixteen)
    return [
        f"Fitted to Table S2 ({', '.join(map(str, found.used))}): matrix products at "
        f"{found.matmul_share:.0%} of the peak, {found.published_token_bytes / 1e6:.1f} MB moved "
        f"per token by the published code, a mean delay of "
        f"{1e3 * found.waiting_seconds:.0f} ms per node, for the slowest of which a step waits. "
        "The table is of RapidBERT-Base, 128 tokens and A100s: all else is extrapolated.",
        f"The {found.matmul_share:.0%} are not tested by any other row, and all times on one node "
        "stand on them. They hang on 1.1e6 tokens/s, printed with two digits: 1.05e6 to 1.15e6 "
        f"give {least:.0%} to {most:.0%}. The interval is that range, but at most the "
        f"{LARGEST_MATMUL_SHARE:.0%} that large matrix products by themselves reached on an H200. "
        "The row of BERT-Base is no test: its unfused code moves bytes of its own, which no other "
        f"row tells. With RapidBERT's bytes a step would take {1e3 * found.step_seconds(bert):,.0f}"
        f" ms; in the table it takes {1e3 * bert.step_seconds:,.0f}.",
        f"The waiting, each row predicted from the other three: {left_out}. The form of the "
        f"waiting was chosen among four by these errors, and those of the rows that the fit does "
        f"not use ({unused}) were known, so that neither is a test. From 8 to 16 GPUs the table "
        f"scales by {scaled:.2f}, the model by {modelled:.2f}.",
    ]


def record(question: Question, forecasts: Sequence[Forecast]) -> Json:
    """Return the plan as JSON types."""
    options = flat(question.settings)
    return {
        "model": question.model.name,
        "parameters": question.model.parameters(),
        "gpu": asdict(question.gpu),
        "deepspeed": question.deepspeed,
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in options.items()},
        "predicted_from": basis(question),
        "forecasts": [forecast_record(each) for each in forecasts],
        "commands": lines_to_paste(question, forecasts),
        "stands_on": explanation(question),
    }


def forecast_record(each: Forecast) -> Json:
    """Return one number of GPUs as JSON types; seconds, fractions, dollars."""
    plan = each.plan
    return {
        "gpus": each.gpus,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "global_batch": plan.global_batch,
        "requested_global_batch": plan.requested,
        "memory_gb": each.memory_gb,
        "times": None if each.times is None else _times_record(each.times),
    }


def _times_record(times: Times) -> Json:
    return {**asdict(times), "step_seconds": times.step.total}
