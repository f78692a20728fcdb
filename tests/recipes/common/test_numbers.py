"""Ranges of numbers, and what a mistyped one may have meant."""

from __future__ import annotations

import pytest

from recipes.common.numbers import number, whole

SHARE = number(0, 1)
PART = number(1e-9, 1, below=True)
PRICE = number(0, 1_000_000)
LEARNING_RATE = number(1e-12, 1_000_000)


@pytest.mark.parametrize(
    ("range_", "text", "meant"),
    [
        (whole(1, 10**6), "1e3", "1000"),
        (whole(1, 10**6), "70k", "70000"),
        (whole(1, 10**6), "1,000", "1000"),
        (whole(1, 10**6), "1 000", "1000"),
        (whole(1, 10**6), "64.0", "64"),
        (whole(1, 10**6), "1.5", None),
        (whole(1, 10**6), "1e400", None),
        (whole(1, 10**6), "2m", None),
        (whole(1, 10**6), "9" * 5000, None),
        (PART, "30%", "0.3"),
        (PART, "0,3", "0.3"),
        (PART, "1", None),
        (LEARNING_RATE, "1e-320", None),
        (SHARE, "x", None),
    ],
)
def test_other_ways_of_writing_a_number_are_answered_with_ours(range_, text, meant):
    with pytest.raises(ValueError) as refused:
        range_.read(text)
    said = str(refused.value)
    assert (f"did you mean {meant}?" in said) if meant else ("did you mean" not in said)


def test_the_ends_of_a_range():
    assert [SHARE.read("0"), SHARE.read("1"), whole(2, 3).read("3")] == [0, 1, 3]
    below_one = number(0, 1, below=True)
    assert below_one.read("0") == 0 and str(below_one) == "a number from 0 to below 1"
    for range_, text in ((PART, "0"), (PART, "1"), (below_one, "1"), (PRICE, "-0.1")):
        with pytest.raises(ValueError):
            range_.read(text)
