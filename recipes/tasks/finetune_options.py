"""A finetuning before it starts: its options, resolved and checked, and whether it is done.

`finetune.py` runs what is resolved here; `glue.py` asks here which of its jobs are done already.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.weights import from_public
from recipes.common.cli import (
    COUNT,
    COUNT_OR_NONE,
    LEARNING_RATE,
    PRICE,
    SEED,
    SEQUENCE_LENGTH,
    WEIGHT_DECAY,
    ArgumentParser,
    whole,
)
from recipes.common.errors import Faults, UserError
from recipes.common.files import sha256, why_no_directory
from recipes.corpus.tokenizer import Tokenizer
from recipes.engine.ds_config import NUMERIC_KEYS, precision, read_config
from recipes.engine.kernel_choice import add_kernel_options, choose_kernels
from recipes.tasks.classification_data import Examples, TaskData, load_task
from recipes.tasks.glue_tasks import TASKS, Task, find_task
from recipes.tasks.own_data import LabelScale, label_scale, load_files
from recipes.training.export import WEIGHTS, export_directory, read_tensors, read_tokenizer

WARMUP_FRACTION = 0.06
# For data of one's own, unless told: between the table's small and large tasks.
OWN_DATA = dict(learning_rate=3e-5, weight_decay=3e-6, epochs=3, batch_size=32)

# Settings that results of older versions lack; what these were is not known, and not compared.
LATER_SETTINGS = {"deepspeed"}


@dataclass(frozen=True)
class Finetuning:
    """Everything a finetuning is, resolved and checked."""

    options: Any
    task: Task
    """A row of the table with what the options change, or one made for data of one's own."""
    data: TaskData
    config: ModelConfig
    weights: dict[str, Tensor]
    """Encoder, and the pooler of a finetuned start; empty from scratch."""
    tokenizer: Tokenizer
    deepspeed: dict[str, Any]
    scale: LabelScale | None
    """Of a regression on data of one's own; None: the labels are learnt as they are."""
    start_notes: list[str]
    """How this start differs from the published one; the score table sees it by itself."""
    settings: dict[str, Any]
    """What decides the result; a result with the same settings is not computed again."""

    @property
    def name(self) -> str:
        return f"{self.task.name}-seed{self.options.seed}"

    @property
    def result(self) -> Path:
        return self.options.output / f"{self.name}.json"

    @property
    def directory(self) -> Path:
        """Of everything beside the result: log, TensorBoard, model, test predictions."""
        return self.options.output / self.name

    @property
    def predictions(self) -> Path:
        return self.directory / "predictions"

    @property
    def saves_model(self) -> bool:
        # Other tasks start from MNLI's; and a model on one's own data is what one came for.
        return self.options.save_model or self.task.name == "mnli" or _own_data(self.options)


