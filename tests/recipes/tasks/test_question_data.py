"""SQuAD's JSON and JSON Lines, read alike; what is refused and what is skipped."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from recipes.common.errors import UserError
from recipes.tasks.question_data import (
    Answer,
    Question,
    load_questions,
    read_questions,
)

CONTEXT = "Rollo came from the north. He took Rouen."


def asked(name: str, text: str = "Who came?", *answers: str, **more: Any) -> dict[str, Any]:
    given = [{"text": answer, "answer_start": CONTEXT.index(answer)} for answer in answers]
    return {"id": name, "question": text, "answers": given, **more}


def squad(path: Path, *questions: Any, context: Any = CONTEXT, **more: Any) -> Path:
    paragraphs = [{"context": context, "qas": list(questions)}]
    path.write_text(json.dumps({"version": "v2.0", "data": [{"paragraphs": paragraphs}], **more}))
    return path


def lines(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return path


QUESTIONS = [
    asked("a", "Who came?", "Rollo", "He", is_impossible=False),
    asked("b", "What did he sell?", is_impossible=True, plausible_answers=[{"text": "Rouen"}]),
]
READ = [
    Question("a", "Who came?", CONTEXT, (Answer("Rollo", 0), Answer("He", 27))),
    Question("b", "What did he sell?", CONTEXT, ()),
]


def test_forms_are_read_alike(tmp_path):
    records = [{**question, "context": CONTEXT} for question in QUESTIONS]
    hub = {"text": ["Rollo", "He"], "answer_start": [0, 27]}
    in_columns = [{**records[0], "answers": hub}, {**records[1], "answers": {"text": [], **{}}}]
    in_columns[1]["answers"]["answer_start"] = []
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(squad(tmp_path / "dev.json", *QUESTIONS).read_bytes()))
    files = [tmp_path / "dev.json", packed, lines(tmp_path / "dev.jsonl", *records)]
    files.append(lines(tmp_path / "hub.jsonl", *in_columns))
    for file in files:
        notes: list[str] = []
        assert read_questions(file, notes) == READ
        assert not notes


def test_questions_about_one_text_share_it(tmp_path):
    records = [{**question, "context": CONTEXT} for question in QUESTIONS]
    first, second = read_questions(lines(tmp_path / "dev.jsonl", *records), [])
    assert first.context is second.context


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (asked("x", " ", "Rollo"), "question is empty"),
        (asked("", "Who?", "Rollo"), "id is empty"),
        (asked("a", "Who?", "Rollo"), "a second question with the id 'a'"),
        ({"id": "x", "question": "Who?"}, "no 'answers'"),
        ({"answers": []}, "no 'id', 'question'"),
        (asked("x", "Who?", "Rollo", is_impossible=True), "is_impossible is True, and there are 1"),
        (
            asked("x", "Who?", is_impossible=False),
            "is_impossible is False, and there are 0 answers",
        ),
        ({**asked("x"), "id": 7}, "7 is no text"),
        ({**asked("x"), "id": ["x"]}, r"\['x'\] is no text"),
        ({**asked("x"), "answers": "Rollo"}, "answers are 'Rollo', no list"),
        ({**asked("x"), "answers": ["Rollo"]}, "answer 'Rollo' is not a text and a number"),
        (
            {**asked("x"), "answers": [{"text": "Rollo", "answer_start": 1}]},
            "answer 'Rollo' is not at character 1, where 'ollo ' is",
        ),
        (
            {**asked("x"), "answers": [{"text": "Rollo", "answer_start": -41}]},
            "answer 'Rollo' is not at character -41, where '' is",
        ),
        ({**asked("x"), "answers": [{"text": "", "answer_start": 1}]}, "an answer is empty"),
        (
            {**asked("x"), "answers": {"text": ["a"], "answer_start": []}},
            "'text' and 'answer_start' are no lists of one length",
        ),
        ("Who?", "not a JSON object"),
    ],
)
def test_a_question_that_cannot_be_used_is_named(tmp_path, question, reason):
    """Of two, so more than 1%; of two hundred it is skipped with a note."""
    path = squad(tmp_path / "dev.json", asked("a", "Who came?", "Rollo"), question)
    with pytest.raises(UserError, match=f"article 1, paragraph 1, question 2: {reason}"):
        read_questions(path, [])
    good = [asked(f"good {number}", "Who came?", "Rollo") for number in range(199)]
    good[0]["id"] = "a"
    path, notes = squad(tmp_path / "dev.json", *good, question), list[str]()
    assert len(read_questions(path, notes)) == 199
    (note,) = notes
    assert note.endswith("1 of 200 records cannot be used and were skipped")


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ("{", "not JSON: .*; a file with a question on each line is called .jsonl"),
        ("[]", 'not SQuAD\'s JSON, {"data": '),
        ('{"data": []}', "no examples in it"),
        ('{"data": [{}]}', "article 1: no list of 'paragraphs'; 1 of 1 records"),
        ('{"data": [{"paragraphs": [7]}]}', "article 1, paragraph 1: no list of 'qas'"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, contents, reason):
    path = tmp_path / "train.json"
    path.write_text(contents)
    with pytest.raises(UserError, match=reason):
        read_questions(path, [])


@pytest.mark.parametrize(("context", "reason"), [(" ", "context is empty"), (None, "None is no")])
def test_a_text_that_is_none_is_refused(tmp_path, context, reason):
    path = squad(tmp_path / "train.json", asked("a"), context=context)
    with pytest.raises(UserError, match=reason):
        read_questions(path, [])


def test_faults_of_both_files_are_named(tmp_path):
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(UserError) as error:
        load_questions(tmp_path / "train.json", tmp_path / "dev.json")
    assert [fault.split(": ")[1][:9] for fault in error.value.faults] == ["not SQuAD", "cannot be"]


def test_what_a_reader_of_the_scores_should_know(tmp_path):
    train = squad(tmp_path / "train.json", QUESTIONS[0], asked("c", "Whence?", "the north"))
    dev = squad(tmp_path / "dev.json", *QUESTIONS)
    data = load_questions(train, dev)
    assert not data.train.unanswerable and load_questions(dev, dev).train.unanswerable == 1
    assert "1 of 2 questions are in the training set" in data.notes[0]
    assert "1 of 2 questions have no answer, but all training questions have" in data.notes[1]
    assert data.dev["dev"].all == READ and data.train.front(1).all == READ[:1]
    parts = [list(of.parts("dev")) for of in (data.train, data.train.front(1), data.dev["dev"])]
    assert parts[0][:2] == parts[1] and parts[0] != parts[2]
    only = squad(tmp_path / "only.json", QUESTIONS[1])
    with pytest.raises(UserError, match="none of its 1 questions has an answer"):
        load_questions(only, dev)
