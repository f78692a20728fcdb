"""Plan a pretraining run: the micro-batch that fits, and what a number of GPUs makes of it.

    python recipes/plan.py --model rapidbert-large --gpus 8 16 32 64 128 200 --gpu-memory-gb 80
    python recipes/plan.py --model rapidbert-base --gpus 8 64 --tokens-per-second-per-gpu 500000

Batches and memory are arithmetic (`device_memory.py`). Times are predictions, and stand on a
measurement: `throughput.json` of `benchmark.py throughput` where it is of this GPU, or a rate that
you have seen in a run's log. Without one there is only a ceiling, which no run reaches.

A step takes what its sequences took where it was measured, and on top of it, once, the gradients'
all-reduce and ZeRO's gathering of the weights, as if nothing of them were hidden behind the
backward pass:

    bytes per GPU = (n - 1) / n x parameters x (2 x bytes of a gradient + bytes of a weight)

over --network-gbps, or inside of one node --node-gbps; latency, stragglers and input are left out.
From Table S2's 8 GPUs, at 200 Gbit/s, it predicts 319, 182 and 113 ms a step on 16, 32 and 64 GPUs,
where 279, 166 and 110 were measured: 14, 10 and 3% too slow. Without the network it would predict
280, 140 and 70. (The published code hides part of its communication, all of it on 16 GPUs; and its
micro-batches on 64 GPUs were smaller, hence slower, than on 8.)
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from model.attention import best_backend
from model.config import PRESETS, ModelConfig, preset, training_flops
from model.kernels import best_kernels
from recipes.common.cli import (
    GPU_MEMORY_GB,
    PART,
    PRICE,
    SEQUENCE_LENGTH,
    ArgumentParser,
    checked,
    number,
    whole,
)
from recipes.common.entry import run
from recipes.common.errors import Faults, UserError
from recipes.common.files import why_no_file, write_whole
from recipes.common.gpus import MEMORY_BANDWIDTH, PEAK_BF16_FLOPS, peak_flops
from recipes.engine.batch_plan import BatchPlan, plan_batches
from recipes.engine.ds_config import precision, read_config
from recipes.planning.memory import MemoryEstimate, estimate, state_bytes
from recipes.training.schedule import duration_in_sequences
from recipes.training.throughput import mfu

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path("docs/results/throughput.json")
MICRO_BATCH_KEY = "train_micro_batch_size_per_gpu"
CARDS_GB = (40, 80, 94, 141)
GPUS_PER_NODE = 8

# What is reached of the data sheets' numbers on an H200: 700 of 989 TFLOP/s over the matmuls of a
# step (790 in a single one of 8192 x 8192 x 8192), 4.3 of 4.8 TB/s in copies.
MATMUL_SHARE, COPY_SHARE = 700 / 989, 4.3 / 4.8


@dataclass(frozen=True)
class Measurement:
    """A step that was timed."""

    seconds: float
    sequences: float
    """On each GPU."""
    tokens_per_sequence: float
    """Real ones."""
    gpus: int
    source: str


@dataclass(frozen=True)
class Forecast:
    """One number of GPUs; times and what follows from them are None where nothing was measured."""

    gpus: int
    micro_batch: int
    accumulation: int
    global_batch: int
    steps: int
    memory_gb: float
    ceiling_tokens_per_second: float | None
    ceiling_hours: float | None
    communication_seconds: float
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    hours: float | None = None
    dollars: float | None = None
    measured: str | None = None


@dataclass(frozen=True)
class Question:
    """What is planned, resolved and checked."""

    options: Any
    model: ModelConfig
    deepspeed: dict[str, Any]
    config_path: Path
    activations: int
    """Bytes per sequence of a micro-batch."""
    record: dict[str, Any] | None
    """`throughput.json`, where it is of this device."""

    @property
    def global_batch(self) -> int:
        return self.deepspeed["train_batch_size"]


def memory(question: Question, gpus: int, micro_batch: int) -> MemoryEstimate:
    """Bytes on each of `gpus` GPUs."""
    states = state_bytes(question.model.parameters(), question.deepspeed, gpus)
    return MemoryEstimate(*states, micro_batch * question.activations)


def largest_micro_batch(question: Question, gpus: int, capacity_gb: float) -> int:
    """Sequences that fit, 0 where not even one does."""
    free = int(capacity_gb * 1e9) - memory(question, gpus, 0).total
    return max(0, free // question.activations)


def best_plan(global_batch: int, largest: int, gpus: int) -> BatchPlan:
    """The largest micro-batch of at most `largest` sequences that cuts the global batch evenly.

    Where the GPUs do not divide it, it is rounded as pretraining does.

    Raises:
        UserError: more GPUs than sequences.
    """
    share, rest = divmod(global_batch, gpus)
    if rest or not share:
        return plan_batches(global_batch, largest, gpus)
    micro_batch = max(size for size in range(1, min(share, largest) + 1) if share % size == 0)
    return BatchPlan(global_batch, micro_batch, share // micro_batch, gpus)


def communication_bytes(parameters: int, deepspeed: dict[str, Any], plan: BatchPlan) -> float:
    """What each GPU sends per step: ring all-reduce of gradients, all-gather of ZeRO's weights.

    DeepSpeed 0.19 all-reduces gradients at every stage; at stage 2 once per micro-batch.
    """
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    weight = 2 if precision(deepspeed) == "bf16" else 4
    gradient = {"fp32": 4, "bf16": 2}.get(deepspeed.get("communication_data_type", ""), weight)
    all_reduces = plan.accumulation if stage == 2 else 1
    each = 2 * gradient * all_reduces + (weight if stage else 0)
    return (plan.data_parallel - 1) / plan.data_parallel * parameters * each


def communication_seconds(question: Question, plan: BatchPlan) -> float:
    """Of one step, with nothing hidden behind computation."""
    options = question.options
    inside = plan.data_parallel <= GPUS_PER_NODE
    gbps = options.node_gbps if inside else options.network_gbps
    sent = communication_bytes(question.model.parameters(), question.deepspeed, plan)
    return 8 * sent / (gbps * 1e9)


def ceiling(
    model: ModelConfig, device: str, sequence_length: int, mask_probability: float
) -> float | None:
    """Tokens per second of one GPU if matmuls and memory ran as fast as they ever do, nothing else
    took time, and every pass that can be fused were; None for a device that is not in the tables.
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
    # Values read and written per token and layer, forward and backward: attention 12 widths, both
    # residual sums with their norms 12, the activation 8 inner widths if gated, 5 if not.
    inner = (5 if model.feed_forward == "standard" else 8) * model.ffn_size
    moved = 2 * model.num_layers * (24 * model.hidden_size + inner) * sequence_length
    return sequence_length / (flops / (MATMUL_SHARE * peak) + moved / (COPY_SHARE * bandwidth))


