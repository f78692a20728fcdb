"""Anybody's own labelled files: which classes they hold, or on which scale their scores are learnt.

A score is learnt as (label - mean) / deviation of the training labels: the head starts at 0 and the
learning rates fit labels of size 1, so that prices would take a whole training to be reached, and
their squared errors overflow. GLUE's STS-B is learnt from 0 to 5, as published.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from unicodedata import normalize

import numpy as np

from recipes.common.errors import Faults, UserError
from recipes.tasks.classification_data import TaskData
from recipes.tasks.example_files import (
    Examples,
    Reading,
    class_index,
    label_name,
    naming,
    read_file,
    score,
)

FEW_CLASSES = 20
"""Up to so many different numbers as labels are taken for classes without a note."""
LARGEST_SCORE = 1e37  # weights and predictions are fp32, which ends at 3.4e38
SMALLEST_SPREAD = 1e-5  # of the size of the labels: fp32 tells 6e-8 of a number apart
Kind = TypeVar("Kind", bound=Reading)
_MISSING = {"nan", "none", "null", "na", "n/a", "<na>"}


@dataclass(frozen=True)
class LabelScale:
    """The scale on which a regression's labels are learnt."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, labels: np.ndarray, others: Iterable[np.ndarray] = ()) -> LabelScale:
        """Return the scale of the training labels, on which the `others` must be predictable.

        Raises:
            UserError: fp32 cannot tell the labels from each other, or some from infinity.
        """
        largest = max(float(np.abs(each).max()) for each in (labels, *others))
        if largest > LARGEST_SCORE:
            raise UserError(
                f"labels up to {largest:.3g}; fp32 ends at {np.finfo(np.float32).max:.1e}, with a "
                f"margin {LARGEST_SCORE:g} is the largest: divide them"
            )
        if np.ptp(labels) == 0:
            raise UserError(
                f"all {len(labels):,} training labels are {labels[0]:g}, nothing to learn"
            )
        mean, deviation = float(labels.mean()), float(labels.std())
        largest = float(np.abs(labels).max())
        if deviation < max(SMALLEST_SPREAD * largest, 1 / LARGEST_SCORE):
            raise UserError(
                f"training labels are {mean:.9g} ± {deviation:.3g}: too close to each other for "
                f"their size in fp32; subtract {mean:.9g} or multiply them"
            )
        return cls(mean, deviation)

    def learnt(self, labels: np.ndarray) -> np.ndarray:
        """Labels as they are learnt, fp32."""
        return ((labels - self.mean) / self.deviation).astype(np.float32)

    def own_units(self, outputs: np.ndarray) -> np.ndarray:
        """The inverse, fp64: outputs of the trained model in the units of the labels."""
        return outputs.astype(np.float64) * self.deviation + self.mean


def load_files(
    train_file: str | Path,
    dev_file: str | Path,
    *,
    text_columns: Sequence[str],
    label_column: str,
    regression: bool = False,
) -> TaskData[Examples]:
    """Read any classification or regression data.

    The labels are the distinct values in the training file, in numerical order if all are numbers,
    else in alphabetical order; fp64 for a regression.

    Args:
        text_columns: one, or two for pairs.
        regression: labels are scores.

    Raises:
        UserError: a file cannot be read, is empty, lacks a column or has too many unusable
            records; the labels are fewer than two, or must be something else than classes.
    """
    columns = (*text_columns, label_column)
    if len(text_columns) not in (1, 2):
        raise UserError(f"{len(text_columns)} text columns given, one or two are needed")
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise UserError(f"column {twice[0]!r} is named twice among texts and label")
    notes: list[str] = []
    faults = Faults()

    read = partial(read_texts, columns=columns, texts=text_columns, faults=faults, notes=notes)
    train = read(Reading(str(train_file), score if regression else label_name))
    names = None
    if not regression and not faults:
        names = faults.attempt(lambda: _distinct_labels(train, label_column, notes))
    index = {name: i for i, name in enumerate(names or ())}
    dev = read(Reading(str(dev_file), class_index(index) if names else train.label))
    faults.stop()
    if names:
        train.labels = [index[name] for name in train.labels]
    notes += shared_texts(train, dev)
    dtype = np.float64 if regression else np.int64
    return TaskData(train.examples(dtype), {"dev": dev.examples(dtype)}, {}, names, notes)


