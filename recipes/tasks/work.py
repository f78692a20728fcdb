"""A finetuning as it is passed around: what it starts from, what it does, and of which kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model.config import ModelConfig, ModelOptions
from model.weights import Head
from recipes.common.json_content import Json
from recipes.corpus.tokenizer import Tokenizer
from recipes.engine.kernel_choice import KernelChoice
from recipes.engine.world import World
from recipes.tasks.classification_batches import PackedExamples
from recipes.tasks.classification_data import TaskData
from recipes.tasks.finetune_settings import Checks, OwnData, Settings
from recipes.tasks.glue_tasks import Task
from recipes.tasks.own_data import LabelScale
from recipes.tasks.results import run_name

WARMUP_FRACTION = 0.06

Metrics = dict[str, dict[str, float]]
"""Metrics of each development set, by its name and theirs."""


@dataclass(frozen=True)
class Start:
    """What an export gives a finetuning to start from."""

    config: ModelConfig
    weights: dict[str, Tensor]
    """The encoder, and the pooler of a finetuned model; the classification head is always new."""
    description: Json
    """The export's `config.json`."""

    @property
    def task(self) -> str | None:
        """The task that the export was finetuned on; None for a pretrained one."""
        name: str | None = self.description.get("task", {}).get("name")
        return name


@dataclass(frozen=True)
class Shared:
    """What all tasks that start from one export with the same settings share."""

    start: Start
    tokenizer: Tokenizer
    deepspeed: Json
    """DeepSpeed's configuration."""
    kernel_choice: KernelChoice
    """Kernels by name, none of them `auto`."""


@dataclass(frozen=True)
class Measured:
    """What came of a development set."""

    metrics: dict[str, float]
    files: dict[str, bytes] = field(default_factory=dict)
    """What was predicted, as files by their names; empty where no one reads such."""


@dataclass(frozen=True)
class Kind:
    """What makes finetunings of one kind different from others; the rows are in `kinds.py`."""

    head: Head
    """What stands on the encoder in the export."""
    columns: Callable[[OwnData], Checks]
    """What it wants of the columns that are named on the command line."""
    load: Callable[[Settings], TaskData[Any]]
    """Reads data of one's own; raises UserError with all its faults."""
    metrics: Callable[[TaskData[Any]], tuple[str, ...]]
    """Names of the metrics, the one that is the score first."""
    build: Callable[[Finetuning, ModelOptions], nn.Module]
    """Makes the model; its `forward` takes what a `ClassificationBatch` has."""
    encode: Callable[[Finetuning, Any, bool], PackedExamples]
    """Makes sequences of a set; the flag says whether these are to train on."""
    notes: Callable[[Finetuning, str, Any], list[str]]
    """Says what became of the examples of a set, by its name."""
    measure: Callable[[Any, Finetuning, Any, World], Measured]
    """Measures the model on what `encode` made. Call on every rank."""
    scale: Callable[[TaskData[Any]], LabelScale | None] = lambda _: None
    """Gives the scale on which labels of one's own data are learnt; None: as they are."""
    why_not: Callable[[Finetuning], list[str]] = lambda _: []
    """Says what keeps settings and data that are right by themselves from going together."""
    chance: Callable[[Finetuning], Metrics | None] = lambda _: None
    """Measures the best answer that is the same for every example; None where there is none."""
    facts: Callable[[Finetuning], Json] = lambda _: {}
    """What the export's `task` says beside what all kinds say, for those who use the model."""
    batch_size: int = 32
    """Examples per step, unless told."""
    files: tuple[str, ...] = ()
    """Predictions that there are at the end (see `Measured.files`)."""


@dataclass(frozen=True)
class Finetuning:
    """Everything a finetuning is, resolved and checked."""

    settings: Settings
    kind: Kind
    task: Task
    """A row of the table with what the settings change, or one made for data of one's own."""
    data: TaskData[Any]  # its kind knows what its sets are
    config: ModelConfig
    weights: dict[str, Tensor]
    """The encoder, and the pooler of a finetuned start; empty from scratch."""
    tokenizer: Tokenizer
    deepspeed: Json
    scale: LabelScale | None
    """Scale of the labels of a regression on own data; None: the labels are learnt as they are."""
    start_task: str | None
    """The task that the start was finetuned on; None for a pretrained one and from scratch."""
    start_notes: list[str]
    """How this start differs from the published one; the score table sees it by itself."""
    identity: Json
    """What decides the result: a result with the same `settings` is not computed again."""

    @property
    def name(self) -> str:
        return run_name(self.task.name, self.settings.seed)

    @property
    def result(self) -> Path:
        return self.settings.output / f"{self.name}.json"

    @property
    def directory(self) -> Path:
        """Directory of everything beside the result: log, TensorBoard, model, test predictions."""
        return self.settings.output / self.name

    @property
    def predictions(self) -> Path:
        return self.directory / "predictions"

    def score(self, metrics: Metrics) -> float:
        """Return the mean over the development sets of the metric that counts."""
        return sum(of[self.task.score] for of in metrics.values()) / len(metrics)

    @property
    def saves_model(self) -> bool:
        # Other tasks start from MNLI's; and a model on one's own data is what one came for.
        settings = self.settings
        return settings.save_model or self.task.name == "mnli" or settings.own_data.given
