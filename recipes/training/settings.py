"""Settings of pretraining: what a command line may say, by what a value may change.

`config.json` records all of them. Those of `Identity` are compared when a run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from model.config import PRESETS, ModelConfig
from recipes.common.files import why_no_directory
from recipes.common.numbers import number, whole
from recipes.common.settings import (
    Count,
    CountOrNone,
    GpuMemoryGb,
    LearningRate,
    Minutes,
    Part,
    Price,
    Seed,
    SequenceLength,
    Share,
    WeightDecay,
    checked,
    number_in,
)
from recipes.corpus.sequence_order import Documents
from recipes.engine.kernel_choice import KernelChoice
from recipes.training.schedule import duration_in_sequences

Duration = Annotated[str, checked(duration_in_sequences)]
AdamBeta = Annotated[float, number_in(number(0, 1, below=True))]
AdamEps = Annotated[float, number_in(number(1e-20, 1))]
TensorParallel = Annotated[int, number_in(whole(1, 1024))]
Workers = Annotated[int, number_in(whole(0, 256))]
StepSeconds = Annotated[float, number_in(number(0.001, 604_800))]
Gpus = Annotated[int, number_in(whole(1, 100_000))]

PEAK_LEARNING_RATE = {"tiny": 1e-3, "base": 5e-4, "large": 2e-4, "xl": 1e-4}
"""Peak learning rates by model size: Base and Large as published; XL and the toy scaled by width.
Tiny's belongs to a batch of 16."""
DEFAULT_DURATION = "70k-steps"
DEFAULT_DOCUMENTS: Documents = "split"
DEFAULT_MASK_PROBABILITY = 0.30


def size_of(model: ModelConfig) -> str:
    """Return the word for a model's size, a key of PEAK_LEARNING_RATE.

    For a model that is no preset it is that of the preset whose width is nearest.
    """
    word = model.name.rpartition("-")[2]
    if word in PEAK_LEARNING_RATE:
        return word
    nearest = min(PRESETS.values(), key=lambda p: abs(math.log(p.hidden_size / model.hidden_size)))
    return nearest.name.rpartition("-")[2]


def peak_learning_rate(model: ModelConfig) -> float:
    """Return the peak learning rate that belongs to the model's size."""
    return PEAK_LEARNING_RATE[size_of(model)]


@dataclass(frozen=True)
class Places:
    """Where a run reads and writes."""

    data: Path
    """Directory written by prepare_data.py."""
    output: Path
    """Directory of the run; resumed if it holds one."""
    deepspeed_config: Path
    """DeepSpeed JSON (ds_configs/). What of it decides numbers is part of the run's identity."""
    init_from: Path | None = None
    """Continue the pretraining of these weights, with a schedule of its own: an export, a run that
    has one, or a directory of MosaicBERT, BERT or JinaBERT-v2. Embeddings of the pieces that the
    data's tokenizer shares with theirs are carried over. The weights are part of the run's
    identity."""


@dataclass(frozen=True)
class Identity:
    """What decides the result: the same in every part of a run."""

    model: str | None = None
    """Preset: rapidbert-tiny, rapidbert-base, rapidbert-large, rapidbert-xl, bert-tiny, bert-base
    or bert-large. With --init-from it may be left out: the model is that of the weights."""
    duration: Duration | None = None
    """Length of the run: a number of sequences, or 70k-steps or 178k-steps (of 4,096);
    70k-steps if neither this nor --minutes is given."""
    minutes: Minutes | None = None
    """Train for so long instead, evaluation and saving not counted; the learning rate follows the
    clock."""
    sequence_length: SequenceLength = 128
    """Tokens, [CLS] and [SEP] included."""
    documents: Documents | None = None
    """Split documents into consecutive sequences, or truncate each to one, as the paper does;
    split uses all of the text. If not given: split, with --paper truncate."""
    mask_probability: Part | None = None
    """Share of tokens to predict. If not given: 0.3, with --paper 0.15 for BERT."""
    learning_rate: LearningRate | None = None
    """Peak; by model size if not given: tiny 0.001, base 0.0005, large 0.0002, xl 0.0001, for
    weights of another size that of the nearest width."""
    warmup_fraction: Share = 0.06
    """Share of the steps."""
    final_lr_fraction: Share = 0.02
    """Share of the peak learning rate at the last step."""
    beta1: AdamBeta = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: AdamBeta = 0.98
    """AdamW's decay of the mean squared gradient."""
    eps: AdamEps = 1e-6
    """AdamW's addend to the denominator."""
    weight_decay: WeightDecay = 1e-5
    """Per step at peak learning rate, as published; AdamW is handed this / peak."""
    seed: Seed = 17
    """Seed of weights, order, masking and dropout."""
    tensor_parallel: TensorParallel = 1
    """Ranks that share one copy of the model."""


