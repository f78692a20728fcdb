"""Pairs of texts that belong together, for sentence vectors, and sets to measure these by.

A record has an anchor (a question, a title) and a positive (its answer, its text), and may have a
hard negative, which looks like the positive and is wrong. They are measured by a file of pairs with
scores, as STS-B is, or by one of pairs without, where each anchor looks for its positive among all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from recipes.common.errors import Faults, UserError
from recipes.tasks.classification_data import TaskData
from recipes.tasks.example_files import Reading, naming, read_file, score


@dataclass(frozen=True)
class TextSet:
    """Records of texts that belong together: column by column, the anchors first."""

    columns: list[list[str]]
    scores: np.ndarray | None = None
    """fp64 [records], how alike the texts of each are; None where they belong together."""

    def __len__(self) -> int:
        return len(self.columns[0])

    def front(self, count: int) -> Self:
        """The first so many."""
        scores = None if self.scores is None else self.scores[:count]
        return type(self)([column[:count] for column in self.columns], scores)

    def parts(self, name: str) -> Iterator[bytes]:
        """Yield what a checksum is of, the set's name included."""
        yield repr((name, self.columns)).encode()
        yield b"" if self.scores is None else self.scores.tobytes()


def load_pairs(
    train_file: Path,
    dev_file: Path,
    *,
    text_columns: Sequence[str],
    score_column: str | None,
) -> TaskData[TextSet]:
    """Read the pairs to train on and those to evaluate on.

    Args:
        text_columns: anchor, positive and maybe hard negative. The development set needs the first
            two.
        score_column: of the development set; None for pairs that belong together.

    Raises:
        UserError: all faults of both: a file cannot be read, is empty, lacks a column or has too
            many unusable records; there is nothing to measure.
    """
    faults, notes = Faults(), list[str]()
    train = faults.attempt(lambda: _read(train_file, text_columns, None, notes))
    dev = faults.attempt(lambda: _read(dev_file, text_columns[:2], score_column, notes))
    faults.stop()
    assert train and dev
    if dev.scores is not None and np.ptp(dev.scores) == 0:
        raise UserError(
            f"{dev_file}: every {score_column!r} is {dev.scores[0]:g}, there is no order to find"
        )
    if dev.scores is None and len(set(dev.columns[1])) == 1:
        raise UserError(f"{dev_file}: all {text_columns[1]!r} are equal, nothing to choose from")
    known = set(zip(*train.columns[:2], strict=True))
    if seen := sum(pair in known for pair in zip(*dev.columns, strict=True)):
        notes.append(f"{dev_file}: {seen:,} of {len(dev):,} pairs are in the training set")
    if repeated := len(train) - len(set(zip(*train.columns, strict=True))):
        notes.append(f"{train_file}: {repeated:,} of {len(train):,} records are there before")
    return TaskData(train, {"dev": dev}, {}, None, notes)


class _Records(Reading):
    """Records whose texts all have something in them."""

    def __init__(self, name: str, columns: Sequence[str], *, scored: bool):
        super().__init__(name, score if scored else lambda _: None)
        self.columns, self.scored = columns, scored

    def add(self, line: int | str, values: Sequence[Any]) -> None:
        """A record: its texts, and its score where it has one."""
        texts = values[: len(self.columns)]
        empty = [
            name
            for name, text in zip(self.columns, texts, strict=True)
            if text is None or (isinstance(text, str) and not text.strip())
        ]
        if empty:
            self.reject(line, f"no text in {', '.join(map(repr, empty))}")
        elif len(texts) == 3 and texts[2] in texts[:2]:
            of = self.columns[0 if texts[2] == texts[0] else 1]
            self.reject(line, f"{self.columns[2]!r} and {of!r} are equal, {texts[2]!r}")
        else:
            super().add(line, values if self.scored else [*values, None])


def _read(path: Path, texts: Sequence[str], scores: str | None, notes: list[str]) -> TextSet:
    reading = _Records(str(path), texts, scored=scores is not None)
    with naming(path):
        read_file(path, [*texts, scores] if scores is not None else texts, reading)
    reading.check(notes)
    columns = [list(column) for column in zip(*reading.texts, strict=True)]
    return TextSet(columns, None if scores is None else np.array(reading.labels, np.float64))
