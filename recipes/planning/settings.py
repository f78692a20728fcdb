"""What a plan is asked for, and the checked question that becomes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from model.attention import best_backend
from model.config import ModelConfig, preset
from model.kernels import best_kernels
from recipes.common.errors import Faults
from recipes.common.files import why_no_directory, why_no_file
from recipes.common.gpus import Gpu, find_gpu
from recipes.common.json_content import Json
from recipes.common.numbers import number, whole
from recipes.common.places import DS_CONFIGS, RESULTS
from recipes.common.settings import (
    GpuMemoryGb,
    Part,
    Price,
    SequenceLength,
    number_in,
)
from recipes.engine.batch_plan import BatchPlan
from recipes.engine.ds_config import MOST_SEQUENCES, precision, read_config
from recipes.planning.memory import estimate
from recipes.planning.records import MeasuredModel, find_record
from recipes.training.schedule import NAMED_DURATIONS, duration_in_sequences
from recipes.training.settings import DEFAULT_MASK_PROBABILITY, Duration, Gpus

SIMULATED = ("rapidbert-base", "rapidbert-large")
Gbps = Annotated[float, number_in(number(0.001, 1_000_000))]
Batch = Annotated[int, number_in(whole(1, MOST_SEQUENCES))]
Tokens = Annotated[float, number_in(number(1, 10**15))]


@dataclass(frozen=True)
class Hardware:
    """The GPUs, their network and their price."""

    gpus: tuple[Gpus, ...] = (8, 16, 32, 64, 128, 200)
    """Numbers of GPUs to compare."""
    gpu: str = "h100"
    """a100-40, a100-80, h100, h200, b200; a driver's name of one of these; or a JSON file that
    describes another: name, peak_bf16_tflops, memory_gb, memory_gb_per_s, multiprocessors,
    nvlink_gb_per_s, network_gbit_per_s, dollars_per_hour, and gpus_per_node where it is not 8
    (docs/cluster.md has an example)."""
    gpu_memory_gb: GpuMemoryGb | None = None
    """Memory of each GPU in 10^9 bytes, instead of the table's (recipes/common/gpus.py)."""
    network_gbps: Gbps | None = None
    """Gbit/s of each GPU to other nodes, instead of the table's."""
    price_per_gpu_hour: Price | None = None
    """Dollars for an hour of one GPU, instead of the table's."""


@dataclass(frozen=True)
class PlannedRun:
    """The run, as pretrain.py would be told."""

    model: str | None = None
    """Preset: rapidbert-tiny, rapidbert-base, rapidbert-large, rapidbert-xl, bert-tiny, bert-base
    or bert-large. With --simulate rapidbert-base and rapidbert-large if not given."""
    deepspeed_config: Path | None = None
    """DeepSpeed JSON; the one of the model's size in ds_configs/ if not given."""
    global_batch: Batch | None = None
    """Sequences of a step on all GPUs together; the JSON's train_batch_size if not given."""
    duration: Duration | None = None
    """Length of the run: a number of sequences, or 70k-steps or 178k-steps (of 4,096); both of
    these are shown if neither this nor --tokens is given."""
    tokens: Tokens | None = None
    """Length of the run in tokens of full sequences, such as 1e10."""
    sequence_length: SequenceLength = 128
    """Tokens per sequence."""
    mask_probability: Part = DEFAULT_MASK_PROBABILITY
    """Share of the tokens to predict."""
    recompute: bool = False
    """Plan for pretrain.py --recompute."""


@dataclass(frozen=True)
class Evidence:
    """What times stand on."""

    record: Path | None = None
    """Record of benchmark.py throughput of this GPU, or a directory of records; docs/results if not
    given. Without one of this GPU times are predicted from data sheets."""


@dataclass(frozen=True)
class Settings:
    """Plan a pretraining run before renting GPUs: micro-batch, memory, time, cost, and the lines to
    paste.

    python recipes/plan.py --model rapidbert-large --gpu h200 --gpus 8 64 200
    """

    run: PlannedRun = PlannedRun()
    hardware: Hardware = Hardware()
    evidence: Evidence = Evidence()
    json: Path | None = None
    """File that takes the plan as JSON, too."""
    simulate: bool = False
    """Draw Base and Large on all numbers of GPUs, with constant and with growing global batches,
    and write figure, table and JSON."""
    output: Path | None = None
    """Directory for what --simulate writes; runs/plan if not given."""


@dataclass(frozen=True)
class Length:
    """How long the run is."""

    name: str
    sequences: int


