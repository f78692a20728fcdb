"""Looks for what seems wrong in an input before it is prepared, and in the result afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from recipes.common.errors import UserError
from recipes.corpus.text_records import Skipped
from recipes.corpus.text_sources import Portion
from recipes.corpus.token_shards import SplitInfo

PROBED_PORTIONS = 8
PROBED_RECORDS = 10_000  # of each, at most
SHORT_TOKENS = 64  # documents shorter than this on average fill half of a sequence of 128
HELD_OUT_FACTOR = 3  # a held-out share is odd if it differs by more from what was asked for


def check_documents(portions: Sequence[Portion], text_key: str, max_bad_fraction: float) -> None:
    """Look for a document in evenly spaced portions, so that a wrong key is told at once.

    Raises:
        UserError: a fault that would certainly stop the preparation later: too many unusable
            records in a row, a missing column, a damaged beginning, or a small input without any
            document.
    """
    step = max(1, -(-len(portions) // PROBED_PORTIONS))
    if any(span.kind == "hub" for portion in portions for span in portion.spans):
        step = len(portions)  # each further one would be another download
    seen, found = Skipped(), False
    for portion in portions[::step]:
        skipped = Skipped()
        limit = min(portion.limit or PROBED_RECORDS, PROBED_RECORDS)
        # Lanes share a limit: a later lane may have no record within it, and still be readable.
        first = replace(portion, limit=limit, lane=0)
        found |= next(first.documents(text_key, skipped, max_bad_fraction), None) is not None
        seen.merge(skipped)
    if not found and step == 1 and seen.bad and seen.records < PROBED_RECORDS:
        raise UserError(
            f"no usable document in the {seen.records:,} records of the input: "
            f"{seen.describe_all()}"
        )


def odd_results(splits: Mapping[str, SplitInfo], kinds: set[str], fraction: float) -> Iterator[str]:
    """Yield what the user should look at before training on a preparation.

    Args:
        splits: the manifest's.
        kinds: kinds of the spans that were read.
        fraction: share of the documents to be held out; 0 with a validation input.
    """
    hint = next((hint for kind, hint in _SPLITTING.items() if kind in kinds), "")
    train = splits["train"]
    mean = train["tokens"] / train["documents"]
    if train["documents"] == 1:
        yield f"train is one document of {train['tokens']:,} tokens{hint}"
    elif mean < SHORT_TOKENS:
        yield f"documents are short: {mean:.1f} tokens on average{hint}"
    unit: Literal["documents", "tokens"]
    for unit in ("documents", "tokens") if fraction else ():
        share = splits["validation"][unit] / sum(split[unit] for split in splits.values())
        if not fraction / HELD_OUT_FACTOR <= share <= fraction * HELD_OUT_FACTOR:
            yield (
                f"{share:.2%} of the {unit} are held out, not --validation-fraction {fraction:g}: "
                "documents are held out whole, chosen by hash, with all that equal them; "
                "--validation-input names others"
            )
            break


_SPLITTING = {
    "text": "; in plain text blank lines end a document (--documents-per line or file)",
    "text-line": "; each line of plain text is one (--documents-per paragraph or file)",
    "text-file": "; each file of plain text is one (--documents-per paragraph or line)",
}
