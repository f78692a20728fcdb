"""A finetuning before it starts: its settings resolved and checked, and all that they name read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from model.pretrained import WEIGHTS
from model.weights import from_public
from recipes.common.errors import Faults, UserError
from recipes.common.files import sha256
from recipes.common.json_content import Json
from recipes.common.places import DS_CONFIGS
from recipes.engine.ds_config import numeric_settings, precision, read_config
from recipes.tasks.classification_data import TaskData, load_task
from recipes.tasks.example_files import ExampleSet
from recipes.tasks.finetune_settings import DEFAULT_KIND, Settings, faults_of, naming_faults
from recipes.tasks.glue_tasks import Task, find_task
from recipes.tasks.kinds import KINDS
from recipes.tasks.own_data import LabelScale
from recipes.tasks.work import WARMUP_FRACTION, Finetuning, Shared, Start
from recipes.training.export import export_directory, read_tensors, read_tokenizer


def resolve(settings: Settings, world_size: int, refused: Sequence[str] = ()) -> Finetuning:
    """Check everything that can be checked before there is a model.

    Args:
        refused: values of the command line that are no settings, to be named with the other faults.

    Raises:
        UserError: all faults at once.
    """
    misnamed = naming_faults(settings, KINDS[settings.kind].columns)
    faults = Faults([*refused, *faults_of(settings), *misnamed])
    own = settings.own_data.given
    task = None
    if settings.task is not None and not own:
        name = settings.task
        task = faults.attempt(lambda: find_task(name))
    shared = read_shared(settings, faults)
    data = None
    local = settings.data is not None or own
    named = own and not misnamed
    if (task or named) and (local or not faults):  # no download in vain
        data = faults.attempt(lambda: _load(settings, task))
    faults.stop()
    assert data and shared
    settings = replace(settings, kernel_choice=shared.kernel_choice)
    data = _first_examples(data, settings.max_train)
    task = _with_overrides(task or _own_task(settings, data), settings)
    scale = KINDS[settings.kind].scale(data) if own else None
    data = replace(data, notes=[*data.notes, *_training_notes(data, task, scale)])
    work = Finetuning(
        settings=settings,
        kind=KINDS[settings.kind],
        task=task,
        data=data,
        config=shared.start.config,
        weights={} if settings.from_scratch else shared.start.weights,
        tokenizer=shared.tokenizer,
        deepspeed=shared.deepspeed,
        scale=scale,
        start_task=None if settings.from_scratch else shared.start.task,
        start_notes=_start_notes(settings, task, shared.start),
        identity=_identity(settings, task, data, shared, scale),
    )
    _check_fit(work, world_size)
    return work


def read_start(checkpoint: Path) -> Start:
    """Read an export to start from; a finetuned one keeps its pooler, as published.

    Raises:
        UserError: no export there, a damaged one, or one that lacks tensors.
    """
    config, public, description = read_tensors(checkpoint)
    try:
        weights = from_public(public, config, "none")
    except ValueError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    for part in ("weight", "bias"):
        if (pooler := public.get(f"bert.pooler.dense.{part}")) is not None:
            weights[f"pooler.{part}"] = pooler
    return Start(config, weights, description)


def read_shared(settings: Settings, faults: Faults) -> Shared | None:
    """Read the export, its tokenizer and the DeepSpeed JSON, and choose the kernels.

    Args:
        faults: takes everything that is wrong; then nothing is returned.
    """
    before = len(faults)
    start = faults.attempt(lambda: read_start(settings.checkpoint))
    tokenizer = start and faults.attempt(
        lambda: read_tokenizer(settings.checkpoint, start.config, start.description)
    )
    deepspeed = faults.attempt(lambda: _deepspeed(settings))
    choice = settings.kernel_choice
    if start and deepspeed is not None:
        choice = choice.resolve(start.config, precision(deepspeed), faults)
    if len(faults) > before:
        return None
    assert start and tokenizer and deepspeed is not None
    return Shared(start, tokenizer, deepspeed, choice)


def checksum(sets: Mapping[str, ExampleSet], labels: tuple[str, ...] | None = None) -> str | None:
    """Hash all examples of the sets and the names of classes; None where there are no sets."""
    digest = hashlib.sha256(repr(labels).encode())
    for name, examples in sorted(sets.items()):
        for part in examples.parts(name):
            digest.update(part)
    return digest.hexdigest() if sets else None


def _deepspeed(settings: Settings) -> Json:
    default = "finetune.json" if torch.cuda.is_available() else "finetune_cpu.json"
    path = settings.deepspeed_config or DS_CONFIGS / default
    return read_config(path, batch_sizes=False)


def _load(settings: Settings, task: Task | None) -> TaskData[Any]:
    if task is not None:
        return load_task(task, settings.data, with_test=settings.predict_test)
    return KINDS[settings.kind].load(settings)


def _own_task(settings: Settings, data: TaskData[Any]) -> Task:
    kind = KINDS[settings.kind]
    name = settings.task or "custom"
    return Task(
        name=name,
        folder=name,
        text_columns=settings.own_data.text_columns,
        labels=data.labels,
        metrics=kind.metrics(data),
        train_count=len(data.train),
        dev_counts={name: len(dev) for name, dev in data.dev.items()},
        test_counts={},
        server_files={},
        # Between the table's small and large tasks, unless told.
        learning_rate=3e-5,
        weight_decay=3e-6,
        epochs=3,
        batch_size=kind.batch_size,
    )


def _with_overrides(task: Task, settings: Settings) -> Task:
    given = vars(settings.hyper_parameters)
    return replace(task, **{name: value for name, value in given.items() if value is not None})


def _first_examples(data: TaskData[Any], count: int | None) -> TaskData[Any]:
    """The data with so many training examples at most, and a note if there were more."""
    train = data.train
    if count is None or count >= len(train):
        return data
    told = f"trained on the first {count:,} of {len(train):,} examples"
    return replace(data, train=train.front(count), notes=[*data.notes, told])


def _training_notes(data: TaskData[Any], task: Task, scale: LabelScale | None) -> list[str]:
    notes = []
    if task.batch_size > len(data.train):
        notes.append(
            f"a batch of {task.batch_size:,} examples: all {len(data.train):,} there are make one"
        )
    if scale is not None:
        notes.append(
            f"labels are learnt as (label - {scale.mean:.6g}) / {scale.deviation:.6g}, mean and "
            "deviation of the training labels; so is the loss, but metrics and the exported model "
            "are in the labels' own units"
        )
    return notes


def _start_notes(settings: Settings, task: Task, start: Start) -> list[str]:
    if task.start != "mnli" or (start.task == "mnli" and not settings.from_scratch):
        return []
    instead = "a model that is not finetuned on MNLI"
    if settings.from_scratch:
        instead = "random weights"
    return [
        f"the published recipe starts {task.folder} from MNLI's finetuned model, this one from "
        f"{instead}: finetune --task mnli first and take its result as --checkpoint, or run glue.py"
    ]


def _identity(
    settings: Settings,
    task: Task,
    data: TaskData[Any],
    shared: Shared,
    scale: LabelScale | None,
) -> Json:
    identity = {
        "task": task.name,
        "checkpoint_sha256": sha256(export_directory(settings.checkpoint) / WEIGHTS),
        "from_scratch": settings.from_scratch,
        "examples_sha256": checksum({"train": data.train, **data.dev}, data.labels),
        "seed": settings.seed,
        "learning_rate": task.learning_rate,
        "betas": list(task.betas),
        "eps": task.eps,
        "weight_decay": task.weight_decay,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "max_length": settings.max_length,
        "warmup_fraction": WARMUP_FRACTION,
        "train_examples": len(data.train),
        "precision": precision(shared.deepspeed),
        "deepspeed": numeric_settings(shared.deepspeed),
        "tokenizer": shared.start.description["tokenizer"],
        "model": shared.start.config.to_dict(),
    }
    if settings.kind != DEFAULT_KIND:  # results from before there were others say nothing
        identity["kind"] = settings.kind
    if scale is not None:
        identity["label_scale"] = asdict(scale)
    return identity


def _check_fit(work: Finetuning, world_size: int) -> None:
    settings, task, config = work.settings, work.task, work.config
    faults = Faults(work.kind.why_not(work))
    if task.batch_size < world_size:
        faults.append(
            f"a batch of {task.batch_size} examples on {world_size} processes: at most "
            f"{task.batch_size} can share it"
        )
    if refusal := config.why_not_length(settings.max_length):
        faults.append(f"--max-length {settings.max_length}: {refusal}")
    if export_directory(settings.checkpoint).resolve() == (work.directory / "export").resolve():
        faults.append(
            f"--checkpoint {settings.checkpoint}: this finetuning would overwrite it; give "
            "another --output"
        )
    faults.stop()
