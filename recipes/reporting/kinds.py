"""What directories hold, and so which report is made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from recipes.common.errors import Faults, UserError
from recipes.reporting import equal_time, run_report, scaling, score_table
from recipes.reporting.runs import CONFIG_NAME, load_runs
from recipes.reporting.scores import load_results, result_files
from recipes.reporting.tables import aligned
from recipes.training.run_log import LOG_NAME

Report = Callable[[Sequence[Path], Path | None], str]
"""Writes a report of directories into another, or where it belongs; returns it for a console."""

RUN, RESULTS, COMPARISON = "a run", "results of finetuning", "a comparison after equal time"


def report_of(directories: Sequence[Path]) -> Report:
    """Return the report that can be made of all these directories together.

    Raises:
        UserError: a directory holds nothing to report on, or they hold different things.
    """
    if scaling.is_sweep(directories):  # those of runs that failed may be empty
        return scaling.write
    faults = Faults()
    kinds = [faults.attempt(partial(_kind, directory)) for directory in directories]
    faults.stop()
    if len(set(kinds)) > 1:
        found = [f"{directory}: {kind}" for directory, kind in zip(directories, kinds, strict=True)]
        raise UserError(*found, "one report is of one kind of directory; make one for each kind")
    [kind] = set(kinds)
    if kind == COMPARISON and len(directories) > 1:
        raise UserError("one report is of one comparison; make one for each directory")
    return _report_comparison if kind == COMPARISON else _REPORTS[str(kind)]


def _kind(directory: Path) -> str:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    if (directory / CONFIG_NAME).exists() or (directory / LOG_NAME).exists():
        return RUN
    if result_files(directory):
        return RESULTS
    if equal_time.runs_in(directory):
        return COMPARISON
    raise UserError(
        f"{directory}: no {CONFIG_NAME}, so no run of recipes/pretrain.py; no results "
        "(files <task>-seed<k>.json) of recipes/glue.py; no runs of recipes/cram.py"
    )


def _report_runs(directories: Sequence[Path], output: Path | None) -> str:
    runs = load_runs(directories)
    report = run_report.write_report(runs, output or directories[0])
    return f"{aligned(run_report.table(runs))}\n\n{report}"


def _report_results(directories: Sequence[Path], output: Path | None) -> str:
    faults = Faults()
    results = {str(path): faults.attempt(partial(load_results, path)) for path in directories}
    faults.stop()
    named = {name: found or [] for name, found in results.items()}
    return score_table.write_scores(named, output or directories[0])


def _report_comparison(directories: Sequence[Path], output: Path | None) -> str:
    [directory] = directories
    return equal_time.write(output or directory, equal_time.runs_in(directory))


_REPORTS: dict[str, Report] = {RUN: _report_runs, RESULTS: _report_results}
