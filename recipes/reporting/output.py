"""The directory that a report is written into."""

from __future__ import annotations

from pathlib import Path

from recipes.common.errors import UserError
from recipes.common.files import why_no_directory
from recipes.common.locks import lock

REPORT_LOCK = ".report.lock"


def make_directory(output: Path) -> None:
    """Make the directory of a report, and keep other reports out of it until this process ends.

    A run may go on training in it meanwhile.

    Raises:
        UserError: it cannot be made, or another report is being written into it.
    """
    if refusal := why_no_directory(output):
        raise UserError(f"--output {output}: {refusal}")
    output.mkdir(parents=True, exist_ok=True)
    lock(output, "writing a report into it", REPORT_LOCK)
