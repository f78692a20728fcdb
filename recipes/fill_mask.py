"""Fill in masked words with a pretrained model: the quickest look at what it has learned.

    python recipes/fill_mask.py --checkpoint runs/base "the capital of france is [MASK] ."

Without sentences of its own it takes some from held-out text (--data) and masks a word in each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from model.parallel import initialize_parallel
from recipes.common.entry import run
from recipes.common.errors import Faults
from recipes.common.settings import Count, Positional, parse
from recipes.reporting.masked_words import MASK, fill, held_out_sentences, sentence_faults
from recipes.training.export import load_with_tokenizer


@dataclass(frozen=True)
class Settings:
    """Fill in masked words with a pretrained model: the quickest look at what it has learned."""

    checkpoint: Path
    """A run, or its export/."""
    sentences: Positional = ()
    """Text with [MASK] where a word is to be guessed."""
    data: Path | None = None
    """Take held-out sentences from this prepared directory."""
    count: Count = 5
    """Held-out sentences."""
    top: Count = 3
    """Guesses per mask."""


def main(words: Sequence[str] | None = None) -> int:
    """Load the model, find sentences, print the guesses; returns the exit code."""
    faults = Faults()
    settings = parse(Settings, words, faults=faults, manual=__doc__)
    faults += sentence_faults(settings.sentences)
    if not settings.sentences and settings.data is None:
        faults.append(f"give sentences with {MASK}, or --data to take held-out ones from")
    if settings.sentences and settings.data is not None:
        faults.append("--data: not allowed with sentences of your own; leave out one of them")
    faults.stop()
    initialize_parallel()
    model, tokenizer = load_with_tokenizer(settings.checkpoint)
    sentences: Sequence[str] = settings.sentences
    if settings.data is not None and not sentences:
        sentences = held_out_sentences(settings.data, tokenizer, settings.count)
    for filled in fill(model, tokenizer, sentences, settings.top):
        print(filled.text)
        print("    " + "   ".join(f"{word} {share:.0%}" for word, share in filled.guesses))
    return 0


if __name__ == "__main__":
    run(main)
