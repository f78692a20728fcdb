"""Streams cut into lists that are neither too long nor too large."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def chunks(
    items: Iterable[Item],
    size_of: Callable[[Item], int],
    *,
    size: int,
    count: int | None = None,
) -> Iterator[list[Item]]:
    """Yield lists of items in their order; the last one may be short.

    Args:
        size: a list ends when the sizes of its items are so much together, or more,
        count: or with so many items, if given.
    """
    chunk: list[Item] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += size_of(item)
        if total >= size or len(chunk) == count:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk
