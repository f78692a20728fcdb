"""How a mode of the benchmark is run: its directory is taken, the record shown and drawn."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from recipes.benchmarks.mode import Mode, Settings
from recipes.benchmarks.records import Record
from recipes.common.errors import UserError, refused
from recipes.common.files import why_no_directory
from recipes.common.json_content import Json
from recipes.common.locks import lock, unlock_if_alone
from recipes.common.tables import aligned
from recipes.reporting.figures import in_style, write_png


def run_mode(
    name: str, mode: Mode[Settings], settings: Settings, *, began: float | None = None
) -> int:
    """Measure, write the record and the figure, print the table; 1 where something failed.

    Args:
        began: by the monotonic clock, when the minutes began to count, if that is not now:
            imports can take a large part of a small budget.
    """
    take_directory(settings.output)
    minutes = settings.minutes
    if minutes is not None and began is not None:
        minutes = max(1e-3, minutes - (time.monotonic() - began) / 60)
    record = Record(name, settings.output, minutes, by_device=mode.by_device)
    try:
        mode.measure(settings, record)
    except UserError:
        unlock_if_alone(settings.output)
        with suppress(OSError):  # unless something is in it
            settings.output.rmdir()
        raise
    if record.of_another_rank:
        return 0
    record["complete"] = True
    record.save()
    _show(mode, record)
    return 1 if record["failures"] else 0


def take_directory(output: Path) -> None:
    """Keep other measurements out of it: they would mix records, and slow each other down.

    Raises:
        UserError: it cannot be, or another process is measuring into it.
    """
    if refusal := why_no_directory(output):
        raise UserError(f"--output {output}: {refusal}")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # what nobody could see beforehand
        raise refused(error, f"--output {output}") from None
    if os.environ.get("RANK", "0") == "0":  # the one that writes, where a launcher started several
        lock(output, "measuring into it")


@in_style
def draw(mode: Mode[Any], content: Json, record: Path) -> Path:
    """Draw what a record's file holds, and return the picture beside it."""
    picture = record.with_suffix(".png")
    write_png(picture, mode.figure(content))
    return picture


def _show(mode: Mode[Settings], record: Record) -> None:
    """Draw the figure and print the table, what is missing from it, and where the files are."""
    picture = draw(mode, record.content, record.path)
    print("\n" + aligned(mode.table(record.content)))
    for kind in ("not_run", "failures"):
        for what, why in record[kind].items():
            print(f"{kind.replace('_', ' ')}: {what}: {why}")
    print(f"\n{record.path}\n{picture}")