def measurement(question: Question, plan: BatchPlan) -> Measurement | None:
    """What the prediction for `plan` stands on: the given rate, or the nearest row of the record.

    The nearest has a similar number of sequences per step, then of sequences per micro-batch.
    """
    options = question.options
    if options.tokens_per_second_per_gpu is not None:
        sequences = question.global_batch / options.measured_gpus
        tokens = options.tokens_per_sequence or options.sequence_length
        seconds = sequences * tokens / options.tokens_per_second_per_gpu
        given = f"given, on {options.measured_gpus} GPUs"
        return Measurement(seconds, sequences, tokens, options.measured_gpus, given)
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
        1,
        f"{row['micro_batch']} x {row['global_batch'] // row['micro_batch']} on 1 GPU",
    )


def _rows(question: Question) -> list[dict[str, Any]]:
    """The record's rows of this model, computed in the same way."""
    record, name = question.record, question.model.name
    if record is None:
        return []
    setup = record["settings"]["setups"].get(name, {})
    same = setup.get("recompute") == question.options.recompute
    return [row for row in record["rows"] if same and row["model"] == name]


def forecast(question: Question, gpus: int) -> Forecast:
    """The run on `gpus` GPUs.

    Raises:
        UserError: it does not fit, or there are more GPUs than sequences.
    """
    options, model = question.options, question.model
    largest = largest_micro_batch(question, gpus, options.gpu_memory_gb)
    if not largest:
        raise UserError(
            f"{gpus} GPUs: not one sequence fits into {options.gpu_memory_gb:g} GB: "
            f"{memory(question, gpus, 1)}; use more GPUs, ZeRO, or --recompute"
        )
    plan = best_plan(question.global_batch, largest, gpus)
    steps = math.ceil(duration_in_sequences(options.duration) / plan.global_batch)
    communication = communication_seconds(question, plan)
    limit = ceiling(model, options.gpu, options.sequence_length, options.mask_probability)
    tokens = plan.global_batch * options.sequence_length
    known: dict[str, Any] = {}
    timed = measurement(question, plan)
    if timed is not None:
        there = BatchPlan(question.global_batch, 1, 1, timed.gpus)
        alone = timed.seconds - communication_seconds(question, there)
        share = plan.micro_batch * plan.accumulation
        seconds = alone * share / timed.sequences + communication
        rate = plan.global_batch * timed.tokens_per_sequence / seconds
        peak = peak_flops(options.gpu)
        hours = steps * seconds / 3600
        known = {
            "step_seconds": seconds,
            "tokens_per_second": rate,
            "mfu": peak and mfu(model.parameters(), rate, gpus, peak),
            "hours": hours,
            "dollars": hours * gpus * options.price_per_gpu_hour,
            "measured": timed.source,
        }
    return Forecast(
        gpus=gpus,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        global_batch=plan.global_batch,
        steps=steps,
        memory_gb=memory(question, gpus, plan.micro_batch).total / 1e9,
        ceiling_tokens_per_second=limit and gpus * limit,
        ceiling_hours=limit and steps * tokens / (gpus * limit) / 3600,
        communication_seconds=communication,
        **known,
    )


