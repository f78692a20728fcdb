"""Chunks: nothing is lost, and each ends where a limit is first reached."""

from __future__ import annotations

import pytest

from recipes.common.chunks import chunks

SIZES = [3, 9, 1, 0, 0, 0, 4, 20, 2, 2, 2, 2, 5]


@pytest.mark.parametrize(("size", "count"), [(10, None), (10, 2), (1, 3), (1000, None), (5, 1)])
def test_a_chunk_ends_at_the_first_limit_that_is_reached(size, count):
    found = list(chunks(SIZES, int, size=size, count=count))
    assert [each for chunk in found for each in chunk] == SIZES
    for number, chunk in enumerate(found, 1):
        *before, _ = chunk
        assert sum(before) < size and (count is None or len(before) < count)
        reached = sum(chunk) >= size or len(chunk) == count
        assert reached or number == len(found)


def test_nothing_makes_no_chunk():
    assert not list(chunks([], int, size=1))