def read_texts(
    reading: Kind,
    *,
    columns: Sequence[str],
    texts: Sequence[str],
    faults: Faults,
    notes: list[str],
) -> Kind:
    """Read the file that a reading is named after, and return the reading.

    Args:
        columns: to read, those of texts and labels.
        texts: those of the columns whose empty texts are noted.
    """

    def whole() -> None:
        with naming(reading.name):
            read_file(Path(reading.name), columns, reading)
        reading.check(notes)
        notes.extend(empty_texts(reading, texts))

    faults.attempt(whole)
    return reading


def label_scale(data: TaskData[Examples]) -> LabelScale | None:
    """Return the scale of one's own data; None for classes."""
    if data.labels is not None:
        return None
    assert data.train.labels is not None
    others = [dev.labels for dev in data.dev.values() if dev.labels is not None]
    return LabelScale.of(data.train.labels, others)


def shared_texts(train: Reading, dev: Reading) -> list[str]:
    """Note it if examples of both sets have the same texts."""
    known = set(map(tuple, train.texts))
    seen = sum(tuple(texts) in known for texts in dev.texts)
    of = f"{dev.name}: {seen:,} of {len(dev.texts):,} examples have texts of the training set"
    return [of] if seen else []


def empty_texts(reading: Reading, columns: Sequence[str]) -> list[str]:
    """Note empty texts; raises UserError if a column has nothing else."""
    notes = []
    for place, column in enumerate(columns):
        empty = sum(not texts[place].strip() for texts in reading.texts)
        share = f"{empty:,} of {len(reading.texts):,} texts in {column!r} are empty"
        if empty == len(reading.texts):
            raise UserError(f"{reading.name}: {share}; is it the right column?")
        if empty:
            notes.append(f"{reading.name}: {share}")
    return notes


def _distinct_labels(train: Reading, column: str, notes: list[str]) -> tuple[str, ...]:
    counts = Counter(train.labels)
    examples, classes = len(train.labels), len(counts)
    found = f"{train.name}: {classes:,} distinct values of {column!r} in {examples:,} examples"
    if classes == 1:
        raise UserError(f"{train.name}: every {column!r} is {train.labels[0]!r}, nothing to learn")
    # A score that is missing leaves the others scores.
    numbers = [_number(name) for name in counts if name.casefold() not in _MISSING]
    whole = all(number is not None and number.is_integer() for number in numbers)
    if None in numbers:
        if classes == examples and classes > FEW_CLASSES:
            raise UserError(f"{found}, no class has a second example; is it the right column?")
        if classes > max(FEW_CLASSES, examples // 2):
            single = sum(count == 1 for count in counts.values())
            notes.append(f"{found}, {single:,} of them with a single example")
    elif classes > FEW_CLASSES and (not whole or classes > examples // 2):
        kind = "numbers" if whole else "decimal numbers"
        raise UserError(f"{found}, all {kind}; they are scores, learnt with --regression")
    elif classes > FEW_CLASSES or not whole:
        notes.append(f"{found}, all numbers, taken for classes; --regression learns them as scores")
    notes += [
        f"{train.name}: labels {', '.join(map(repr, sorted(alike)))} are taken for different "
        "classes"
        for alike in _alike(counts)
    ]
    notes += [
        f"{train.name}: {counts[name]:,} labels {name!r} are taken for a class, not for missing "
        "ones"
        for name in counts
        if name.casefold() in _MISSING
    ]
    in_order = sorted(counts)
    return tuple(in_order if None in map(_number, in_order) else sorted(in_order, key=float))


def _number(name: str) -> float | None:
    try:
        number = float(name)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _alike(names: Counter[str]) -> list[list[str]]:
    """Group names that a person would take for one: of one number, or but for case and blanks."""
    groups = defaultdict(list)
    for name in names:
        number = _number(name)
        # Letters with accents are one character or two, and look the same.
        key = " ".join(normalize("NFKC", name).casefold().split()) if number is None else number
        groups[key].append(name)
    return [group for group in groups.values() if len(group) > 1]
