"""Numbers on a command line: the ranges of options, and what a mistyped number may have meant."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "%": 0.01}


@dataclass(frozen=True)
class Range:
    """The finite numbers that an option takes; `number` and `whole` make it."""

    low: float
    high: float
    above: bool = False
    """`low` itself is outside."""
    below: bool = False
    """`high` itself is outside."""
    whole: bool = False

    def read(self, text: str) -> float:
        """The number that `text` spells.

        Raises:
            ValueError: it spells none in the range; the message says which number may be meant.
        """
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = math.nan
        if value not in self:
            meant = self.meant(text)
            near = "" if meant is None else f"; did you mean {meant}?"
            raise ValueError(f"must be {self}{near}")
        return value

    def __contains__(self, value: float) -> bool:
        low = self.low < value if self.above else self.low <= value
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low, high = (f"{x:,}" if isinstance(x, int) else f"{x:g}" for x in (self.low, self.high))
        if self.above:
            ends = f"above {low}{' and below' if self.below else ', up to'} {high}"
        else:
            ends = f"from {low} to {'below ' * self.below}{high}"
        return f"a {'whole ' * self.whole}number {ends}"

    def meant(self, text: str) -> float | None:
        """The number in the range that other ways of writing stand for: 1e3, 70k, 1,000, 30%."""
        found = re.fullmatch(
            r"([-+]?[\d., _]*\d(?:\.0*)?(?:e[-+]?\d+)?) *([kmg%]?)", text.strip().lower()
        )
        if not found:
            return None
        digits, unit = found[1].replace(" ", ""), found[2]
        if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?", digits):
            digits = digits.replace(",", "")
        try:
            value = float(digits.replace(",", ".")) * _UNITS[unit]
        except ValueError:
            return None
        if value not in self or (self.whole and not value.is_integer()):
            return None
        return int(value) if self.whole else float(f"{value:.12g}")


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Range:
    """A finite number from `low` to `high`, or above and below them."""
    return Range(low, high, above, below)


def whole(low: int, high: int) -> Range:
    """A whole number from `low` to `high`."""
    return Range(low, high, whole=True)


LENGTHS = whole(8, 65_536)
"""How many tokens a sequence may have."""
