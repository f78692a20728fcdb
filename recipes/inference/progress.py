"""Says on standard error how far the work is."""

from __future__ import annotations

import sys
import time

from recipes.inference.computing import Counts

SECONDS = 0.5
"""Between two looks at the count."""


class ProgressLine:
    """Counts records on a terminal; elsewhere it says nothing."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown = 0.0
        self._terminal = sys.stderr.isatty()

    def __call__(self, counts: Counts) -> None:
        """Show the count, if it is time to."""
        now = time.monotonic()
        if self._terminal and now - self._shown > SECONDS:
            self._shown = now
            self._show(counts, "")

    def finish(self, counts: Counts) -> None:
        """Show the final count."""
        if self._terminal:
            self._show(counts, "\n")

    def _show(self, counts: Counts, end: str) -> None:
        seconds = max(time.monotonic() - self._began, 1e-9)
        speed = f"{counts.records / seconds:,.0f} a second"
        line = f"\r{counts.records:,} records in {seconds:,.0f} s, {speed}\x1b[K"
        print(line, end=end, file=sys.stderr, flush=True)
