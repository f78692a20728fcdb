"""GLUE as one table: what each of the eight tasks reads, predicts, and is scored and trained by.

WNLI is left out, as in the paper and in the original BERT study: it is very small, and many of its
examples are adversarial.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from recipes.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Task:
    """One GLUE task.

    Learning rates, betas, epsilon, weight decay and epochs are the paper's Table S1, batch sizes,
    seeds and the whole of STS-B, which that table lacks, the published recipe's. All tasks use the
    same hyper-parameters for every model size.

    The training and test counts are the paper's (appendix A, which counts test examples where the
    scores are on the development sets); the development counts are the hub's.

    Attributes:
        name: on the command line, and the configuration of the hub's `nyu-mll/glue`.
        folder: in the classic layout of TSV files, and the task's usual spelling.
        text_columns: one, or two for a pair, as the hub names them.
        labels: names in the hub's order, which is the class index; None for a regression.
        score_range: of a regression's labels, and of the predictions that the GLUE server takes.
        labels_by_name: whether the TSV files and the GLUE server write labels as names; else as
            class indices.
        metrics: computed on each development set, the one that is the task's score first.
        train_count: examples.
        dev_counts, test_counts: examples per set; one set, but two for MNLI.
        server_files: what the GLUE server expects the predictions for each test set to be called.
        learning_rate: peak.
        weight_decay: in the published decoupled convention, which multiplies weights by
            1 - (lr / peak) * decay; `recipes.training.schedule.adamw_weight_decay` gives AdamW's.
        epochs: passes over the training set.
        batch_size: examples per optimizer step.
        seeds: runs that are averaged.
        start: `pretrained`, or `mnli` for the checkpoint already finetuned on MNLI.
    """

    name: str
    folder: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    score_range: tuple[float, float] = (-math.inf, math.inf)
    labels_by_name: bool = False
    metrics: tuple[str, ...] = ("accuracy",)
    train_count: int
    dev_counts: dict[str, int]
    test_counts: dict[str, int]
    server_files: dict[str, str]
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float
    epochs: int
    batch_size: int
    seeds: int = 1
    start: str = "pretrained"

    @property
    def score(self) -> str:
        """The metric that is the task's score; with two development sets, the mean of theirs."""
        return self.metrics[0]

    @property
    def outputs(self) -> int:
        """Outputs of the classification head: one for each class, or 1 for a regression."""
        return len(self.labels) if self.labels else 1


_ALL = (
    Task(
        name="mnli",
        folder="MNLI",
        text_columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        labels_by_name=True,
        train_count=392_702,
        dev_counts={"matched": 9_815, "mismatched": 9_832},
        test_counts={"matched": 9_796, "mismatched": 9_847},  # the paper's 19,643
        server_files={"matched": "MNLI-m.tsv", "mismatched": "MNLI-mm.tsv"},
        learning_rate=5e-5,
        weight_decay=5e-6,
        epochs=3,
        batch_size=48,
    ),
    Task(
        name="qnli",
        folder="QNLI",
        text_columns=("question", "sentence"),
        labels=("entailment", "not_entailment"),
        labels_by_name=True,
        train_count=104_743,
        dev_counts={"dev": 5_463},
        test_counts={"test": 5_463},
        server_files={"test": "QNLI.tsv"},
        learning_rate=1e-5,
        weight_decay=1e-6,
        epochs=10,
        batch_size=16,
    ),
    Task(
        name="qqp",
        folder="QQP",
        text_columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        train_count=363_846,
        dev_counts={"dev": 40_430},
        test_counts={"test": 390_965},
        server_files={"test": "QQP.tsv"},
        learning_rate=3e-5,
        betas=(0.9, 0.988),  # as Table S1 has it, for SST-2 too; the published code has 0.98
        weight_decay=3e-6,
        epochs=5,
        batch_size=16,
    ),
    Task(
        name="rte",
        folder="RTE",
        text_columns=("sentence1", "sentence2"),
        labels=("entailment", "not_entailment"),
        labels_by_name=True,
        train_count=2_490,
        dev_counts={"dev": 277},
        test_counts={"test": 3_000},
        server_files={"test": "RTE.tsv"},
        learning_rate=1e-5,
        weight_decay=1e-5,
        epochs=3,
        batch_size=16,
        seeds=5,
        start="mnli",
    ),
    Task(
        name="cola",
        folder="CoLA",
        text_columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews",),
        train_count=8_551,
        dev_counts={"dev": 1_043},
        test_counts={"test": 1_063},
        server_files={"test": "CoLA.tsv"},
        learning_rate=5e-5,
        weight_decay=5e-6,
        epochs=10,
        batch_size=32,
        seeds=4,
    ),
    Task(
        name="sst2",
        folder="SST-2",
        text_columns=("sentence",),
        labels=("negative", "positive"),
        train_count=67_349,
        dev_counts={"dev": 872},
        test_counts={"test": 1_821},
        server_files={"test": "SST-2.tsv"},
        learning_rate=3e-5,
        betas=(0.9, 0.988),
        weight_decay=3e-6,
        epochs=3,
        batch_size=16,
        seeds=3,
    ),
    Task(
        name="mrpc",
        folder="MRPC",
        text_columns=("sentence1", "sentence2"),
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        train_count=3_668,
        dev_counts={"dev": 408},
        test_counts={"test": 1_725},
        server_files={"test": "MRPC.tsv"},
        learning_rate=8e-5,
        weight_decay=8e-6,
        epochs=10,
        batch_size=32,
        seeds=5,
        start="mnli",
    ),
    Task(
        name="stsb",
        folder="STS-B",
        text_columns=("sentence1", "sentence2"),
        labels=None,
        score_range=(0.0, 5.0),
        metrics=("spearman", "pearson"),
        train_count=5_749,
        dev_counts={"dev": 1_500},
        test_counts={"test": 1_379},
        server_files={"test": "STS-B.tsv"},
        learning_rate=3e-5,
        weight_decay=3e-6,
        epochs=10,
        batch_size=32,
        seeds=5,
        start="mnli",
    ),
)
TASKS = {task.name: task for task in _ALL}


def find_task(name: str) -> Task:
    """The task of that name; `SST-2` and `sst2` are one.

    Raises:
        UserError: there is none; the message lists them and the nearest.
    """
    key = name.lower().replace("-", "").replace("_", "")
    if key not in TASKS:
        near = difflib.get_close_matches(key, TASKS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if key == "wnli":  # near other names, but no misspelling of theirs
            hint = "; WNLI is left out, as in the paper"
        if "," in name:
            hint = (
                f"; spaces stand between several: {' '.join(re.split('[, ]+', name.strip(', ')))}"
            )
        raise UserError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}{hint}")
    return TASKS[key]
