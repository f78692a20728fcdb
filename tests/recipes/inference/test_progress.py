"""The line that counts records: on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys

from recipes.inference import progress
from recipes.inference.computing import Counts
from recipes.inference.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_line_that_changes(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    line = ProgressLine()
    line(Counts(records=1000))
    line(Counts(records=2500))
    line.finish(Counts(records=2500))
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert shown.count("\n") == 1 and shown.endswith("\n") and shown.count("\r") == 3
    assert "\r1,000 records in 0 s, " in shown and "\r2,500 records in 0 s, " in shown


def test_elsewhere_it_is_silent(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0)
    line = ProgressLine()
    line(Counts(records=1000))
    line.finish(Counts(records=1000))
    assert capsys.readouterr().err == ""