def is_done(work: Finetuning) -> bool:
    """Whether the result is there, computed with the same settings, and all that is asked for."""
    try:
        result = json.loads(work.result.read_bytes())
        done = not _different(result["settings"], work.settings)
        tested = result["test_examples_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if work.saves_model:
        done = done and (work.directory / "export" / WEIGHTS).is_file()
    if work.options.predict_test:
        files = [work.predictions / file for file in work.task.server_files.values()]
        done = done and tested == checksum(work.data.test) and all(f.is_file() for f in files)
    return done


def other_settings(work: Finetuning) -> list[str]:
    """Names of the settings in which a result that is there differs; empty where none is."""
    try:
        return _different(json.loads(work.result.read_bytes())["settings"], work.settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _different(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = (before.keys() | now.keys()) - (LATER_SETTINGS - before.keys())
    return sorted(name for name in names if before.get(name) != now.get(name))


def resolve(options: Any, world_size: int) -> Finetuning:
    """Check everything that can be checked before there is a model.

    Raises:
        UserError: all faults at once.
    """
    faults = Faults(_option_faults(options))
    task = None
    if options.task is not None and not _own_data(options):
        task = faults.attempt(lambda: find_task(options.task))
    named = task or (_own_data(options) and not _own_data_faults(options))
    start = faults.attempt(lambda: starting_weights(options.checkpoint))
    tokenizer = start and faults.attempt(lambda: read_tokenizer(options.checkpoint, *start[::2]))
    default = "finetune.json" if torch.cuda.is_available() else "finetune_cpu.json"
    path = options.deepspeed_config or (
        Path(__file__).resolve().parents[2] / "ds_configs" / default
    )
    deepspeed = faults.attempt(lambda: read_config(path, batch_sizes=False))
    if start and deepspeed is not None:
        faults += choose_kernels(start[0], precision(deepspeed), options)
    data = None
    local = options.data is not None or _own_data(options)
    if named and (local or not faults):  # no download in vain
        data = faults.attempt(lambda: _load(options, task))
    faults.stop()
    assert data and start and tokenizer and deepspeed is not None
    config, weights, description = start
    if options.max_train is not None and options.max_train < len(data.train):
        told = f"trained on the first {options.max_train:,} of {len(data.train):,} examples"
        data = replace(data, train=_front(data.train, options.max_train), notes=[*data.notes, told])
    task = _with_overrides(task or _own_task(options, data), options)
    if task.batch_size > len(data.train):
        told = (
            f"a batch of {task.batch_size:,} examples: all {len(data.train):,} there are make one"
        )
        data = replace(data, notes=[*data.notes, told])
    scale = label_scale(data) if _own_data(options) else None
    if scale is not None:
        told = (
            f"labels are learnt as (label - {scale.mean:.6g}) / {scale.deviation:.6g}, mean and "
            "deviation of the training labels; so is the loss, but metrics and the exported model "
            "are in the labels' own units"
        )
        data = replace(data, notes=[*data.notes, told])
    settings = {
        "task": task.name,
        "checkpoint_sha256": sha256(export_directory(options.checkpoint) / WEIGHTS),
        "from_scratch": options.from_scratch,
        "examples_sha256": checksum({"train": data.train, **data.dev}, data.labels),
        "seed": options.seed,
        "learning_rate": task.learning_rate,
        "betas": list(task.betas),
        "eps": task.eps,
        "weight_decay": task.weight_decay,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "max_length": options.max_length,
        "warmup_fraction": WARMUP_FRACTION,
        "train_examples": len(data.train),
        "precision": precision(deepspeed),
        "deepspeed": {key: deepspeed.get(key) for key in NUMERIC_KEYS},
        "tokenizer": description["tokenizer"],
        "model": config.to_dict(),
    }
    if scale is not None:
        settings["label_scale"] = asdict(scale)
    weights = {} if options.from_scratch else weights
    start_notes = _start_notes(options, task, description)
    work = Finetuning(
        options, task, data, config, weights, tokenizer, deepspeed, scale, start_notes, settings
    )
    _check_fit(work, world_size)
    return work


def starting_weights(checkpoint: Path) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Encoder of an export (and the pooler of a finetuned one), and its `config.json`.

    A finetuned start keeps its pooler, as published; the classification head is always new.

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
    return config, weights, description


def checksum(sets: Mapping[str, Examples], labels: tuple[str, ...] | None = None) -> str | None:
    """Of every text and label of the sets and the classes' names; None where there are no sets."""
    digest = hashlib.sha256(repr(labels).encode())
    for name, examples in sorted(sets.items()):
        digest.update(repr((name, examples.first, examples.second)).encode())
        digest.update(b"" if examples.labels is None else examples.labels.tobytes())
    return digest.hexdigest() if sets else None


def _own_data(options: Any) -> bool:
    return options.train_file is not None or options.dev_file is not None


def _load(options: Any, task: Task | None) -> TaskData:
    if task is not None:
        return load_task(task, options.data, with_test=options.predict_test)
    return load_files(
        options.train_file,
        options.dev_file,
        text_columns=options.text_columns,
        label_column=options.label_column,
        regression=options.regression,
    )


def _own_task(options: Any, data: TaskData) -> Task:
    metrics: tuple[str, ...] = ("accuracy",)
    if data.labels is None:
        metrics = ("spearman", "pearson", "rmse")
    elif len(data.labels) == 2:
        metrics = ("accuracy", "f1")
    name = options.task or "custom"
    return Task(
        name=name,
        folder=name,
        text_columns=tuple(options.text_columns),
        labels=data.labels,
        metrics=metrics,
        train_count=len(data.train),
        dev_counts={name: len(dev) for name, dev in data.dev.items()},
        test_counts={},
        server_files={},
        **OWN_DATA,  # type: ignore[arg-type]
    )


def _start_notes(options: Any, task: Task, description: dict[str, Any]) -> list[str]:
    started = description.get("task", {}).get("name")
    if task.start != "mnli" or (started == "mnli" and not options.from_scratch):
        return []
    start = "random weights" if options.from_scratch else "a model that is not finetuned on MNLI"
    return [
        f"the published recipe starts {task.folder} from MNLI's finetuned model, this one from "
        f"{start}: finetune --task mnli first and take its result as --checkpoint, or run glue.py"
    ]


def _with_overrides(task: Task, options: Any) -> Task:
    names = ("learning_rate", "weight_decay", "epochs", "batch_size")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return replace(task, **given)


def _front(examples: Examples, count: int) -> Examples:
    second, labels = examples.second, examples.labels
    return Examples(
        examples.first[:count],
        None if second is None else second[:count],
        None if labels is None else labels[:count],
    )


def _check_fit(work: Finetuning, world_size: int) -> None:
    options, task, config = work.options, work.task, work.config
    faults = Faults()
    if task.batch_size < world_size:
        faults.append(
            f"a batch of {task.batch_size} examples on {world_size} processes: at most "
            f"{task.batch_size} can share it"
        )
    if config.positions == "learned" and options.max_length > config.max_positions:
        faults.append(
            f"--max-length {options.max_length}: {config.name} has learned positions for "
            f"{config.max_positions} tokens at most"
        )
    if export_directory(options.checkpoint).resolve() == (work.directory / "export").resolve():
        faults.append(
            f"--checkpoint {options.checkpoint}: this finetuning would overwrite it; give another "
            "--output"
        )
    faults.stop()


def _option_faults(options: Any) -> list[str]:
    checks: list[tuple[Any, str]] = [
        (
            not (refusal := why_no_directory(options.output)),
            f"--output {options.output}: {refusal}",
        ),
    ]
    wrong = [message for holds, message in checks if not holds]
    return options.faults + wrong + _own_data_faults(options)


def _own_data_faults(options: Any) -> list[str]:
    """What is wrong with how the data is named."""
    checks: list[tuple[Any, str]] = []
    if _own_data(options):
        both = options.train_file is not None and options.dev_file is not None
        checks += [
            (both, "--train-file and --dev-file belong together"),
            (options.text_columns, "--text-columns: name one column, or two for pairs"),
            (len(options.text_columns or []) <= 2, "--text-columns: two at most"),
            (options.label_column, "--label-column: name the column of the labels"),
            (options.data is None, "--data is for GLUE tasks; these files are the data"),
            (not options.predict_test, "--predict-test is for GLUE tasks"),
            (
                options.task is None or re.fullmatch(r"\w[\w.-]*", options.task),
                f"--task {options.task}: as the name of a file, letters, digits, '.', '-' and '_'",
            ),
            (
                not _is_glue(options.task),
                f"--task {options.task} is a GLUE task: give your own data another name",
            ),
        ]
    else:
        checks += [
            (options.task is not None, "give --task, or --train-file and --dev-file"),
            (not options.text_columns, "--text-columns is for your own data, in --train-file"),
            (not options.label_column, "--label-column is for your own data, in --train-file"),
            (not options.regression, "--regression is for your own data, in --train-file"),
        ]
    return [message for holds, message in checks if not holds]


def _is_glue(name: str | None) -> bool:
    try:
        return name is not None and bool(find_task(name))
    except UserError:
        return False


def parse_arguments(arguments: list[str] | None = None) -> Any:
    parser = ArgumentParser(
        refuse=False,
        prog="finetune.py",
        description="Finetune a pretrained encoder on one task with one seed, and write its "
        "scores down.",
    )
    add = parser.add_argument
    add("--task", help=f"one of {', '.join(TASKS)}; with --train-file the name of the result")
    add("--checkpoint", type=Path, required=True, help="a run, a finetuned task, or an export/")
    add("--output", type=Path, required=True, help="directory of the results")
    add("--data", type=Path, help="directory with GLUE; the hub's nyu-mll/glue unless given")
    add("--train-file", type=Path, help="own data: .csv, .tsv or .jsonl, also .gz")
    add("--dev-file", type=Path, help="own data to evaluate on")
    add("--text-columns", nargs="+", help="own data: column of the text, two for pairs")
    add("--label-column", help="own data: column of the label")
    add("--regression", action="store_true", help="own data: labels are numbers to predict")
    add("--seed", type=SEED, default=17, help="of the new head, the order and dropout")
    add("--from-scratch", action="store_true", help="control: random weights, same architecture")
    add("--deepspeed-config", type=Path, help="DeepSpeed JSON; by device unless given")
    add("--max-length", type=SEQUENCE_LENGTH, default=256, help="tokens, special ones included")
    add("--learning-rate", type=LEARNING_RATE, help="peak, instead of the task's")
    add("--weight-decay", type=WEIGHT_DECAY, help="published convention, instead of the task's")
    add("--epochs", type=whole(1, 10_000), help="instead of the task's")
    add(
        "--batch-size",
        type=whole(1, 1_000_000),
        help="examples per step over all processes, instead of the task's",
    )
    add("--max-train", type=COUNT, help="use so many training examples only, the first ones")
    add_kernel_options(parser)
    add(
        "--save-model",
        action="store_true",
        help="keep the finetuned model, as is always done for MNLI and for own data",
    )
    add("--predict-test", action="store_true", help="write prediction files for the GLUE server")
    add("--log-every", type=COUNT, default=50, help="steps")
    add("--price-per-gpu-hour", type=PRICE, default=2.5, help="dollars (appendix E)")
    add("--dry-run", action="store_true", help="print the resolved settings or faults, and exit")
    add(
        "--local-rank",
        type=COUNT_OR_NONE,
        default=0,
        help="set by the deepspeed launcher; not used",
    )
    return parser.parse_args(arguments)
