"""Answering a set of questions over ranks, with a model that knows which words are right."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from question_scenarios import Words

from model.parallel import initialize_parallel
from recipes.common.errors import UserError
from recipes.engine.world import World
from recipes.tasks.question_answering import (
    EncodedQuestions,
    answer,
    encode,
    notes,
    score_answers,
)
from recipes.tasks.question_data import Answer, Question, Questions

ALONE = World(0, 0, 1, torch.device("cpu"), 0, 1, 1)
PEOPLE = ["Rollo", "William", "Emma", "Cnut", "Harald"]


class Knows:
    """Points at a person's name, and at [CLS] where there is none."""

    def __init__(self, people: list[int], broken: int | None = None):
        self.people, self.broken = people, broken

    def eval(self) -> None: ...

    def train(self) -> None: ...

    def logits(self, ids, offsets, max_length, types):
        named = torch.isin(ids, torch.tensor(self.people))
        scores = torch.where(named, 3.0, -3.0).unsqueeze(1).repeat(1, 2)
        scores[ids == Words.cls_id] = 0.0
        assert not types[offsets[:-1][offsets.diff() > 0]].any()
        if self.broken is not None:
            scores[ids == self.broken] = torch.nan
        return scores


@pytest.fixture(autouse=True, scope="module")
def one_process() -> None:
    initialize_parallel()


@pytest.fixture
def asked() -> EncodedQuestions:
    filler = " ".join(f"w{number}" for number in range(7))
    questions = [
        Question(f"q{n}", "who", text, (Answer(person, text.index(person)),))
        for n, person in enumerate(PEOPLE)
        for text in [f"{filler[: 3 * n]} {person} came, {filler}"]
    ]
    questions.append(Question("none", "who", filler, ()))
    tokenizer = Words()
    made = EncodedQuestions(tokenizer, questions, 9, training=True)
    made.known = tokenizer.known
    return made


def test_questions_are_answered_by_all_their_windows(asked):
    model = Knows([asked.known[person] for person in PEOPLE])
    found = answer(model, asked, 4, ALONE, may_refuse=True)
    assert {name: of.text for name, of in found.items()} == {
        **{f"q{number}": person for number, person in enumerate(PEOPLE)},
        "none": "",
    }
    assert set(score_answers(asked.questions, found).values()) == {1.0}
    forced = answer(model, asked, 4, ALONE, may_refuse=False)
    assert forced["none"].text and score_answers(asked.questions, forced)["f1"] == 5 / 6


def test_ranks_answer_together(asked, monkeypatch):
    """Each rank computes its part of the windows; what the other found comes by the gather."""
    model = Knows([asked.known[person] for person in PEOPLE])
    whole = answer(model, asked, 4, ALONE, may_refuse=True)
    found: list[list] = []

    def gather(into, mine):
        found.append(mine)
        into[:] = [*found, *[None] * len(into)][: len(into)]
        if len(found) < 2:
            raise InterruptedError  # the other has not come yet

    monkeypatch.setattr(dist, "all_gather_object", gather)
    first, second = (
        replace(ALONE, rank=r, world_size=2, data_parallel_rank=r, data_parallel_size=2)
        for r in range(2)
    )
    with pytest.raises(InterruptedError):
        answer(model, asked, 4, first, may_refuse=True)
    assert answer(model, asked, 4, second, may_refuse=True) == whole
    rows = [[row for batch in part for row, _ in batch] for part in found]
    assert sorted(rows[0] + rows[1]) == list(range(len(asked))) and rows[0] and rows[1]


def test_scores_that_are_no_numbers_are_no_answers(asked):
    model = Knows([], broken=asked.known["Emma"])
    with pytest.raises(UserError, match=r"for [1-9] of \d+ windows the model computes something"):
        answer(model, asked, 4, ALONE, may_refuse=True)


def test_what_became_of_the_questions_is_said(asked):
    work = SimpleNamespace(settings=SimpleNamespace(max_length=9))
    (only,) = notes(work, "dev", asked)
    assert only == f"dev set: 6 questions in {len(asked)} windows of 9 tokens at most"
    long = [Question("q", "a b c d", "he \x00 came", (Answer("\x00", 3),))]
    made = EncodedQuestions(Words(), long, 9, training=False)
    _, cut, lost = notes(work, "dev", made)
    assert "1 of 1 questions are cut to half of a window, 3 tokens" in cut
    assert "of 1 of 1 answers the tokenizer keeps nothing" in lost
    work.tokenizer = Words()
    with pytest.raises(UserError, match="of none of the 1 training answers"):
        encode(work, Questions(long), True)
