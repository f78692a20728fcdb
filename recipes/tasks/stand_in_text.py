"""Sentences of the text that comes with Python, and phrases, shuffles and blends of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SENTENCE_WORDS = range(8, 15)
PHRASE_WORDS = range(5, 9)
DEV_SHARE = 1 / 6  # of the documents; as many again, the last ones, are another genre

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*[,;:]?")

Words = list[str]


@dataclass(frozen=True)
class Sentence:
    """A sentence as its words.

    Attributes:
        document: number of the document that it stands in.
        opens: whether it is the first one of its paragraph.
    """

    words: Words
    document: int
    opens: bool


@dataclass
class Text:
    """The sentences of one split, and the generator that makes its examples."""

    sentences: list[Sentence]
    generator: np.random.Generator

    def phrase(self, sentence: Sentence, length: int | None = None) -> Words:
        """Draw neighbouring words, five to eight or `length`, without case and punctuation."""
        length = length or int(self.generator.choice(PHRASE_WORDS))
        start = self.generator.integers(len(sentence.words) - length + 1)
        return bare(sentence.words[start : start + length])

    def foreign_phrase(self, sentence: Sentence, phrase: Words) -> Words:
        """Draw another phrase of the same length, from another document."""
        while True:
            other = self.sentences[self.generator.integers(len(self.sentences))]
            foreign = self.phrase(other, len(phrase))
            if other.document != sentence.document and foreign != phrase:
                return foreign

    def scrambled(self, words: Words) -> Words:
        """Shuffle the words, so that most of them leave their places."""
        while True:
            order = self.generator.permutation(len(words))
            scrambled = [words[index] for index in order]
            if scrambled != words and np.mean(order != np.arange(len(words))) > 0.6:
                return scrambled

    def blended(self, words: Words, others: Words, kept: float) -> Words:
        """Replace words by those of `others`, so that about the share `kept` stays."""
        count = round(len(words) * (1 - kept))
        blend = list(words)
        for place in self.generator.permutation(len(words))[:count]:
            blend[place] = others[place]
        return blend


def bare(words: Words) -> Words:
    """Take case and punctuation away."""
    return [word.strip(".,;:").lower() for word in words]


def read_sentences(documents: Sequence[str]) -> list[Sentence]:
    """Find plain sentences of 8 to 14 words; what occurs twice counts once."""
    found: dict[str, Sentence] = {}
    for number, document in enumerate(documents):
        for paragraph in document.split("\n"):
            for place, sentence in enumerate(_SENTENCE_END.split(paragraph)):
                words = sentence.split()
                plain = sentence.endswith(".") and all(map(_WORD.fullmatch, words[:-1]))
                # Words that repeat too often have no other order.
                varied = len(set(bare(words))) >= len(words) - 3
                if plain and varied and len(words) in SENTENCE_WORDS:
                    found.setdefault(sentence, Sentence(words, number, place == 0))
    return list(found.values())


def split(sentences: Sequence[Sentence], seed: int) -> dict[str, list[Sentence]]:
    """Deal sentences to `train`, `dev` and `mismatched`, no document to two of them."""
    documents = max((sentence.document for sentence in sentences), default=0) + 1
    count = max(1, round(documents * DEV_SHARE))
    # Documents follow the modules' paths, so that the last ones are of modules of their own.
    order = np.random.default_rng((seed, 0)).permutation(documents - count)
    dev = set(order[:count].tolist())
    parts: dict[str, list[Sentence]] = {"train": [], "dev": [], "mismatched": []}
    for sentence in sentences:
        last = sentence.document >= documents - count
        part = "mismatched" if last else "dev" if sentence.document in dev else "train"
        parts[part].append(sentence)
    return parts
