"""How records are shown: figures that say where they were measured, and spreads as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.reporting import figures


def panels(
    rows: int, columns: int, title: str, record: Mapping[str, Any], *, height: float = 3.2
) -> tuple[Figure, list[list[Axes]]]:
    """Return an empty figure that says where it was measured, and its axes [rows][columns]."""
    size = (9.5, 1.2 + height * rows)
    figure, grid = figures.panels(rows, columns, f"{title}\n", size=size)  # a line for `where`
    figure.text(0.01, 1 - 0.32 / figure.get_figheight(), where(record), fontsize=9, va="top")
    return figure, grid


def where(record: Mapping[str, Any]) -> str:
    """Name device and date in one line; a toy, or half a measurement, says that it is one."""
    device = record["device"]
    if device == "cpu":
        threads = record.get("threads")  # which the first records do not have
        count = f", {threads} thread{'s' if threads > 1 else ''}" if threads else ""
        device = f"CPU ({record['cpu']}{count})"
    toy = ", TOY SIZE" if record.get("size") == "toy" else ""
    half = "" if record.get("complete", True) else ", ENDED BEFORE IT WAS DONE"
    return f"{device}{toy}, {record['date'][:10]}{half}"


def shown(values: Mapping[str, float], form: str = ",.1f", unit: float = 1.0) -> str:
    """Write a spread, divided by `unit`, as "median (min to max)"."""
    median, low, high = (format(values[key] / unit, form) for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"
