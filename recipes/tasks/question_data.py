"""Questions about texts that hold their answers: SQuAD's JSON (1.1 and 2.0), and JSON Lines.

    {"data": [{"paragraphs": [{"context": "...", "qas": [
        {"id": "...", "question": "...", "answers": [{"text": "...", "answer_start": 17}]}]}]}]}

    {"id": "...", "question": "...", "context": "...", "answers": ...}

In JSON Lines `answers` is the same list, or the hub's `{"text": [...], "answer_start": [...]}`.
Places count characters from 0. A question without answers has none in its text; `is_impossible`
says so in SQuAD 2.0, and must agree where it is there. A record that cannot be used is counted, and
more than 1% of them are an error (see `example_files`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.common.compressed import open_binary
from recipes.common.errors import Faults, UserError
from recipes.common.json_content import Json
from recipes.tasks.classification_data import TaskData
from recipes.tasks.example_files import Reading, RecordSet, naming

LINES = (".jsonl", ".ndjson")
_KEYS = ("id", "question", "answers")


@dataclass(frozen=True)
class Answer:
    """An answer, and the character of the context where it begins."""

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """A question, the text that is asked, and its right answers: none where it has no answer."""

    name: str
    """SQuAD's `id`, by which predictions are given."""
    text: str
    context: str
    answers: tuple[Answer, ...]


class Questions(RecordSet[Question]):
    """A set of questions."""

    @property
    def unanswerable(self) -> int:
        """Number of those that have no answer."""
        return sum(not question.answers for question in self.all)


def load_questions(train_file: Path, dev_file: Path) -> TaskData[Questions]:
    """Read the questions to train on and those to evaluate on, in the form of SQuAD.

    Raises:
        UserError: all faults of both: a file cannot be read, is of another form, has no questions,
            or too many that cannot be used.
    """
    faults, notes = Faults(), list[str]()
    train = faults.attempt(lambda: Questions(read_questions(train_file, notes)))
    dev = faults.attempt(lambda: Questions(read_questions(dev_file, notes)))
    faults.stop()
    assert train is not None and dev is not None
    if train.unanswerable == len(train):
        raise UserError(f"{train_file}: none of its {len(train):,} questions has an answer")
    known = {(question.text, question.context) for question in train.all}
    if seen := sum((question.text, question.context) in known for question in dev.all):
        notes.append(f"{dev_file}: {seen:,} of {len(dev):,} questions are in the training set")
    if dev.unanswerable and not train.unanswerable:
        notes.append(
            f"{dev_file}: {dev.unanswerable:,} of {len(dev):,} questions have no answer, but all "
            "training questions have: each gets one, which is wrong"
        )
    return TaskData(train, {"dev": dev}, {}, None, notes)


def read_questions(path: Path, notes: list[str]) -> list[Question]:
    """Read a file of the form that its name and its contents say.

    Args:
        notes: are told how many questions were skipped, and the first reason.

    Raises:
        UserError: as `load_questions`.
    """
    reading = Reading(str(path), _answers)
    names: set[str] = set()
    with naming(path), open_binary(path) as file:
        lines = any(suffix.lower() in LINES for suffix in path.suffixes)
        records = _lines(file) if lines else _squad(path, file.read())
        for place, record in records:
            if not isinstance(record, dict):
                reading.reject(place, "not a JSON object" if record is None else record)
            elif missing := [key for key in ("context", *_KEYS) if key not in record]:
                reading.reject(place, f"no {', '.join(map(repr, missing))}")
            elif isinstance(record["id"], str) and record["id"] in names:
                reading.reject(place, f"a second question with the id {record['id']!r}")
            else:
                texts = (record["id"], record["question"], record["context"])
                reading.add(place, [*texts, (record["context"], record)])
                if isinstance(record["id"], str):
                    names.add(record["id"])
    reading.check(notes)
    shared: dict[str, str] = {}  # a context is there once for each of its questions
    return [
        Question(name, text, shared.setdefault(context, context), answers)
        for (name, text, context), answers in zip(reading.texts, reading.labels, strict=True)
    ]


def _lines(file: Any) -> Iterator[tuple[int, Any]]:
    """Yield number and record of each line; None for what is no JSON object."""
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                record = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
            except (ValueError, RecursionError):
                record = None
            yield number, record if isinstance(record, dict) else None


def _squad(path: Path, contents: bytes) -> Iterator[tuple[str, Any]]:
    """Yield place and record of each question of SQuAD's JSON; a text says what is wrong there."""
    way_out = f"; a file with a question on each line is called {LINES[0]}"
    try:
        document = json.loads(contents.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}{way_out}") from None
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise UserError(f'{path}: not SQuAD\'s JSON, {{"data": [...]}}{way_out}')
    for number, article in enumerate(document["data"], 1):
        place = f"article {number}"
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            yield place, "no list of 'paragraphs'"
            continue
        for number, paragraph in enumerate(paragraphs, 1):
            within = f"{place}, paragraph {number}"
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list):
                yield within, "no list of 'qas'"
                continue
            for number, question in enumerate(questions, 1):
                of_paragraph = {k: paragraph[k] for k in ("context",) if k in paragraph}
                record = {**question, **of_paragraph} if isinstance(question, dict) else None
                yield f"{within}, question {number}", record


def _answers(of: tuple[Any, Json]) -> tuple[Answer, ...]:
    """The answers of a record; raises ValueError with what keeps it from being used."""
    context, record = of
    for key in ("id", "question", "context"):
        if isinstance(record[key], str) and not record[key].strip():
            raise ValueError(f"{key} is empty")
    given = record["answers"]
    if isinstance(given, dict) and given.keys() >= {"text", "answer_start"}:
        texts, starts = given["text"], given["answer_start"]
        if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
            raise ValueError("'text' and 'answer_start' are no lists of one length")
        given = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    if not isinstance(given, list):
        raise ValueError(f"answers are {given!r}, no list")
    impossible = record.get("is_impossible", not given)
    if not isinstance(impossible, bool) or impossible != (not given):
        raise ValueError(f"is_impossible is {impossible!r}, and there are {len(given)} answers")
    return tuple(_answer(answer, context) for answer in given)


def _answer(given: object, context: str) -> Answer:
    text = given.get("text") if isinstance(given, dict) else None
    start = given.get("answer_start") if isinstance(given, dict) else None
    if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
        raise ValueError(f"answer {given!r} is not a text and a number of its first character")
    if not text.strip():
        raise ValueError("an answer is empty")
    if start < 0 or not context.startswith(text, start):
        there = context[start : start + len(text)] if start >= 0 else ""
        raise ValueError(f"answer {text!r} is not at character {start}, where {there!r} is")
    return Answer(text, start)
