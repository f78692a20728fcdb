"""Use of a question answerer: the answer, cut out of the text, and its probability.

Long texts are read in windows, as in the finetuning. An empty answer says that there is none in the
text; only a model that has learnt from questions without answers gives it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.config import ModelOptions
from model.span_classifier import RapidBertForQuestionAnswering
from recipes.corpus.tokenizer import Tokenizer
from recipes.inference.computing import Compute, Model
from recipes.inference.finetuned import PREDICTION, Finetuned, Use, shortest
from recipes.inference.outputs import Row
from recipes.tasks.answers import Answered, answer_questions, best_spans
from recipes.tasks.question_answering import EncodedQuestions
from recipes.tasks.question_data import Question

PROBABILITY = "probability"


def _model(found: Finetuned, tokenizer: Tokenizer, compute: Compute, max_length: int) -> Model:
    def encode(texts: Sequence[tuple[str, ...]]) -> tuple[EncodedQuestions, int]:
        questions = [
            Question(str(number), question, context, ())
            for number, (question, context) in enumerate(texts)
        ]
        examples = EncodedQuestions(tokenizer, questions, max_length, training=False)
        return examples, examples.made.cut

    def conclude(examples: EncodedQuestions, scores: list[np.ndarray]) -> list[Answered]:
        windows = examples.made.windows
        candidates = dict(enumerate(map(best_spans, windows, scores)))
        may_refuse = bool(found.task.get("may_refuse"))
        answered = answer_questions(
            examples.questions, examples.made, candidates, may_refuse=may_refuse
        )
        return [answered[question.name] for question in examples.questions]

    return Model(compute, encode, per_token=True, conclude=conclude)


def _build(found: Finetuned, options: ModelOptions) -> RapidBertForQuestionAnswering:
    return RapidBertForQuestionAnswering(found.export.config, options)


def _answer(found: Finetuned, answered: Answered) -> Row:
    shares = dict(answered.best)
    return {
        PREDICTION: answered.text,
        PROBABILITY: shortest(shares.get(answered.text, 0.0)),
    }


QUESTION_ANSWERING = Use(
    head="qa_outputs.weight",
    outputs=lambda found: 2,
    text_columns=("question", "context"),
    columns=lambda found, flat: (PREDICTION, PROBABILITY),
    model=_model,
    build=_build,
    public_head="span_classifier",
    answer=_answer,
)
