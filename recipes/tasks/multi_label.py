"""Texts that may have several labels, or none: files, batches' labels, and how they are measured.

    {"text": "...", "labels": ["sports", "economy"]}      JSON Lines: --label-column labels
    text,sports,economy                                   a column of 0 and 1 for each label:
    "...",1,0                                             --label-column sports economy

A label is predicted where its probability is above one half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model.classifier import RapidBertForSequenceClassification
from recipes.common.errors import Faults, UserError
from recipes.common.json_content import Json
from recipes.engine.world import World
from recipes.tasks.classification_batches import EncodedExamples
from recipes.tasks.classification_data import TaskData
from recipes.tasks.evaluation import scores
from recipes.tasks.example_files import Examples, Reading, label_name
from recipes.tasks.finetune_settings import Checks, OwnData, Settings, text_checks
from recipes.tasks.own_data import read_texts, shared_texts
from recipes.tasks.work import Finetuning, Measured

METRICS = ("micro_f1", "macro_f1", "exact_match")
_ZERO_ONE = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


class _Reading(Reading):
    """Examples whose last `columns` values are their labels."""

    def __init__(self, name: str, label: Callable[[Any], Any], columns: int):
        super().__init__(name, label)
        self.columns = columns

    def add(self, line: int | str, values: Sequence[Any]) -> None:
        """Take a record: its texts, then its labels."""
        texts, labels = values[: -self.columns], list(values[-self.columns :])
        super().add(line, [*texts, labels])


def columns(own: OwnData) -> Checks:
    """Want a column of lists, or one for each label."""
    named = "--label-column: name the column of the labels, or one for each label"
    return [*text_checks(own), (bool(own.label_column), named)]


def load(settings: Settings) -> TaskData[Examples]:
    """Read both files of one's own (see `load_label_sets`)."""
    own = settings.own_data
    return load_label_sets(
        *own.files,
        text_columns=own.text_columns,
        label_columns=own.label_column,
    )


def load_label_sets(
    train_file: Path,
    dev_file: Path,
    *,
    text_columns: Sequence[str],
    label_columns: Sequence[str],
) -> TaskData[Examples]:
    """Read texts with any number of labels each.

    Args:
        text_columns: one, or two for pairs.
        label_columns: the one with lists of names, whose labels are those of the training set in
            alphabetical order; or several, each of 0 and 1 and called as its label.

    Returns:
        Sets whose labels are fp32 [examples, labels], 0 or 1.

    Raises:
        UserError: all faults of both: a file cannot be read, is empty, lacks a column or has too
            many unusable records; there are fewer than two labels; or one is never there.
    """
    columns = (*text_columns, *label_columns)
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise UserError(f"column {twice[0]!r} is named twice among texts and labels")
    faults, notes = Faults(), list[str]()
    listed = len(label_columns) == 1
    label = _names if listed else _columns(label_columns)

    read = partial(read_texts, columns=columns, texts=text_columns, faults=faults, notes=notes)
    train = read(_Reading(str(train_file), label, len(label_columns)))
    names = tuple(label_columns)
    if listed and not faults:
        names = tuple(sorted({name for each in train.labels for name in each}))
        label = _known(names)
    if not faults:
        _check_labels(train, names, faults)
    dev = read(_Reading(str(dev_file), label, len(label_columns)))
    faults.stop()
    notes += [note for reading in (train, dev) for note in _support(reading, names)]
    notes += shared_texts(train, dev)
    return TaskData(_examples(train, names), {"dev": _examples(dev, names)}, {}, names, notes)


def _names(values: list[Any]) -> tuple[str, ...]:
    """Return the labels of a list; raises ValueError with what keeps it from being one."""
    (given,) = values
    if not isinstance(given, list):
        raise ValueError(
            f"labels are {given!r}, no list of names; of a table, --label-column names a column of "
            "0 and 1 for each label"
        )
    names = tuple(map(label_name, given))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"label {twice[0]!r} is there twice")
    return names


def _columns(names: Sequence[str]) -> Callable[[list[Any]], tuple[str, ...]]:
    def present(values: list[Any]) -> tuple[str, ...]:
        found = []
        for name, value in zip(names, values, strict=True):
            number = _ZERO_ONE.get(str(value).strip().lower())
            if number is None:
                raise ValueError(f"{name!r} is {value!r}, neither 0 nor 1")
            if number:
                found.append(name)
        return tuple(found)

    return present


def _known(names: Sequence[str]) -> Callable[[list[Any]], tuple[str, ...]]:
    def look_up(values: list[Any]) -> tuple[str, ...]:
        found = _names(values)
        if unknown := [name for name in found if name not in names]:
            raise ValueError(f"label {unknown[0]!r} is not in the training set")
        return found

    return look_up


def _check_labels(train: Reading, names: Sequence[str], faults: Faults) -> None:
    if len(names) < 2:
        only = f"the only label is {names[0]!r}" if names else "no example has a label"
        faults.append(f"{train.name}: {only}; two are needed, of which a text may have both")
    counts = _counts(train)
    examples = len(train.labels)
    for name in names:
        if counts[name] in (0, examples):
            share = "no example has" if not counts[name] else f"all {examples:,} examples have"
            faults.append(f"{train.name}: {share} the label {name!r}, nothing to learn")


def _counts(reading: Reading) -> Counter[str]:
    return Counter(name for each in reading.labels for name in each)


def _support(reading: Reading, names: Sequence[str]) -> list[str]:
    counts, none = _counts(reading), sum(not each for each in reading.labels)
    each = ", ".join(f"{name!r} {counts[name]:,}" for name in names)
    return [f"{reading.name}: of {len(reading.labels):,} examples have {each}, none {none:,}"]


def _examples(reading: Reading, names: Sequence[str]) -> Examples:
    index = {name: number for number, name in enumerate(names)}
    labels = np.zeros((len(reading.labels), len(names)), np.float32)
    for row, found in enumerate(reading.labels):
        labels[row, [index[name] for name in found]] = 1
    first, *second = ([str(text) for text in column] for column in zip(*reading.texts, strict=True))
    return Examples(first, second[0] if second else None, labels)


def facts(work: Finetuning) -> Json:
    """What makes transformers take the logits for those of independent labels."""
    return {"problem_type": "multi_label_classification"}


def measure(
    model: RapidBertForSequenceClassification,
    work: Finetuning,
    examples: EncodedExamples,
    world: World,
) -> Measured:
    """Measure F1 of all labels together, the mean of each one's, and the share of texts with
    exactly the right labels. Call on every rank.
    """
    assert examples.labels is not None
    return Measured(label_metrics(scores(model, examples, world), examples.labels))


def label_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure predictions [examples, labels]: a label's F1 is 0 where it is undefined."""
    from sklearn.metrics import f1_score  # most of a second to import

    predicted = (logits > 0).astype(int)  # a probability above one half
    exact = float((predicted == labels).all(axis=1).mean())
    f1 = {
        f"{average}_f1": float(
            f1_score(labels.astype(int), predicted, average=average, zero_division=0.0)
        )
        for average in ("micro", "macro")
    }
    return {**f1, "exact_match": exact}