@dataclass(frozen=True)
class Adjustable:
    """What may change when a run goes on: it changes speed, or rounding at most."""

    paper: bool = False
    """Do the published run to the letter: one sequence of each document, BERT's masking rate for
    BERT; refuses settings that are not the paper's (recipes/training/published_run.py)."""
    recompute: bool = False
    """Keep only the inputs of the layers for the backward pass: less memory, more time."""
    cuda_graphs: Literal["off", "auto"] = "off"
    """Launch the kernels of a micro-batch at once: for small micro-batches, whose kernels a GPU
    does faster than one by one they are launched. auto: on a GPU, if a trial at the start computes
    the same in less time."""
    loader_workers: Workers = 2
    """Processes per rank that make batches."""
    log_every: Count = 10
    """Steps between records of the log."""
    eval_every: CountOrNone = 1000
    """Steps between evaluations; 0: at the end only."""
    eval_sequences: Count = 4096
    """Held-out sequences per evaluation."""
    save_every: CountOrNone = 1000
    """Steps between checkpoints; 0: at the end only."""
    export_at: tuple[Part, ...] = ()
    """Evaluate and export at these shares of the run as well, 0.25 to at-25/."""
    keep: Count = 2
    """Checkpoints kept, the newest."""
    keep_every: CountOrNone = 0
    """Keep the checkpoints of every so many steps as well; 0: of none."""
    on_save_failure: Literal["continue", "stop"] = "continue"
    """What to do when a checkpoint cannot be written, a full disk for instance; the older ones
    stay."""
    step_timeout: StepSeconds = 600.0
    """Seconds after which a step hangs, and the process ends; start-up, evaluation and saving have
    at least half an hour."""
    price_per_gpu_hour: Price = 2.5
    """Dollars (appendix E)."""
    gpu_memory_gb: GpuMemoryGb | None = None
    """Memory of each GPU, in 10^9 bytes, against which the estimate is checked before the start;
    what the GPU says if not given, and 80 with --dry-run."""
    kernel_choice: KernelChoice = KernelChoice()  # noqa: RUF009  # frozen


@dataclass(frozen=True)
class Rehearsal:
    """A look at the run without starting it."""

    dry_run: bool = False
    """Print the resolved run or its faults, and exit."""
    gpus: Gpus | None = None
    """With --dry-run: as if there were so many GPUs, 8 to a node."""


@dataclass(frozen=True)
class Settings:
    """Masked-language-model pretraining of RapidBERT through DeepSpeed.

    A run that is started again with the same --output goes on from its newest whole checkpoint.
    """

    places: Places
    identity: Identity
    adjustable: Adjustable = Adjustable()
    rehearsal: Rehearsal = Rehearsal()

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with these settings whatever model, data and machine there are."""
        places, identity, rehearsal = self.places, self.identity, self.rehearsal
        if identity.model is None and places.init_from is None:
            yield "--model: name a preset, or weights to start from with --init-from"
        if self.adjustable.paper and places.init_from is not None:
            yield "--paper: the paper starts from random weights; leave out --init-from or --paper"
        if identity.minutes is not None and identity.duration is not None:
            yield "--minutes: not allowed with --duration; leave out one of them"
        if refusal := why_no_directory(places.output):
            yield f"--output {places.output}: {refusal}"
        elif places.output.resolve() == places.data.resolve():
            yield (
                f"--output {places.output}: holds the data, and preparing them again would put "
                "another tokenizer under the run; name another directory"
            )
        if rehearsal.gpus is not None and not rehearsal.dry_run:
            yield "--gpus: only with --dry-run; a launcher starts"
