"""Settings of a finetuning, and which of them do not go together."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from recipes.common.errors import UserError
from recipes.common.files import why_no_directory
from recipes.common.numbers import whole
from recipes.common.settings import (
    Count,
    LearningRate,
    Price,
    Seed,
    SequenceLength,
    WeightDecay,
    number_in,
)
from recipes.engine.kernel_choice import KernelChoice
from recipes.tasks.glue_tasks import find_task

DEFAULT_KIND: Final = "classification"
"""The kind of GLUE's tasks."""


@dataclass(frozen=True)
class OwnData:
    """Data of one's own, in place of a GLUE task."""

    train_file: Path | None = None
    """File to train on: .csv, .tsv or .jsonl, also compressed; for question-answering .json too;
    for token-classification .conll, .txt or .tsv in columns, or .jsonl."""
    dev_file: Path | None = None
    """File to evaluate on."""
    text_columns: tuple[str, ...] = ()
    """Column of the text; two columns for pairs; for sentence-embedding those of anchor, positive
    and, if there is one, hard negative; for token-classification in JSON Lines that of the lists of
    words, words if not given."""
    label_column: tuple[str, ...] = ()
    """Column of the label; for multi-label that of the lists of labels, or a column of 0 and 1 for
    each label; for sentence-embedding that of the scores in the development file, whose pairs
    belong together if it is not given; for token-classification in JSON Lines that of the lists of
    tags, tags if not given."""
    regression: bool = False
    """Labels are numbers to predict, not classes."""

    @property
    def files(self) -> tuple[Path, Path]:
        """Those to train on and to evaluate on, which `naming_faults` has found to be given."""
        assert self.train_file and self.dev_file
        return self.train_file, self.dev_file

    @property
    def given(self) -> bool:
        return self.train_file is not None or self.dev_file is not None


@dataclass(frozen=True)
class HyperParameters:
    """Hyper-parameters; each one that is not given is the task's own."""

    learning_rate: LearningRate | None = None
    """Peak of the learning rate."""
    weight_decay: WeightDecay | None = None
    """Weight decay, in the published convention."""
    epochs: Annotated[int, number_in(whole(1, 10_000))] | None = None
    """Passes over the training set."""
    batch_size: Annotated[int, number_in(whole(1, 1_000_000))] | None = None
    """Examples per step, over all processes."""


@dataclass(frozen=True)
class Settings:
    """Finetune a pretrained encoder on one task with one seed, and write its scores down."""

    checkpoint: Path
    """Where to start: the directory of a run, of a finetuned task, or an export/."""
    output: Path
    """Directory of the results."""
    own_data: OwnData
    hyper_parameters: HyperParameters
    kernel_choice: KernelChoice
    kind: Literal[
        "classification",
        "multi-label",
        "token-classification",
        "question-answering",
        "sentence-embedding",
    ] = DEFAULT_KIND
    """What your own data is: texts with a label or score; texts with any number of labels;
    sentences whose words have tags, in CoNLL's columns or JSON Lines; questions about texts that
    hold the answers, in SQuAD's JSON or JSON Lines; or pairs of texts that belong together."""
    task: str | None = None
    """GLUE task: mnli, qnli, qqp, rte, cola, sst2, mrpc or stsb; with --train-file, the name of the
    result, custom if not given."""
    data: Path | None = None
    """Directory with GLUE; the hub's nyu-mll/glue if not given."""
    seed: Seed = 17
    """Seed of the new head, the order of the examples and dropout."""
    from_scratch: bool = False
    """Start from random weights of the same architecture, for comparison."""
    deepspeed_config: Path | None = None
    """DeepSpeed JSON; ds_configs/finetune.json on a GPU, finetune_cpu.json otherwise, if not
    given."""
    max_length: SequenceLength = 256
    """Tokens of an example, special ones included; longer ones are cut."""
    max_train: Count | None = None
    """Training examples to use, the first ones; all if not given."""
    save_model: bool = False
    """Keep the finetuned model, as is always done for MNLI and for your own data."""
    predict_test: bool = False
    """Write prediction files for the GLUE server."""
    log_every: Count = 50
    """Steps between two lines of the log."""
    price_per_gpu_hour: Price = 2.5
    """Dollars, for the cost in the result (appendix E)."""
    dry_run: bool = False
    """Print what the settings come to, or what is wrong with them, and end."""


Checks = list[tuple[bool, str]]
"""What has to hold, and what to say where it does not."""


def faults_of(settings: Settings) -> list[str]:
    """What is wrong with settings by themselves, before any file is read."""
    refusal = why_no_directory(settings.output)
    return [f"--output {settings.output}: {refusal}"] if refusal else []


def naming_faults(settings: Settings, columns: Callable[[OwnData], Checks]) -> list[str]:
    """What is wrong with how the data is named.

    Args:
        columns: what the kind of task wants of the columns of one's own data (see `work.Kind`).
    """
    own, task = settings.own_data, settings.task
    if not own.given:
        checks = [
            (task is not None, "give --task, or --train-file and --dev-file"),
            (not own.text_columns, "--text-columns is for your own data, in --train-file"),
            (not own.label_column, "--label-column is for your own data, in --train-file"),
            (not own.regression, "--regression is for your own data, in --train-file"),
            (
                settings.kind == DEFAULT_KIND,
                f"--kind {settings.kind} is for your own data, in --train-file and --dev-file",
            ),
        ]
    else:
        both = own.train_file is not None and own.dev_file is not None
        checks = [
            (both, "--train-file and --dev-file belong together"),
            (
                not own.regression or settings.kind == DEFAULT_KIND,
                f"--regression is for --kind {DEFAULT_KIND}, not {settings.kind}",
            ),
            *columns(own),
            (settings.data is None, "--data is for GLUE tasks; these files are the data"),
            (not settings.predict_test, "--predict-test is for GLUE tasks"),
            (
                task is None or re.fullmatch(r"\w[\w.-]*", task) is not None,
                f"--task {task}: as the name of a file, letters, digits, '.', '-' and '_'",
            ),
            (
                not _is_glue(task),
                f"--task {task} is a GLUE task: give your own data another name",
            ),
        ]
    return [message for holds, message in checks if not holds]


def text_checks(own: OwnData) -> Checks:
    """What has to hold where an example is a text or a pair."""
    columns = len(own.text_columns)
    return [
        (columns > 0, "--text-columns: name one column, or two for pairs"),
        (columns <= 2, "--text-columns: two at most"),
    ]


def _is_glue(name: str | None) -> bool:
    try:
        return name is not None and bool(find_task(name))
    except UserError:
        return False
