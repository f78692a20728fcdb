"""What a plan is asked for, and the checked question that becomes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from model.attention import best_backend
from model.config import ModelConfig, preset
from model.kernels import best_kernels
from recipes.common.errors import Faults, UserError
from recipes.common.files import why_no_file
from recipes.common.numbers import number
from recipes.common.settings import (
    GpuMemoryGb,
    Part,
    Price,
    SequenceLength,
    number_in,
)
from recipes.engine.batch_plan import BatchPlan
from recipes.engine.ds_config import precision, read_config
from recipes.planning.memory import estimate
from recipes.training.schedule import duration_in_sequences
from recipes.training.settings import DEFAULT_DURATION, DEFAULT_MASK_PROBABILITY, Duration, Gpus

ROOT = Path(__file__).resolve().parents[2]
TokensPerSecond = Annotated[float, number_in(number(0.001, 10**12))]
Gbps = Annotated[float, number_in(number(0.001, 1_000_000))]


@dataclass(frozen=True)
class Hardware:
    """The GPUs, their network and their price."""

    gpus: tuple[Gpus, ...]
    """Numbers of GPUs to compare, such as 8 16 200."""
    gpu: str = "NVIDIA H100 80GB HBM3"
    """Name that the driver gives the GPU."""
    gpu_memory_gb: GpuMemoryGb = 80.0
    """Memory of each GPU in 10^9 bytes."""
    network_gbps: Gbps = 200.0
    """Gbit/s of each GPU between nodes."""
    price_per_gpu_hour: Price = 2.5
    """Dollars for an hour of one GPU (appendix E)."""


@dataclass(frozen=True)
class PlannedRun:
    """The run, as pretrain.py would be told."""

    model: str
    """Preset: rapidbert-tiny, rapidbert-base, rapidbert-large, rapidbert-xl, bert-tiny, bert-base
    or bert-large."""
    deepspeed_config: Path | None = None
    """DeepSpeed JSON; the one of the model's size in ds_configs/ if not given."""
    duration: Duration = DEFAULT_DURATION
    """Length of the run: a number of sequences, or 70k-steps or 178k-steps (of 4,096)."""
    sequence_length: SequenceLength = 128
    """Tokens per sequence."""
    mask_probability: Part = DEFAULT_MASK_PROBABILITY
    """Share of the tokens to predict."""
    recompute: bool = False
    """Plan for pretrain.py --recompute."""


@dataclass(frozen=True)
class Evidence:
    """What times stand on."""

    record: Path = Path("docs/results/throughput.json")
    """Record of benchmark.py throughput; without one there are no times."""
    tokens_per_second_per_gpu: TokensPerSecond | None = None
    """Real tokens per second of one GPU, from the log of a run on one GPU or one node; instead of
    the record."""


@dataclass(frozen=True)
class Settings:
    """Plan a pretraining run: micro-batch, memory, time and cost by the number of GPUs."""

    run: PlannedRun
    hardware: Hardware
    evidence: Evidence = Evidence()
    json: Path | None = None
    """File that takes the plan as JSON, too."""


@dataclass(frozen=True)
class Question:
    """What is planned, checked and complete."""

    settings: Settings
    model: ModelConfig
    deepspeed: dict[str, Any]
    config_path: Path
    """File that `deepspeed` was read from."""
    sequences: int
    """Length of the run."""
    activations: int
    """Bytes that a sequence of a micro-batch keeps on its GPU for the backward pass."""
    record: dict[str, Any] | None
    """Contents of `throughput.json`, if it is of this GPU and sequence length."""

    @property
    def global_batch(self) -> int:
        """Sequences per step, all GPUs together."""
        return int(self.deepspeed["train_batch_size"])


def resolve(settings: Settings, faults: Faults) -> Question:
    """Check the settings and read what they name.

    Args:
        faults: what was found wrong before.

    Raises:
        UserError: all faults at once.
    """
    run = settings.run
    if settings.json and (refusal := why_no_file(settings.json)):
        faults.append(f"--json {settings.json}: {refusal}")
    # A refused model leaves None; its own fault is in `faults` already.
    model = faults.attempt(lambda: preset(run.model)) if run.model else None
    path = run.deepspeed_config
    if path is None and model:
        size = model.name.rpartition("-")[2]
        path = ROOT / "ds_configs" / ("tiny_cpu.json" if size == "tiny" else f"{size}.json")
    deepspeed = faults.attempt(lambda: read_config(path)) if path else None
    if model and (refusal := model.why_not_length(run.sequence_length)):
        faults.append(f"--sequence-length {run.sequence_length}: {refusal}")
    record = faults.attempt(lambda: read_record(settings))
    faults.stop()
    assert model and deepspeed and path
    needed = estimate(
        model,
        deepspeed,
        BatchPlan(1, 1, 1, 1),
        sequence_length=run.sequence_length,
        mask_probability=run.mask_probability,
        attention=best_backend("cuda", precision(deepspeed), model.attention_dropout),
        kernels=best_kernels("cuda"),
        recompute=run.recompute,
    )
    sequences = duration_in_sequences(run.duration)
    return Question(settings, model, deepspeed, path, sequences, needed.activations, record)


def read_record(settings: Settings) -> dict[str, Any] | None:
    """Return the record of `benchmark.py throughput`, if it is of this GPU and sequence length.

    Raises:
        UserError: the file is no such record.
    """
    path = settings.evidence.record
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        same = record["device"] == settings.hardware.gpu
        same = same and record["settings"]["sequence_length"] == settings.run.sequence_length
        record["settings"]["setups"].values()
        for row in record["rows"]:
            row["model"], row["micro_batch"], row["global_batch"]
            row["step_seconds"]["median"], row["sequences_per_step"], row["real_tokens_per_step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no record of benchmark.py throughput ({error!r})") from None
    return record if same else None
