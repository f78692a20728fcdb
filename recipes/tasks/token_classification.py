"""Token classification: sentences as windows in batches, and a model's tags of words.

The ids are those of the sentence's text, its words with a blank between them: what the encoder has
read in pretraining, and what every other program gives the exported model for that text, whatever
the tokenizer does at the edges of words. A word's class is that of its first piece (Devlin et al.
2019, section 5.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import ModelOptions
from model.labels import IGNORED_LABEL
from model.token_classifier import RapidBertForTokenClassification
from recipes.common.errors import UserError
from recipes.common.json_content import Json
from recipes.corpus.tokenizer import Tokenizer
from recipes.engine.world import World
from recipes.tasks.classification_batches import ClassificationBatch, PackedExamples
from recipes.tasks.classification_data import TaskData
from recipes.tasks.evaluation import evaluation_batch
from recipes.tasks.example_files import JSON_LINES
from recipes.tasks.finetune_settings import Checks, OwnData, Settings
from recipes.tasks.question_windows import encode_context, window_starts
from recipes.tasks.rank_results import check_numbers, computed_by_all
from recipes.tasks.tag_schemes import (
    ENTITY_METRICS,
    OUTSIDE,
    WORD_METRICS,
    spells_entities,
    tag_metrics,
)
from recipes.tasks.tagged_sentences import TAGS, WORDS, Sentences, load_sentences
from recipes.tasks.work import Finetuning, Measured

PREDICTIONS = "dev.conll"
_SPECIAL_TOKENS = 2


class EncodedSentences(PackedExamples):
    """Sentences as sequences; one that is too long is several windows that overlap by half.

    Every word is labelled, and predicted, in one window: that in whose middle it is most.

    Args:
        sentences: their words.
        classes: int64 [words] of all sentences, or None.
        max_length: tokens of a sequence, special ones included.

    Attributes:
        places, words: for each sequence int64 [labelled words], the place of a word's first piece
            in it, and the word's number among those of all sentences.
        lost: how many words the tokenizer keeps nothing of; they are in no sequence.
        split: how many sentences are several windows.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sentences: Sequence[Sequence[str]],
        classes: np.ndarray | None,
        max_length: int,
    ):
        room = max_length - _SPECIAL_TOKENS
        if room < 1:
            raise ValueError(f"max_length {max_length}: at least {_SPECIAL_TOKENS + 1} tokens")
        self.sentences, self.classes = sentences, classes
        self.places: list[np.ndarray] = []
        self.words: list[np.ndarray] = []
        self.count = self.split = 0
        sequences: list[np.ndarray] = []
        for words in sentences:
            ids, first = _first_pieces(tokenizer, words)
            starts = np.array(window_starts(len(ids), room))
            self.split += len(starts) > 1
            # Of windows of one length, a token is farthest from the edges of that whose middle is
            # nearest.
            window = np.searchsorted((starts[:-1] + starts[1:] + room - 1) / 2, first)
            for number, start in enumerate(starts):
                (mine,) = np.nonzero((window == number) & (first >= 0))
                if len(mine):
                    part = ids[start : start + room]
                    sequences.append(np.array([tokenizer.cls_id, *part, tokenizer.sep_id]))
                    self.places.append(first[mine] - start + 1)
                    self.words.append(mine + self.count)
            self.count += len(words)
        self.lost = self.count - sum(map(len, self.words))
        lengths = np.array([len(each) for each in sequences], np.int64)
        super().__init__(sequences, lengths, None, max_length)

    def _losses(self, rows: np.ndarray) -> int:
        return sum(len(self.places[row]) for row in rows)

    def _labels(self, rows: np.ndarray, places: int) -> Tensor:
        """Classes of these sequences' words on their first pieces, packed: int64 [tokens]."""
        labels = np.full(max(1, int(self.lengths[rows].sum())), IGNORED_LABEL)
        if self.classes is not None and len(rows):
            labels[self.tokens(rows)] = self.classes[np.concatenate([self.words[r] for r in rows])]
        return torch.from_numpy(labels)

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        """Return which tokens of these sequences, packed, are first pieces of labelled words."""
        ends = np.cumsum(self.lengths[rows])
        begins = ends - self.lengths[rows]
        parts = [begin + self.places[row] for begin, row in zip(begins, rows, strict=True)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def by_sentence(self, of_words: Sequence[Any]) -> list[list[Any]]:
        """Cut what there is of every word into sentences."""
        ends = np.cumsum([len(words) for words in self.sentences]).tolist()
        return [list(of_words[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def _first_pieces(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Encode a sentence and find the token that speaks for each word.

    Returns:
        int64 [tokens], ids without special ones; int64 [words], the first token with a character of
        each word, -1 where there is none of its own.
    """
    encoded = encode_context(tokenizer, " ".join(words))
    lengths = np.array([len(word) for word in words])
    ends = np.cumsum(lengths + 1) - 1
    first = np.searchsorted(encoded.ends, ends - lengths, side="right")
    begins = np.append(encoded.begins, np.iinfo(np.int64).max)
    first = np.where(begins[first] < ends, first, -1)
    # A word that the tokenizer takes for white space is in the first piece of the next one.
    first[:-1][first[:-1] == first[1:]] = -1
    return encoded.ids, first


def columns(own: OwnData) -> Checks:
    """Want a column of words and one of tags, which only JSON Lines name."""
    files = [path for path in (own.train_file, own.dev_file) if path is not None]
    objects = any(suffix.lower() in JSON_LINES for path in files for suffix in path.suffixes)
    named = ("--text-columns", own.text_columns), ("--label-column", own.label_column)
    of_objects = "is for JSON Lines; in columns the word is the first one and the tag the last one"
    return [
        *((len(of) <= 1, f"{option}: one column of lists at most") for option, of in named),
        *((objects or not of, f"{option} {of_objects}") for option, of in named),
    ]


def load(settings: Settings) -> TaskData[Sentences]:
    """Read both files of one's own (see `load_sentences`)."""
    own = settings.own_data
    words, tags = own.text_columns or (WORDS,), own.label_column or (TAGS,)
    return load_sentences(*own.files, (words[0], tags[0]))


def metrics(data: TaskData[Sentences]) -> tuple[str, ...]:
    """Name the metrics of entities where the tags spell such, else those of words."""
    return ENTITY_METRICS if spells_entities(data.labels or ()) else WORD_METRICS


def build(work: Finetuning, options: ModelOptions) -> RapidBertForTokenClassification:
    """Build a model that scores a class for each tag."""
    return RapidBertForTokenClassification(work.config, work.task.outputs, options)


def encode(work: Finetuning, sentences: Sentences, training: bool) -> EncodedSentences:
    """Encode sentences; raises UserError if the tokenizer keeps nothing of any word."""
    index = {name: number for number, name in enumerate(work.task.labels or ())}
    classes = [index[tag] for sentence in sentences.all for tag in sentence.tags]
    encoded = EncodedSentences(
        *(work.tokenizer, [sentence.words for sentence in sentences.all]),
        *(np.array(classes, np.int64), work.settings.max_length),
    )
    if not len(encoded):
        raise UserError(f"of none of the {encoded.count:,} words the tokenizer keeps anything")
    return encoded


def notes(work: Finetuning, name: str, of: EncodedSentences) -> list[str]:
    """Say what became of long sentences and of words without a piece."""
    said = []
    if of.split:
        said.append(
            f"{name} set: {of.split:,} of {len(of.sentences):,} sentences are longer than "
            f"{work.settings.max_length:,} tokens (--max-length) and are read in windows; each "
            "word counts once"
        )
    if of.lost:
        said.append(
            f"{name} set: of {of.lost:,} of {of.count:,} words the tokenizer keeps nothing; none "
            f"is trained on, and each is predicted to be {unread_tag(work.data)!r}"
        )
    return said


def unread_tag(data: TaskData[Sentences]) -> str:
    """Return the tag of words without a piece: O, or the commonest one where there is no O."""
    counts = Counter(tag for sentence in data.train.all for tag in sentence.tags)
    return OUTSIDE if OUTSIDE in counts else counts.most_common(1)[0][0]


def facts(work: Finetuning) -> Json:
    """Say the tag of words without a piece, and that the model is used on text, not on lists."""
    return {"unread_tag": unread_tag(work.data), "text_columns": ()}


def measure(
    model: RapidBertForTokenClassification,
    work: Finetuning,
    examples: EncodedSentences,
    world: World,
) -> Measured:
    """Measure entities or words, and make the file that conlleval reads. Call on every rank."""
    labels, classes = work.task.labels, examples.classes
    assert labels and classes is not None
    batch_size = evaluation_batch(examples.max_length, world)
    found = tag(model, examples, batch_size, world, labels.index(unread_tag(work.data)))
    right, predicted = (
        examples.by_sentence([labels[number] for number in each]) for each in (classes, found)
    )
    lines = [
        "".join(f"{word}\t{a}\t{b}\n" for word, a, b in zip(*each, strict=True))
        for each in zip(examples.sentences, right, predicted, strict=True)
    ]
    return Measured(tag_metrics(right, predicted), {PREDICTIONS: "\n".join(lines).encode()})


def tag(
    model: RapidBertForTokenClassification,
    examples: EncodedSentences,
    batch_size: int,
    world: World,
    unread: int,
) -> np.ndarray:
    """Predict the class of every word, int64 [words]. Call on every rank.

    Args:
        unread: class of words of which the tokenizer keeps nothing.

    Raises:
        UserError: the model computes something else than numbers.
    """

    def part(batch: ClassificationBatch, scores: Tensor) -> tuple[np.ndarray, np.ndarray, int]:
        scores = scores[torch.from_numpy(examples.tokens(batch.rows)).to(world.device)]
        words = np.concatenate([examples.words[row] for row in batch.rows])
        broken = int((~scores.isfinite().all(-1)).sum())
        return words, scores.argmax(-1).cpu().numpy(), broken

    predicted = np.full(examples.count, unread, np.int64)
    broken = 0
    for words, classes, wrong in computed_by_all(
        model, model.logits, examples, batch_size, world, part
    ):
        predicted[words] = classes
        broken += wrong
    check_numbers(broken, examples.count, "words")
    return predicted
