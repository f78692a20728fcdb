"""Sentences whose words have tags: files in CoNLL's columns, and JSON Lines.

    EU B-ORG               {"words": ["EU", "rejects"], "tags": ["B-ORG", "O"]}
    rejects O

In columns a line is a word: its first column is the word, its last one the tag, between tabs where
the line has one and between blanks otherwise. An empty line ends a sentence; `-DOCSTART-` is no
word. A sentence that cannot be used is counted, and more than 1% of them are an error (see
`example_files`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipes.common.compressed import COMPRESSIONS, open_binary
from recipes.common.errors import Faults, UserError
from recipes.tasks.classification_data import TaskData
from recipes.tasks.example_files import (
    JSON_LINES,
    Reading,
    RecordSet,
    label_name,
    naming,
    read_json_lines,
)
from recipes.tasks.tag_schemes import (
    complete,
    entities,
    looks_like_entities,
    mixed_prefixes,
    spells_entities,
    with_beginnings,
)

COLUMNS = (".conll", ".txt", ".tsv", ".iob", ".iob2", ".bio")
WORDS, TAGS = "words", "tags"
_NEW_DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True)
class Sentence:
    """Words and as many tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


class Sentences(RecordSet[Sentence]):
    """A set of sentences."""


class _Reading(Reading):
    """Sentences while they are read."""

    def add(self, line: int | str, values: Sequence[Any]) -> None:
        """Words and tags of a sentence."""
        try:
            self.labels.append(self.label(_sentence(*values)))
            self.texts.append(())
        except ValueError as reason:
            self.reject(line, str(reason))


def load_sentences(
    train_file: Path, dev_file: Path, columns: tuple[str, str] = (WORDS, TAGS)
) -> TaskData[Sentences]:
    """Read both files; the classes are the training set's tags (see `tag_schemes`).

    Args:
        columns: those of words and tags in JSON Lines.

    Raises:
        UserError: all faults of both: a file cannot be read, is of another form, has no sentences
            or too many that cannot be used; or all words have one tag.
    """
    faults, notes = Faults(), list[str]()
    train = faults.attempt(lambda: read_sentences(train_file, columns, notes))
    if train is None:
        faults.attempt(lambda: read_sentences(dev_file, columns, notes))
        faults.stop()
    assert train is not None
    found = {tag for sentence in train for tag in sentence.tags}
    if len(found) == 1:
        faults.append(f"{train_file}: every word's tag is {min(found)!r}, nothing to learn")
    spelt = spells_entities(found)
    if spelt and (mixed := mixed_prefixes(found)):
        faults.append(
            f"{train_file}: mixed schemes: tags begin with {', '.join(f'{x}-' for x in mixed)}; "
            "entities end with E- and single words are S- (IOBES), or L- and U- (BILOU)"
        )
    if spelt:
        begun, train = _begun(train)
        notes += _beginnings_note(train_file, begun, train)
    elif like := looks_like_entities(found):
        other = sorted(found - {*like, "O"})
        notes.append(
            f"{train_file}: tags {', '.join(map(repr, sorted(like)[:3]))} look like entities, "
            f"{', '.join(map(repr, other[:3]))} do not: words are scored one by one"
        )
    labels = complete(tag for sentence in train for tag in sentence.tags)
    counts: Counter[str] = Counter()
    known = _known(labels, counts, spelt=spelt)
    dev = faults.attempt(lambda: read_sentences(dev_file, columns, notes, known))
    faults.stop()
    assert dev is not None
    if spelt:
        notes += _beginnings_note(dev_file, counts["begun"], dev)
        if not any(entities(sentence.tags) for sentence in dev):
            notes.append(f"{dev_file}: there is no entity in it, so that F1 is 0")
    seen = {sentence.words for sentence in train}
    if twice := sum(sentence.words in seen for sentence in dev):
        notes.append(f"{dev_file}: {twice:,} of {len(dev):,} sentences are in the training set")
    return TaskData(Sentences(train), {"dev": Sentences(dev)}, {}, labels, notes)