@dataclass(frozen=True)
class Question:
    """What is planned, checked and complete."""

    settings: Settings
    model: ModelConfig
    deepspeed: Json
    """As in the file, with the global batch that is planned."""
    config_path: Path
    """File that `deepspeed` was read from."""
    gpu: Gpu
    """With the memory, network and price that are planned."""
    lengths: tuple[Length, ...]
    """Lengths of the run to give hours and dollars for."""
    activations: int
    """Bytes that a sequence of a micro-batch keeps on its GPU for the backward pass."""
    record: MeasuredModel | None
    """What was measured of this model on this GPU."""

    @property
    def global_batch(self) -> int:
        """Sequences per step, all GPUs together."""
        return int(self.deepspeed["train_batch_size"])

    @property
    def memory_gb(self) -> float:
        """Memory of a GPU in 10^9 bytes."""
        assert self.gpu.memory_gb
        return self.gpu.memory_gb


def resolve(settings: Settings, faults: Faults, model_name: str | None = None) -> Question:
    """Check the settings and read what they name.

    Args:
        faults: what was found wrong before.
        model_name: of --simulate, where the settings may name none.

    Raises:
        UserError: all faults at once.
    """
    run, hardware, name = settings.run, settings.hardware, model_name or settings.run.model
    faults += _output_faults(settings)
    if name is None:
        faults.append("--model is needed")
    # A refused model leaves None; its own fault is in `faults` already.
    model = faults.attempt(lambda: preset(name)) if name else None
    path = run.deepspeed_config
    if path is None and model:
        size = model.name.rpartition("-")[2]
        path = DS_CONFIGS / ("tiny_cpu.json" if size == "tiny" else f"{size}.json")
    deepspeed = faults.attempt(lambda: read_config(path)) if path else None
    if model and (refusal := model.why_not_length(run.sequence_length)):
        faults.append(f"--sequence-length {run.sequence_length}: {refusal}")
    if run.duration is not None and run.tokens is not None:
        faults.append("--duration and --tokens: a run has one length, give one of them")
    gpu = faults.attempt(lambda: find_gpu(hardware.gpu)) if hardware.gpu else None
    record = None
    if gpu and model:
        record = faults.attempt(
            lambda: find_record(
                settings.evidence.record,
                RESULTS,
                gpu.name,
                model.name,
                run.sequence_length,
                run.recompute,
            )
        )
    faults.stop()
    assert model and deepspeed and path and gpu
    if run.global_batch is not None:
        deepspeed = {**deepspeed, "train_batch_size": run.global_batch}
    return Question(
        settings,
        model,
        deepspeed,
        path,
        _as_asked(gpu, hardware),
        _lengths(run),
        _activations(model, deepspeed, run),
        record,
    )


def _output_faults(settings: Settings) -> list[str]:
    found = []
    if settings.json and (refusal := why_no_file(settings.json)):
        found.append(f"--json {settings.json}: {refusal}")
    if settings.simulate and settings.json:
        found.append("--json FILE takes a plan; --simulate writes its JSON into --output")
    if settings.output and not settings.simulate:
        found.append(
            f"--output {settings.output}: takes what --simulate draws; --json FILE takes a plan"
        )
    elif settings.output and (refusal := why_no_directory(settings.output)):
        found.append(f"--output {settings.output}: {refusal}")
    return found


def _as_asked(gpu: Gpu, hardware: Hardware) -> Gpu:
    """The GPU with what the options say of it in the table's place."""
    changes = {
        "memory_gb": hardware.gpu_memory_gb,
        "network_gbit_per_s": hardware.network_gbps,
        "dollars_per_hour": hardware.price_per_gpu_hour,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(gpu, **given)  # type: ignore[arg-type]  # all three are float | None


def _lengths(run: PlannedRun) -> tuple[Length, ...]:
    if run.tokens is not None:
        name = f"{run.tokens / 1e9:,g}B tokens"
        return (Length(name, math.ceil(run.tokens / run.sequence_length)),)
    if run.duration is None:
        return tuple(Length(name, count) for name, count in NAMED_DURATIONS.items())
    sequences = duration_in_sequences(run.duration)
    named = run.duration in NAMED_DURATIONS
    return (Length(run.duration if named else f"{sequences:,} sequences", sequences),)


def _activations(model: ModelConfig, deepspeed: Json, run: PlannedRun) -> int:
    return estimate(
        model,
        deepspeed,
        BatchPlan(1, 1, 1, 1),
        sequence_length=run.sequence_length,
        mask_probability=run.mask_probability,
        attention=best_backend("cuda", precision(deepspeed), model.attention_dropout),
        kernels=best_kernels("cuda"),
        recompute=run.recompute,
    ).activations
