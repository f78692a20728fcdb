"""Questions about long texts to sequences of a length: [CLS] question [SEP] window [SEP].

A text that is too long is cut into windows that overlap by half of one, so that every answer of up
to half a window stands whole in one of them. A window without the answer is trained to point at
[CLS], as is one of a question without an answer (Devlin et al. 2019, sections 4.2 and 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recipes.corpus.tokenizer import Tokenizer
from recipes.tasks.question_data import Answer, Question

SPECIAL_TOKENS = 3
SHORTEST_WINDOW = 2  # tokens; a step is half of it


@dataclass(frozen=True)
class EncodedContext:
    """A text as tokens."""

    ids: np.ndarray
    """int64 [tokens]."""
    begins: np.ndarray
    """int64 [tokens], the character where each begins."""
    ends: np.ndarray
    """int64 [tokens], the character behind each."""

    def tokens(self, answer: Answer) -> tuple[int, int] | None:
        """Return first and last token of an answer; None if no token is made of its characters."""
        end = answer.start + len(answer.text)
        (inside,) = np.nonzero((self.ends > answer.start) & (self.begins < end))
        return (int(inside[0]), int(inside[-1])) if len(inside) else None


@dataclass(frozen=True)
class Window:
    """One sequence: a question and a part of its text."""

    question: int
    """Index of the question."""
    ids: np.ndarray
    """int64 [tokens], special ones included."""
    context_place: int
    """Place in the sequence of the first token of the text."""
    context_token: int
    """Which token of the whole text that is."""
    answer: tuple[int, int]
    """Places of the answer's first and last token; (0, 0), [CLS], where it is not in the window."""


@dataclass(frozen=True)
class Windows:
    """All windows of a set of questions, and the texts behind them."""

    windows: list[Window]
    contexts: list[EncodedContext]
    """By question; questions about one text share one."""
    cut: int
    """Questions that are cut: they may have half of a sequence."""
    lost: int
    """Questions whose answer no token is made of; in training they are left out."""


def make_windows(
    tokenizer: Tokenizer, questions: Sequence[Question], max_length: int, *, training: bool
) -> Windows:
    """Cut the questions' texts into windows.

    Args:
        max_length: tokens of a sequence, special ones included.
        training: leave out questions whose answer cannot be learnt.

    Raises:
        ValueError: `max_length` is too short for anything.
    """
    shortest = SPECIAL_TOKENS + 2 * SHORTEST_WINDOW
    if max_length < shortest:
        raise ValueError(f"max_length {max_length}: at least {shortest} tokens")
    encoded: dict[str, EncodedContext] = {}
    found = Windows([], [], 0, 0)
    cut = lost = 0
    asked = tokenizer.encode_batch([question.text for question in questions])
    for number, (question, words) in enumerate(zip(questions, asked, strict=True)):
        if (context := encoded.get(question.context)) is None:
            context = encoded[question.context] = encode_context(tokenizer, question.context)
        found.contexts.append(context)
        longest = (max_length - SPECIAL_TOKENS) // 2
        cut += len(words) > longest
        span = context.tokens(question.answers[0]) if question.answers else None
        unlearnable = bool(question.answers) and span is None
        lost += unlearnable
        if training and unlearnable:
            continue
        before = [tokenizer.cls_id, *words[:longest], tokenizer.sep_id]
        room = max_length - len(before) - 1
        for first in window_starts(len(context.ids), room):
            part = context.ids[first : first + room]
            answer = (0, 0)
            if span and first <= span[0] and span[1] < first + len(part):
                shift = len(before) - first
                answer = (span[0] + shift, span[1] + shift)
            ids = np.concatenate([before, part, [tokenizer.sep_id]]).astype(np.int64)
            found.windows.append(Window(number, ids, len(before), first, answer))
    return Windows(found.windows, found.contexts, cut, lost)


def encode_context(tokenizer: Tokenizer, text: str) -> EncodedContext:
    """Cut a text into tokens that know their characters."""
    ids, spans = tokenizer.encode_with_offsets(text)
    places = np.array(spans, np.int64).reshape(-1, 2)
    return EncodedContext(np.array(ids, np.int64), places[:, 0], places[:, 1])


def window_starts(tokens: int, room: int) -> list[int]:
    """Return the first token of each window of `room` tokens; the last one ends with the text."""
    if tokens <= room:
        return [0]
    return [*range(0, tokens - room, max(1, room // 2)), tokens - room]
