"""The check that every export ends with: the same texts through the training's model and its copy.

The texts are chosen to part what is alike on plain English: letters, digits and marks of several
scripts, white space of every kind, control characters, the names of special pieces as somebody
might type them, nothing at all, and more tokens than a sequence of the training had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TEXTS = (
    "The committee met on Tuesday and decided nothing.",
    "Water boils at a lower temperature on a high mountain, where the air is thin.",
    "",
    "a",
    "  def area(radius):\n\treturn 3.14159 * radius ** 2  # \x07\x0b\u200b\ufeff",
    "Grüße aus Köln, ﬁne naïve Ⅷ; İstanbul, Ελλάδα, Москва, 東京, ไทย, ١٢٣.",
    "emoji 😀 👩‍👩‍👧 and e\u0301 with its accent apart",
    "[MASK] and [CLS] were typed, as were <0x41> and [UNK].",
    "antidisestablishmentarianism" * 3,
    "It was the best of times, it was the worst of times. " * 40,
)
LONGEST = 320
"""Tokens that a text is cut to: more than most trainings have, and a batch that fits any memory."""


@dataclass(frozen=True)
class Comparison:
    """How far a copy's numbers are from the training model's."""

    what: str
    """The numbers that were compared."""
    difference: float
    """The largest one; not a number where there was one among them."""
    tolerance: float
    """The largest difference that is rounding."""
    why: str
    """What rounds."""

    def __str__(self) -> str:
        return (
            f"{self.what}: largest difference {self.difference:.1e}, "
            f"at most {self.tolerance:.0e} ({self.why})"
        )

    @property
    def agrees(self) -> bool:
        """Whether it is no more than rounding; never of what is not a number."""
        return self.difference <= self.tolerance


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Make one batch of rows of ids: ids and mask, int64 [S, L]."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids, mask


def largest_difference(found: Tensor, expected: Tensor, mask: Tensor | None = None) -> float:
    """Return the largest difference; as a share of the largest number expected, if that is over 1.

    Args:
        found, expected: [S, L, ...], or [S, ...] without a mask.
        mask: [S, L], zero where a number means nothing.

    Returns:
        NaN if there is one among the numbers; infinity for numbers of another shape.
    """
    if found.shape != expected.shape:
        return float("inf")
    if mask is not None:
        found, expected = found[mask.bool()], expected[mask.bool()]
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))
