"""The table at the end of the bench: what was measured, what was not and why, and what failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from recipes.benchmarks.limited_processes import DONE, NOT_FINISHED, Ended
from recipes.benchmarks.mode import Mode
from recipes.benchmarks.predictions import beside
from recipes.benchmarks.records import Rows
from recipes.common.json_content import Json

NAMES_SHOWN = 2
"""Rows that are named of those without a result for the same reason; the record names all."""


def summary(ended: Sequence[Ended], mode_of: Callable[[str], Mode[Any]]) -> Rows:
    """List benchmark, what, result, in the order in which they ran, and predictions beside them.

    The last column is left out where nothing was predicted."""
    rows: list[tuple[str, str, str, str]] = []
    for end in ended:
        lines = result(end, mode_of)
        rows += [(end.name if number == 0 else "", *line) for number, line in enumerate(lines)]
    table: Rows = [("benchmark", "what", "result", "predicted"), *rows]
    return table if any(row[3] for row in rows) else [row[:3] for row in table]


def result(end: Ended, mode_of: Callable[[str], Mode[Any]]) -> list[tuple[str, str, str]]:
    """List what one of them found: what, result, predicted."""
    if end.log is None:
        return [("", f"NOT MEASURED: {end.status}", "")]
    lines: list[tuple[str, str, str]] = []
    if end.record is None:  # a check
        lines = [(end.says, (end.lines or ("no output",))[-1] if not end.failed else "", "")]
    else:
        try:
            lines = measured(json.loads(end.record.read_bytes()), mode_of(end.name))
        except (OSError, LookupError, ValueError) as error:
            lines = [("", f"NOT MEASURED: no record ({type(error).__name__})", "")]
    if end.status != DONE:
        lines = [line for line in lines if any(line[1:])]
        why = f": {end.lines[-1]}" if end.lines and end.record is None else ""
        what = end.says if end.record is None else ""
        if end.status.startswith(NOT_FINISHED):
            lines.append((what, end.status.replace(NOT_FINISHED, NOT_FINISHED.upper(), 1), ""))
        else:
            lines.append((what, f"FAILED: {end.status}{shortened(why)}", ""))
    return lines or [("", "nothing to show", "")]


def measured(content: Json, mode: Mode[Any]) -> list[tuple[str, str, str]]:
    """List the results of a mode's record, what it could not measure, and what failed in it."""
    lines = [(what, value, "") for what, value in mode.headlines(content)]
    lines += beside(content)
    for kind, said in (("not_run", "NOT MEASURED"), ("failures", "FAILED")):
        by_reason: dict[str, list[str]] = {}
        for what, why in content.get(kind, {}).items():
            by_reason.setdefault(why, []).append(what)
        lines += [
            (some(names), f"{said}: {shortened(why)}", "") for why, names in by_reason.items()
        ]
    return lines


def some(names: Sequence[str]) -> str:
    """Name the first of several, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def shortened(text: str, most: int = 100) -> str:
    """Return the first line of a message, cut where a table could not hold it."""
    first = (text.splitlines() or [""])[0]
    return first if len(first) <= most else f"{first[: most - 3]}..."
