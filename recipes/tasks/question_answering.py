"""Extractive question answering: windows in batches, and the answers of a model to a set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from model.span_classifier import RapidBertForQuestionAnswering
from recipes.common.errors import UserError
from recipes.corpus.tokenizer import Tokenizer
from recipes.engine.world import World
from recipes.tasks.answer_metrics import answer_metrics
from recipes.tasks.answers import Answered, Candidate, answer_questions, best_spans
from recipes.tasks.classification_batches import PackedExamples
from recipes.tasks.question_data import Question
from recipes.tasks.question_windows import make_windows


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

    def notes(self, name: str, max_length: int) -> list[str]:
        """Say how the questions of the set `name` became windows."""
        count, made = len(self.questions), self.made
        notes = [f"{name} set: {count:,} questions in {len(self):,} windows (--max-length)"]
        if made.cut:
            notes.append(
                f"{name} set: {made.cut:,} of {count:,} questions are cut to half of a window, "
                f"{(max_length - 3) // 2:,} tokens (--max-length)"
            )
        if made.lost:
            notes.append(
                f"{name} set: of {made.lost:,} of {count:,} answers the tokenizer keeps nothing"
            )
        return notes


@torch.no_grad()
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
    model.eval()
    mine: list[tuple[int, Candidate | None]] = []
    for batch in examples.evaluation_batches(
        batch_size, rank=world.data_parallel_rank, world_size=world.data_parallel_size
    ):
        batch = batch.to(world.device)
        scores = model.logits(
            batch.input_ids,
            batch.sequence_offsets,
            batch.max_sequence_length,
            batch.token_type_ids,
        )
        parts = np.split(scores.cpu().numpy(), batch.sequence_offsets[1:-1].tolist())
        for row, of in zip(batch.rows.tolist(), parts, strict=False):
            whole = bool(np.isfinite(of).all())
            mine.append((row, best_spans(examples.made.windows[row], of) if whole else None))
    model.train()
    gathered: list[Any] = [None] * world.world_size
    dist.all_gather_object(gathered, mine)
    candidates = {row: found for of_rank in gathered for row, found in of_rank}
    if broken := sum(found is None for found in candidates.values()):
        raise UserError(
            f"for {broken:,} of {len(examples):,} windows the model computes something else than "
            "numbers (NaN or infinity); nothing of it is written, a lower --learning-rate is the "
            "usual cure"
        )
    return answer_questions(examples.questions, examples.made, candidates, may_refuse=may_refuse)


def score_answers(questions: Sequence[Question], answered: dict[str, Answered]) -> dict[str, float]:
    """Measure answers as SQuAD's script does."""
    return answer_metrics(
        {name: each.text for name, each in answered.items()},
        {question.name: [a.text for a in question.answers] for question in questions},
    )
