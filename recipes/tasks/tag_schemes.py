"""Tags of words: which of them spell entities, in which scheme, and how they are scored.

    IOB2          B-PER I-PER O       B- begins every entity
    IOB1          I-PER I-PER O       CoNLL-2003's files: B- only where two of a type touch
    IOBES, BILOU  B-PER E-PER S-LOC   E- (L-) ends an entity, S- (U-) is a single word

Entities are what CoNLL's script, conlleval, takes for them: an I- that continues nothing begins an
entity. IOB1 and IOB2 spell the same entities, so IOB1 is learnt as IOB2, whose tags depend less on
those before. Tags without these prefixes, such as parts of speech, are scored word by word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# seqeval is imported by what needs it: it takes a second, and other kinds of tasks do not.

OUTSIDE = "O"
_ENTITY = re.compile(r"([BIESLU])-(.+)")
_SEQEVAL = {"L": "E", "U": "S"}  # seqeval's names of BILOU's prefixes

ENTITY_METRICS = ("f1", "precision", "recall", "accuracy")
WORD_METRICS = ("accuracy",)


def spells_entities(tags: Iterable[str]) -> bool:
    """Tell whether all tags are O or of the form B-type; at least one is."""
    inside = [tag for tag in tags if tag != OUTSIDE]
    return bool(inside) and all(_ENTITY.fullmatch(tag) for tag in inside)


def looks_like_entities(tags: Iterable[str]) -> list[str]:
    """Return the tags that are of the form B-type or I-type."""
    return [tag for tag in tags if tag.startswith(("B-", "I-")) and _ENTITY.fullmatch(tag)]


def mixed_prefixes(tags: Iterable[str]) -> list[str]:
    """Return the prefixes that end entities or are single words, if they are of both schemes."""
    ends = {tag[0] for tag in tags if _ENTITY.fullmatch(tag)} - {"B", "I"}
    return sorted(ends) if ends & {"E", "S"} and ends & {"L", "U"} else []


def complete(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the classes to learn, O first.

    Of tags that spell entities O, and every prefix with every type, I- among them: a type whose
    entities are single words in the training set may have longer ones elsewhere.
    """
    found = set(tags)
    if spells_entities(found):
        parts = [match.groups() for tag in found if (match := _ENTITY.fullmatch(tag))]
        prefixes, types = ({part[place] for part in parts} for place in range(2))
        prefixes |= {"I"} if "B" in prefixes else set()
        found |= {OUTSIDE} | {f"{prefix}-{kind}" for prefix in prefixes for kind in types}
    return tuple(sorted(found, key=lambda tag: (tag != OUTSIDE, tag)))


def with_beginnings(tags: Sequence[str]) -> tuple[str, ...]:
    """Put B- in place of every I- that begins an entity; the entities stay what they are."""
    found: list[str] = []
    for tag in tags:
        before = found[-1] if found else OUTSIDE
        kind = tag[2:]
        if tag.startswith("I-") and before not in (f"B-{kind}", f"I-{kind}"):
            tag = f"B-{kind}"
        found.append(tag)
    return tuple(found)


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Find the entities of a sentence: type, first and last word."""
    from seqeval.metrics.sequence_labeling import get_entities

    found: list[tuple[str, int, int]] = get_entities(_for_seqeval(tags))
    return found


def tag_metrics(
    right: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Compare tags, sentence by sentence; all metrics are fractions.

    Of tags that spell entities: precision, recall and F1 of entities whose type and both ends are
    right, 0 where there are none. Of all tags: how many are right.
    """
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    pairs = [p for each in zip(right, predicted, strict=True) for p in zip(*each, strict=True)]
    accuracy = sum(a == b for a, b in pairs) / len(pairs)
    if not spells_entities({a for a, _ in pairs} | {b for _, b in pairs}):
        return {"accuracy": accuracy}
    precision, recall, f1, _ = precision_recall_fscore_support(
        [_for_seqeval(tags) for tags in right],
        [_for_seqeval(tags) for tags in predicted],
        average="micro",
        zero_division=0,
    )
    values = (float(f1), float(precision), float(recall), accuracy)
    return dict(zip(ENTITY_METRICS, values, strict=True))


def _for_seqeval(tags: Sequence[str]) -> list[str]:
    return [_SEQEVAL.get(tag[0], tag[0]) + tag[1:] for tag in tags]