def forecast_table(forecasts: Sequence[Forecast]) -> list[tuple[str, ...]]:
    """Rows of text under a header."""
    measured = any(each.measured for each in forecasts)
    times = ("ms a step", "tokens/s", "MFU", "hours", "dollars", "measured") if measured else ()
    rows: list[tuple[str, ...]] = [
        ("GPUs", "micro-batch", "accumulation", "global batch", "steps", "GB per GPU")
        + ("network ms", *(times or ("time",)), "ceiling tokens/s", "ceiling hours")
    ]
    for each in forecasts:
        known = (
            _shown(each.step_seconds and 1e3 * each.step_seconds, ",.0f"),
            _shown(each.tokens_per_second, ",.0f"),
            _shown(each.mfu, ".1%"),
            _shown(each.hours, ",.2f"),
            _shown(each.dollars, ",.2f"),
            each.measured or "not measured",
        )
        rows.append(
            (
                *map(str, (each.gpus, each.micro_batch, each.accumulation)),
                f"{each.global_batch:,}",
                f"{each.steps:,}",
                f"{each.memory_gb:.1f}",
                f"{1e3 * each.communication_seconds:.0f}",
                *(known if measured else known[-1:]),
                _shown(each.ceiling_tokens_per_second, ",.0f"),
                _shown(each.ceiling_hours, ",.2f"),
            )
        )
    return rows


def _shown(value: float | None, form: str) -> str:
    return "unknown" if value is None else f"{value:{form}}"


def card_table(question: Question) -> list[tuple[str, ...]]:
    """The largest micro-batch for cards of other sizes, whether it cuts a batch evenly or not."""
    gpus = question.options.gpus
    header = ("GB", *(f"{count} GPUs" for count in gpus))
    return [
        header,
        *(
            (f"{card}", *(str(largest_micro_batch(question, count, card)) for count in gpus))
            for card in CARDS_GB
        ),
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[cell.rjust(width) for cell, width in zip(r, widths, strict=True)] for r in rows]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def advice(question: Question, forecasts: Sequence[Forecast]) -> str:
    """Which line of which file to change to which micro-batch."""
    path = question.config_path
    lines = path.read_text("utf-8").splitlines()
    number = next(n for n, line in enumerate(lines, 1) if f'"{MICRO_BATCH_KEY}"' in line)
    where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    now = question.deepspeed[MICRO_BATCH_KEY]
    # It is a limit: the largest serves all, where pretraining then cuts the batch the same way.
    one = max(each.micro_batch for each in forecasts)
    sizes = {one}
    for each in forecasts:
        plan = plan_batches(question.global_batch, one, each.gpus)
        if (plan.micro_batch, plan.accumulation) != (each.micro_batch, each.accumulation):
            sizes = {each.micro_batch for each in forecasts}
    if sizes == {now}:
        return f'{where}, line {number}: "{MICRO_BATCH_KEY}": {now} is right'
    said = []
    for size in sorted(sizes, reverse=True):
        counts = [str(each.gpus) for each in forecasts if each.micro_batch == size]
        who = "" if len(sizes) == 1 else f" on {', '.join(counts)} GPUs"
        said.append(f"{size}{who}")
    return f'{where}, line {number}: "{MICRO_BATCH_KEY}": {now}, better {"; ".join(said)}'


