"""Windows over long texts, and the answers that are cut out of them again."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from question_scenarios import CLS, SEP, Words

from recipes.tasks.answers import answer_files, answer_questions, best_spans
from recipes.tasks.question_data import Answer, Question
from recipes.tasks.question_windows import Windows, make_windows, window_starts


def question(text: str, context: str, *answers: str, name: str = "q") -> Question:
    return Question(name, text, context, tuple(Answer(a, context.index(a)) for a in answers))


LONG = question("who came", "w0 w1 w2 Rollo came w5 w6 w7 w8 w9", "Rollo came", "w9")


def windows(*questions: Question, max_length: int = 11, training: bool = True) -> Windows:
    return make_windows(Words(), questions, max_length, training=training)


@pytest.mark.parametrize(
    ("tokens", "room", "starts"),
    [(0, 6, [0]), (6, 6, [0]), (7, 6, [0, 1]), (10, 6, [0, 3, 4]), (5, 2, [0, 1, 2, 3])],
)
def test_windows_overlap_by_half_and_end_with_the_text(tokens, room, starts):
    assert window_starts(tokens, room) == starts
    covered = {token for start in starts for token in range(start, min(tokens, start + room))}
    assert covered == set(range(tokens))


def test_a_window_is_question_and_text_and_points_at_its_answer():
    made = windows(LONG)  # 11 - 3 - 2 leave room for 6 tokens
    tokenizer = Words()
    who = tokenizer.encode_batch(["who came"])[0]
    text = tokenizer.encode_with_offsets(LONG.context)[0]
    expected = [[CLS, *who, SEP, *text[start : start + 6], SEP] for start in (0, 3, 4)]
    assert [list(window.ids) for window in made.windows] == expected
    assert [window.context_token for window in made.windows] == [0, 3, 4]
    # Rollo is token 3 of the text; the third window begins behind it.
    assert [window.answer for window in made.windows] == [(7, 8), (4, 5), (0, 0)]
    first = made.windows[0]
    assert list(first.ids[7:9]) == [tokenizer.known["Rollo"], tokenizer.known["came"]]


def test_an_answer_is_the_tokens_that_have_one_of_its_characters():
    made = windows(question("who", "in 1066-1087 he", "1087"))
    assert made.windows[0].answer == (4, 4)


def test_no_answer_points_at_the_first_token_and_texts_are_encoded_once():
    made = windows(question("who", "nobody came"), question("where", "nobody came"))
    assert [window.answer for window in made.windows] == [(0, 0)] * 2
    assert made.contexts[0] is made.contexts[1]


def test_a_long_question_leaves_half_to_the_text():
    made = windows(question("a b c d e f g h i j", "Rollo came from the north", "north"))
    assert made.cut == 1
    assert [len(window.ids) for window in made.windows] == [11, 11]
    assert [window.context_place for window in made.windows] == [6, 6]  # [CLS] 4 [SEP], 4 of text
    assert [window.answer for window in made.windows] == [(0, 0), (9, 9)]
    with pytest.raises(ValueError, match="max_length 6: at least 7"):
        windows(LONG, max_length=6)


def test_an_answer_without_a_token_is_left_out_of_training_alone():
    of_control = question("who", "he \x00 came", "\x00")
    assert not windows(of_control).windows and windows(of_control).lost == 1
    assert len(windows(of_control, training=False).windows) == 1


def answered(of: Question, favoured: dict[int, dict[int, float]], null=0.0, **more):
    """What is answered where tokens of the whole text have scores as starts and ends, by window."""
    made = windows(of)
    candidates = {}
    for number, window in enumerate(made.windows):
        scores = np.zeros((len(window.ids), 2), np.float32)
        scores[0] = null / 2
        for token, score in favoured.get(number, {}).items():
            scores[window.context_place + token - window.context_token] = score
        candidates[number] = best_spans(window, scores)
    return answer_questions([of], made, candidates, may_refuse=more.get("may_refuse", False))["q"]


def test_the_best_window_wins_and_the_text_is_the_texts_own():
    found = answered(LONG, {0: {3: 1.0}, 2: {5: 2.0}})
    assert found.text == "w5" and found.null_odds == pytest.approx(0 - 4)
    assert found.best[0][0] == "w5" and sum(share for _, share in found.best) == pytest.approx(1)
    assert len({text for text, _ in found.best}) == len(found.best) == 20
    context = "Who \u201cRollo\u201d   he came"
    of = question("who", context, "he")
    scores = {0: {1: 3.0, 2: 3.0}}
    assert answered(of, scores).text == "\u201cRollo\u201d"
    assert answered(of, {0: {0: -9.0, 1: 3.0, 2: 2.0, 3: -9.0}}).text == "\u201cRollo\u201d"


def test_spans_are_the_best_of_all_that_are_allowed():
    """Against every pair of tokens, longer than the longest answer and backwards ones left out."""
    rng = np.random.default_rng(0)
    of = question("who", " ".join(f"w{number}" for number in range(50)))
    (window,) = windows(of, max_length=60).windows
    scores = rng.normal(size=(len(window.ids), 2)).astype(np.float32)
    starts, ends = scores[3:53].astype(np.float64).T
    pairs = [(starts[i] + ends[j], i, j) for i in range(50) for j in range(i, min(50, i + 30))]
    found = best_spans(window, scores)
    assert found.spans == sorted(pairs, reverse=True)[:20]
    assert found.null == pytest.approx(float(scores[0].sum()))


def test_no_answer_has_to_be_allowed_and_to_be_likelier():
    assert answered(LONG, {0: {3: 1.0}}, null=9.0).text == "Rollo"
    refused = answered(LONG, {0: {3: 1.0}}, null=9.0, may_refuse=True)
    assert refused.text == "" and refused.null_odds == pytest.approx(7.0)
    assert refused.best[0][0] == ""
    assert answered(LONG, {0: {3: 5.0}}, null=9.0, may_refuse=True).text == "Rollo"


def test_a_text_without_tokens_is_not_answered():
    found = answered(question("who", "\x00"), {})
    assert found.text == "" and found.null_odds == math.inf and not found.best


def test_files_are_those_of_the_official_script():
    found = {"q": answered(LONG, {0: {3: 1.0}}, null=9.0, may_refuse=True)}
    files = answer_files(found, may_refuse=True)
    assert json.loads(files["predictions.json"]) == {"q": ""}
    assert json.loads(files["best_answers.json"])["q"][1]["text"] == "Rollo"
    assert json.loads(files["null_odds.json"]) == {"q": pytest.approx(7.0)}
    assert "null_odds.json" not in answer_files(found, may_refuse=False)
    found = {"q": answered(question("who", "\x00"), {})}
    assert json.loads(answer_files(found, may_refuse=True)["null_odds.json"])["q"] > 1e8