def read_sentences(
    path: Path,
    columns: tuple[str, str],
    notes: list[str],
    known: Callable[[Sentence], Sentence] = lambda sentence: sentence,
) -> list[Sentence]:
    """Read a file of the form that its name says.

    Args:
        notes: are told how many sentences were skipped, and the first reason.
        known: the sentence as it is kept; raises ValueError if it cannot be used.

    Raises:
        UserError: as `load_sentences`.
    """
    reading = _Reading(str(path), known)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    ending = suffixes[-1] if suffixes else ""
    with naming(path):
        if ending in JSON_LINES:
            read_json_lines(path, columns, reading)
        elif ending in COLUMNS:
            with open_binary(path) as file:
                _read_columns(path, file, reading)
        else:
            raise UserError(
                f"{path}: of no known kind; {', '.join(COLUMNS)} have columns, "
                f"{', '.join(JSON_LINES)} lists of words and tags, also with "
                f"{', '.join(sorted(COMPRESSIONS))}"
            )
    reading.check(notes)
    sentences: list[Sentence] = reading.labels
    return sentences


def _read_columns(path: Path, lines: Iterable[bytes], reading: _Reading) -> None:
    begin, width = 0, 0
    words: list[list[str]] = []
    fault = ""

    def end() -> None:
        nonlocal fault
        if fault:
            reading.reject(begin, fault)
        elif words:
            reading.add(begin, [[word[0] for word in words], [word[-1] for word in words]])
        words.clear()
        fault = ""

    for number, raw in enumerate(lines, 1):
        try:
            line = raw.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode().strip("\r\n")
        except UnicodeDecodeError:
            fault = fault or f"line {number} is not UTF-8, save it as UTF-8"
            continue
        columns = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or columns[0] == _NEW_DOCUMENT:
            end()
            continue
        if not words and not fault:
            begin = number
        if not width and len(columns) == 1:
            raise UserError(
                f"{path}:{number}: one column; a word and its tag stand on a line, between blanks "
                "or tabs"
            )
        width = width or len(columns)
        if len(columns) != width:
            fault = fault or f"line {number} has {len(columns)} columns, not {width}"
        words.append(columns)
    end()


def _sentence(words: Any, tags: Any) -> Sentence:
    """A sentence of a file; raises ValueError with what keeps it from being used."""
    for name, values in ((WORDS, words), (TAGS, tags)):
        if not isinstance(values, list):
            raise ValueError(f"{name} are {values!r}, no list")
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} words and {len(tags)} tags")
    if not words:
        raise ValueError("no words")
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"{word!r} is no word")
        word.encode()  # raises for half a surrogate pair, which JSON can spell
    try:
        return Sentence(tuple(words), tuple(map(label_name, tags)))
    except ValueError:
        wrong = next(tag for tag in tags if not isinstance(tag, str | int) or not str(tag).strip())
        raise ValueError(f"{wrong!r} is no tag") from None


def _known(
    labels: Sequence[str], counts: Counter[str], *, spelt: bool
) -> Callable[[Sentence], Sentence]:
    """A function that takes sentences of known tags alone, and counts repaired beginnings."""
    classes = set(labels)

    def keep(sentence: Sentence) -> Sentence:
        begun = 0
        if spelt:
            begun, (sentence,) = _begun([sentence])
        if unknown := [tag for tag in sentence.tags if tag not in classes]:
            raise ValueError(f"tag {unknown[0]!r} is not in the training set")
        counts["begun"] += begun
        return sentence

    return keep


def _begun(sentences: list[Sentence]) -> tuple[int, list[Sentence]]:
    """Let B- begin every entity; returns how many beginnings are new, and the sentences."""
    made = [replace(each, tags=with_beginnings(each.tags)) for each in sentences]
    changed = sum(
        a != b
        for one, other in zip(sentences, made, strict=True)
        for a, b in zip(one.tags, other.tags, strict=True)
    )
    return changed, made


def _beginnings_note(path: Path, begun: int, sentences: list[Sentence]) -> list[str]:
    if not begun:
        return []
    count = sum(len(entities(sentence.tags)) for sentence in sentences)
    return [
        f"{path}: {begun:,} of {count:,} entities begin with I-, as in IOB1; they are learnt with "
        "B- there (IOB2), which changes no entity"
    ]