def explanation(question: Question, forecasts: Sequence[Forecast]) -> list[str]:
    """What the numbers stand on, line by line."""
    options = question.options
    lines = ["Memory is an estimate, for full sequences."]
    fits = ((question.record or {}).get("largest_micro_batch") or {}).get(question.model.name)
    if fits:
        lines[0] += (
            f" Measured on {options.gpu}: micro-batches of {fits['micro_batch']} sequences fit, of "
            f"{2 * fits['micro_batch']} do not."
        )
    if any(each.measured for each in forecasts):
        source = "the rate given" if options.tokens_per_second_per_gpu else str(options.record)
        lines.append(f"Times are predictions from {source}, not measurements.")
    else:
        lines.append(
            f"Times: not measured. {options.record} has no {question.model.name} on {options.gpu}; "
            "benchmark.py throughput makes it, or give --tokens-per-second-per-gpu."
        )
    lines.append(
        f"Network: ring all-reduce and all-gather at {options.network_gbps:g} Gbit/s per GPU "
        f"({options.node_gbps:g} inside a node of {GPUS_PER_NODE}), nothing of it hidden; latency, "
        "stragglers and input left out. Checked on Table S2: up to 14% too slow."
    )
    lines.append(
        "Ceiling: a bound, not a prediction. Matmuls at "
        f"{MATMUL_SHARE:.0%} of the data sheet's peak, fused memory traffic at {COPY_SHARE:.0%} of "
        "its bandwidth, nothing else, no network."
    )
    return lines


def resolve(options: Any) -> Question:
    """Raises UserError with all faults at once."""
    faults = Faults(_option_faults(options))
    model = faults.attempt(lambda: preset(options.model))
    path = options.deepspeed_config
    if path is None and model:
        size = model.name.rpartition("-")[2]
        path = ROOT / "ds_configs" / ("tiny_cpu.json" if size == "tiny" else f"{size}.json")
    deepspeed = path and faults.attempt(lambda: read_config(path))
    if model and (refusal := model.why_not_length(options.sequence_length)):
        faults.append(f"--sequence-length {options.sequence_length}: {refusal}")
    record = faults.attempt(lambda: read_record(options.record, options))
    faults.stop()
    assert model and deepspeed and path
    activations = estimate(
        model,
        deepspeed,
        BatchPlan(1, 1, 1, 1),
        sequence_length=options.sequence_length,
        mask_probability=options.mask_probability,
        attention=best_backend("cuda", precision(deepspeed), model.attention_dropout),
        kernels=best_kernels("cuda"),
        recompute=options.recompute,
    ).activations
    return Question(options, model, deepspeed, Path(path), activations, record)


def read_record(path: Path, options: Any) -> dict[str, Any] | None:
    """The record of `benchmark.py throughput`, if it is of this device and sequence length.

    Raises:
        UserError: a file that is none.
    """
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
        same = record["device"] == options.gpu
        same = same and record["settings"]["sequence_length"] == options.sequence_length
        record["settings"]["setups"].values()
        for row in record["rows"]:
            row["model"], row["micro_batch"], row["global_batch"]
            row["step_seconds"]["median"], row["sequences_per_step"], row["real_tokens_per_step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no record of benchmark.py throughput ({error!r})") from None
    return record if same else None


