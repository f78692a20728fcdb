"""Tables of text, the first row their header: for a console, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def shown(value: float | None, form: str, missing: str = "-") -> str:
    """Return a number in a format such as `{:,.1f}`, or `missing` where there is none."""
    return missing if value is None else form.format(value)


def aligned(rows: Rows) -> str:
    """Return the table for a console: every column as wide as its widest cell."""
    widths = _widths(rows)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown(rows: Rows, *, to_the_right: bool = False) -> str:
    """Return the table as Markdown.

    Args:
        to_the_right: whether the columns are padded and aligned to the right, for a table of
            numbers that a console shows as it is.
    """
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = _widths(escaped) if to_the_right else [0] * len(escaped[0])
    rule = ["-" * (width - 1) + ":" for width in widths] if to_the_right else ["---"] * len(widths)
    header, *others = [
        [cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in escaped
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *others])


def _widths(rows: Rows) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
