"""Extractive question answering: windows in batches, and the answers of a model to a set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from model.config import ModelOptions
from model.span_classifier import RapidBertForQuestionAnswering
from recipes.common.errors import UserError
from recipes.common.json_content import Json
from recipes.corpus.tokenizer import Tokenizer
from recipes.engine.world import World
from recipes.tasks.answer_metrics import answer_metrics
from recipes.tasks.answers import (
    Answered,
    Candidate,
    answer_files,
    answer_questions,
    best_spans,
)
from recipes.tasks.classification_batches import ClassificationBatch, PackedExamples
from recipes.tasks.classification_data import TaskData
from recipes.tasks.evaluation import evaluation_batch
from recipes.tasks.finetune_settings import Checks, OwnData, Settings
from recipes.tasks.question_data import Question, Questions, load_questions
from recipes.tasks.question_windows import SPECIAL_TOKENS, make_windows
from recipes.tasks.rank_results import check_numbers, computed_by_all
from recipes.tasks.work import Finetuning, Measured


class EncodedQuestions(PackedExamples):
    """Questions as windows over their texts; a window is an example (see `make_windows`)."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        questions: Sequence[Question],
        max_length: int,
        *,
        training: bool,
    ):
        self.questions = questions
        self.made = make_windows(tokenizer, questions, max_length, training=training)
        windows = self.made.windows
        super().__init__(
            [window.ids for window in windows],
            np.array([window.context_place for window in windows], np.int64),
            np.array([window.answer for window in windows], np.int64).reshape(-1, 2),
            max_length,
        )


def columns(own: OwnData) -> Checks:
    """Refuse any: SQuAD's names are fixed."""
    fixed = "--kind question-answering has fixed names: id, question, context, answers"
    return [
        (not own.text_columns, f"--text-columns: {fixed}"),
        (not own.label_column, f"--label-column: {fixed}"),
    ]


def load(settings: Settings) -> TaskData[Questions]:
    """Read both files of one's own (see `load_questions`)."""
    return load_questions(*settings.own_data.files)


def build(work: Finetuning, options: ModelOptions) -> RapidBertForQuestionAnswering:
    """Build a model that scores starts and ends."""
    return RapidBertForQuestionAnswering(work.config, options)


def encode(work: Finetuning, questions: Questions, training: bool) -> EncodedQuestions:
    """Encode questions; raises UserError if the tokenizer keeps nothing of any training answer."""
    length = work.settings.max_length
    encoded = EncodedQuestions(work.tokenizer, questions.all, length, training=training)
    if not len(encoded):
        raise UserError(
            f"of none of the {len(questions):,} training answers the tokenizer keeps anything"
        )
    return encoded


def notes(work: Finetuning, name: str, of: EncodedQuestions) -> list[str]:
    """Say how the questions of a set became windows."""
    count, made, length = len(of.questions), of.made, work.settings.max_length
    said = [f"{name} set: {count:,} questions in {len(of):,} windows of {length:,} tokens at most"]
    if made.cut:
        said.append(
            f"{name} set: {made.cut:,} of {count:,} questions are cut to half of a window, "
            f"{(length - SPECIAL_TOKENS) // 2:,} tokens (--max-length)"
        )
    if made.lost:
        said.append(
            f"{name} set: of {made.lost:,} of {count:,} answers the tokenizer keeps nothing"
        )
    return said


def facts(work: Finetuning) -> Json:
    """Say whether the model has learnt that a question may have no answer."""
    return {"may_refuse": work.data.train.unanswerable > 0}


def measure(
    model: RapidBertForQuestionAnswering, work: Finetuning, examples: EncodedQuestions, world: World
) -> Measured:
    """Measure exact match and F1, and make SQuAD's files. Call on every rank."""
    may_refuse = work.data.train.unanswerable > 0
    batch_size = evaluation_batch(examples.max_length, world)
    answered = answer(model, examples, batch_size, world, may_refuse=may_refuse)
    metrics = score_answers(examples.questions, answered)
    return Measured(metrics, answer_files(answered, may_refuse=may_refuse))


def answer(
    model: RapidBertForQuestionAnswering,
    examples: EncodedQuestions,
    batch_size: int,
    world: World,
    *,
    may_refuse: bool,
) -> dict[str, Answered]:
    """Answer the questions of a set, by their names. Call on every rank.

    Raises:
        UserError: the model computes something else than numbers.
    """

    def part(batch: ClassificationBatch, scores: Tensor) -> list[tuple[int, Candidate | None]]:
        of_windows = np.split(scores.cpu().numpy(), batch.sequence_offsets[1:-1].tolist())
        return [
            (row, best_spans(examples.made.windows[row], of) if np.isfinite(of).all() else None)
            for row, of in zip(batch.rows.tolist(), of_windows, strict=False)
        ]

    found = computed_by_all(model, model.logits, examples, batch_size, world, part)
    windows = [window for of_batch in found for window in of_batch]
    candidates = {row: candidate for row, candidate in windows if candidate is not None}
    check_numbers(len(windows) - len(candidates), len(examples), "windows")
    return answer_questions(examples.questions, examples.made, candidates, may_refuse=may_refuse)


def score_answers(questions: Sequence[Question], answered: dict[str, Answered]) -> dict[str, float]:
    """Measure answers as SQuAD's script does."""
    return answer_metrics(
        {name: each.text for name, each in answered.items()},
        {question.name: [a.text for a in question.answers] for question in questions},
    )