def _option_faults(options: Any) -> list[str]:
    faults = list(options.faults)
    tokens = options.tokens_per_sequence
    if tokens is not None and tokens > options.sequence_length:
        faults.append(f"--tokens-per-sequence {tokens:g}: at most {options.sequence_length}")
    if options.json and (refusal := why_no_file(options.json)):
        faults.append(f"--json {options.json}: {refusal}")
    return faults


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    question = resolve(options)
    faults = Faults()
    found = [faults.attempt(partial(forecast, question, count)) for count in options.gpus]
    faults.stop()
    forecasts = [each for each in found if each is not None]
    model, deepspeed = question.model, question.deepspeed
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    print(
        f"{model.name}, {model.parameters() / 1e6:.1f}M parameters, {precision(deepspeed)}, ZeRO "
        f"stage {stage}, {options.sequence_length} tokens per sequence, "
        f"{duration_in_sequences(options.duration):,} sequences, on {options.gpu} of "
        f"{options.gpu_memory_gb:g} GB at ${options.price_per_gpu_hour:g} an hour\n"
    )
    if peak_flops(options.gpu) is None:
        print(f"peak of {options.gpu} unknown: no MFU, no ceiling; known: {_known_gpus()}\n")
    print(markdown(forecast_table(forecasts)))
    print("\nLargest micro-batch that fits, in sequences:\n")
    print(markdown(card_table(question)))
    print(f"\n{advice(question, forecasts)}\n")
    lines = explanation(question, forecasts)
    print("\n".join(f"- {line}" for line in lines))
    if options.json:
        content = {
            "model": model.name,
            "parameters": model.parameters(),
            "deepspeed": deepspeed,
            "options": {name: _plain(value) for name, value in vars(options).items()},
            "forecasts": [asdict(each) for each in forecasts],
            "largest_micro_batch": [
                {"gb": card, "gpus": n, "sequences": largest_micro_batch(question, n, card)}
                for card in CARDS_GB
                for n in options.gpus
            ],
            "stands_on": lines,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.json, (json.dumps(content, indent=1) + "\n").encode())


def _known_gpus() -> str:
    return ", ".join(PEAK_BF16_FLOPS)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def parse_arguments(arguments: Sequence[str] | None = None) -> Any:
    parser = ArgumentParser(
        refuse=False, description="Plan a pretraining run: micro-batch, memory, time, cost."
    )
    add = parser.add_argument
    add("--model", required=True, help=f"preset: {', '.join(PRESETS)}")
    add(
        "--gpus",
        type=whole(1, 100_000),
        nargs="+",
        required=True,
        help="numbers of GPUs, e.g. 8 16 200",
    )
    add("--gpu", default="NVIDIA H100 80GB HBM3", help="name that the driver gives it")
    add("--gpu-memory-gb", type=GPU_MEMORY_GB, default=80.0, help="of each GPU")
    add("--deepspeed-config", type=Path, help="DeepSpeed JSON; by model size if not given")
    add(
        "--duration",
        type=checked(duration_in_sequences),
        default="70k-steps",
        help="sequences, or 70k-steps or 178k-steps (of 4,096)",
    )
    add("--sequence-length", type=SEQUENCE_LENGTH, default=128, help="tokens")
    add("--mask-probability", type=PART, default=0.30, help="share of tokens to predict")
    add("--recompute", action="store_true", help="plan for pretrain.py --recompute")
    add("--record", type=Path, default=RECORD, help="of benchmark.py throughput")
    add(
        "--tokens-per-second-per-gpu",
        type=number(0.001, 10**12),
        help="real tokens, from the log of a run with this global batch, instead of the record",
    )
    add("--measured-gpus", type=whole(1, 100_000), default=1, help="of that run")
    add(
        "--tokens-per-sequence",
        type=number(1, 65_536),
        help="of that run; its length if not given",
    )
    add(
        "--network-gbps",
        type=number(0.001, 1_000_000),
        default=200.0,
        help="Gbit/s of each GPU between nodes",
    )
    add(
        "--node-gbps",
        type=number(0.001, 1_000_000),
        default=2400.0,
        help="Gbit/s of each GPU inside a node (NVLink)",
    )
    add("--price-per-gpu-hour", type=PRICE, default=2.5, help="dollars (appendix E)")
    add("--json", type=Path, metavar="FILE", help="write it as JSON, too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
