"""Use of a token classifier: the words of a text, the tag of each, and its probability.

Words are what stands between blanks, as in the files of the finetuning: there, "Rome." is usually
two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from model.config import ModelOptions
from model.token_classifier import RapidBertForTokenClassification
from recipes.corpus.tokenizer import Tokenizer
from recipes.inference.computing import Compute, Model
from recipes.inference.finetuned import PREDICTION, Finetuned, Use, shortest
from recipes.inference.outputs import Row
from recipes.inference.record_files import TEXT_COLUMN
from recipes.tasks.token_classification import EncodedSentences

WORDS, PROBABILITIES = "words", "probabilities"


@dataclass(frozen=True)
class Tagged:
    """Words with their scores, fp32 [classes]; None of one of which the tokenizer keeps nothing."""

    words: Sequence[str]
    scores: list[np.ndarray | None]


def _model(found: Finetuned, tokenizer: Tokenizer, compute: Compute, max_length: int) -> Model:
    def encode(texts: Sequence[tuple[str, ...]]) -> tuple[EncodedSentences, int]:
        words = [text.split() for (text,) in texts]
        return EncodedSentences(tokenizer, words, None, max_length), 0  # windows, so none is cut

    def conclude(examples: EncodedSentences, scores: list[np.ndarray]) -> list[Tagged]:
        of_words: list[np.ndarray | None] = [None] * examples.count
        for of, places, words in zip(scores, examples.places, examples.words, strict=True):
            for place, word in zip(places, words, strict=True):
                of_words[word] = of[place]
        by_sentence = examples.by_sentence(of_words)
        return [Tagged(*each) for each in zip(examples.sentences, by_sentence, strict=True)]

    return Model(compute, encode, per_token=True, conclude=conclude)


def _outputs(found: Finetuned) -> int:
    return len(found.labels or ())


def _build(found: Finetuned, options: ModelOptions) -> RapidBertForTokenClassification:
    return RapidBertForTokenClassification(found.export.config, _outputs(found), options)


def _answer(found: Finetuned, tagged: Tagged) -> Row:
    labels, unread = found.labels or (), found.task.get("unread_tag")
    tags = [unread if of is None else labels[int(of.argmax())] for of in tagged.scores]
    shares = [None if of is None else shortest(softmax(of).max()) for of in tagged.scores]
    return {WORDS: list(tagged.words), PREDICTION: tags, PROBABILITIES: shares}


TOKEN_CLASSIFICATION = Use(
    head="classifier.weight",
    outputs=_outputs,
    text_columns=(TEXT_COLUMN,),
    columns=lambda found, flat: (WORDS, PREDICTION, PROBABILITIES),
    model=_model,
    build=_build,
    public_head="token_classifier",
    answer=_answer,
)
