"""Decides which documents are held out of training.

They are a share of the documents, chosen by hash, or those of a validation input. In both cases a
document that equals a held-out one is not trained on, whatever file it stands in. A document that
differs in a single character is another document.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from tqdm import tqdm

from recipes.common.errors import UserError
from recipes.corpus.text_records import Skipped
from recipes.corpus.text_sources import Portion

HEAD = 10  # times 1 / fraction documents are looked at to find one to hold out


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Decides what becomes of a document of the training input.

    Attributes:
        below: documents with a smaller hash go to validation.
        documents: sorted hashes of the validation input, uint64; documents with one of these are
            left out.
    """

    below: int = 0
    documents: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))

    def is_validation(self, key: int) -> bool:
        return key < self.below

    def is_left_out(self, key: int) -> bool:
        place = int(np.searchsorted(self.documents, np.uint64(key)))
        return place < len(self.documents) and int(self.documents[place]) == key

    def __contains__(self, text: str) -> bool:
        key = document_hash(text)
        return self.is_validation(key) or self.is_left_out(key)


def document_hash(text: str) -> int:
    """Compute 64 bits of BLAKE2b; equal documents always fall into the same split."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def find_held_out(
    training: Sequence[Portion],
    validation: Sequence[Portion],
    fraction: float,
    text_key: str,
    max_bad_fraction: float,
) -> HeldOut:
    """Read as much of the input as is needed to know what is held out.

    Of the training input that is its beginning, of a validation input all.

    Args:
        fraction: share of the training documents to hold out; 0 with a validation input.

    Raises:
        UserError: an input is damaged, or training and validation cannot both have a document.
    """
    if fraction:
        return HeldOut(hash_below(training, fraction, text_key, max_bad_fraction))
    hashes = np.fromiter(
        (
            document_hash(text)
            for portion in tqdm(validation, "reading validation", disable=not sys.stderr.isatty())
            for text in portion.documents(text_key, Skipped(), max_bad_fraction)
        ),
        dtype=np.uint64,
    )
    held_out = HeldOut(documents=np.unique(hashes))
    skipped = Skipped()
    documents = chain.from_iterable(
        portion.documents(text_key, skipped, max_bad_fraction) for portion in training
    )
    if all(text in held_out for text in documents):
        raise UserError(
            f"nothing is left to train on: every usable document of --input ({skipped.records:,} "
            "records) is in the validation input too"
        )
    return held_out


def hash_below(
    training: Sequence[Portion], fraction: float, text_key: str, max_bad_fraction: float
) -> int:
    """Find the hash below which documents are held out.

    It is the fraction of all hashes, or more where that would hold out none of the first documents:
    the one of them with the smallest hash is always held out, so that even a small input has a
    validation split. Sorted input may begin with many equal documents, so reading goes on until
    there are two different ones and either one is held out or enough have been seen.

    Raises:
        UserError: the whole input has no two different documents.
    """
    skipped = Skipped()
    documents = chain.from_iterable(
        portion.documents(text_key, skipped, max_bad_fraction) for portion in training
    )
    below, wanted = int(fraction * 2**64), int(HEAD / fraction)
    hashes: set[int] = set()
    count = 0
    for count, text in enumerate(documents, 1):
        hashes.add(document_hash(text))
        if count == wanted and len(hashes) < count:
            print(f"{len(hashes):,} different among the first {count:,} documents: reading on")
        if count >= wanted and len(hashes) > 1 and (min(hashes) < below or len(hashes) >= wanted):
            return max(below, min(hashes) + 1)
    if len(hashes) < 2:
        raise UserError(_too_few(count, training, skipped))
    # All of the input has been seen: something must be left to train on, too.
    return min(max(below, min(hashes) + 1), max(hashes))


def _too_few(count: int, training: Sequence[Portion], skipped: Skipped) -> str:
    alike = "; they are all alike" if count > 1 else ""
    documents = "document" if count == 1 else "documents"
    kinds = {span.kind for portion in training for span in portion.spans}
    splitting = "".join(_SPLITTING[kind] for kind in sorted(kinds & _SPLITTING.keys()))
    return (
        f"{count:,} usable {documents} in the input{alike}: training and validation need at least "
        f"two different ones, or give --validation-input{splitting}"
        + "".join(f"; skipped: {skipped.describe(reason)}" for reason in skipped.counts)
    )


_SPLITTING = {
    "text": "; blank lines end a document, see --documents-per line",
    "text-file": "; each file is one document, see --documents-per paragraph",
}
