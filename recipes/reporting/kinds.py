"""What directories hold, and so which report is made of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from recipes.common.errors import Faults, UserError
from recipes.common.files import write_whole
from recipes.common.tables import aligned
from recipes.reporting import equal_time, leaderboard, run_page, run_report, scaling, score_table
from recipes.reporting.html_page import Section
from recipes.reporting.leaderboard_page import leaderboard_part
from recipes.reporting.output import make_directory
from recipes.reporting.runs import CONFIG_NAME, RecordedRun, load_runs, shown_name
from recipes.reporting.score_page import write_page
from recipes.reporting.scores import Series, load_results, result_files, summarize
from recipes.tasks.results import Result
from recipes.training.run_log import LOG_NAME

RUN, RESULTS, COMPARISON = "a run", "results of finetuning", "a comparison after equal time"


@dataclass(frozen=True)
class Wanted:
    """What a report is to be made of."""

    directories: Sequence[Path]
    output: Path | None = None
    """Where it is written; where it belongs if not given."""
    board: Path | None = None
    """The leaderboard's file; in the report's directory if not given."""
    records: Callable[[], Sequence[Section]] = tuple
    """Gives the sections of the benchmarks' records."""


Report = Callable[[Wanted], str]
"""Writes a report; returns it for a console."""


def report_of(directories: Sequence[Path]) -> Report:
    """Return the report that can be made of all these directories together.

    Raises:
        UserError: a directory holds nothing to report on, or they hold different things.
    """
    if scaling.is_sweep(directories):  # those of runs that failed may be empty
        return lambda wanted: scaling.write(wanted.directories, wanted.output)
    faults, kinds = Faults(), {}
    for directory in directories:
        if not scaling.is_sweep([directory]):  # behind runs, a sweep is a part of their page
            kinds[directory] = faults.attempt(partial(_kind, directory))
    known = {kind for kind in kinds.values() if kind}
    # One that holds nothing is no reason not to report on the others.
    if not known or len(known) > 1:
        faults.stop()
    if len(known) > 1 or (known != {RUN} and len(kinds) < len(directories)):
        found = [f"{directory}: {kind}" for directory, kind in kinds.items()]
        raise UserError(*found, "one report is of one kind of directory; make one for each kind")
    [kind] = known
    if kind == COMPARISON and len(directories) > 1:
        raise UserError("one report is of one comparison; make one for each directory")
    return partial(
        _REPORTS[kind], left_out=list(faults), without=[d for d in kinds if not kinds[d]]
    )


def _within(directory: Path) -> str:
    """A hint at runs that are one level below."""
    found = sorted(path.parent for path in directory.glob(f"*/{LOG_NAME}"))
    return f". There are runs in it: {', '.join(map(str, found[:5]))}" if found else ""


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
        + _within(directory)
    )


def _report_runs(wanted: Wanted, left_out: list[str], without: Sequence[Path]) -> str:
    named = [path for path in wanted.directories if path not in without]
    places = [path for path in named if not scaling.is_sweep([path])]
    runs = load_runs(places, left_out)
    loaded = {run.name: run for run in runs}
    output = wanted.output or places[0]
    make_directory(output)
    board = wanted.board or output / leaderboard.FILE
    scores: dict[str, Series] = {}
    controls: dict[str, Series] = {}
    for run in loaded.values():
        results = _results_beside(run.directory / "glue", left_out)
        if results:
            scores[run.name] = summarize(run.name, results)
            _record_line(board, run.directory / "glue", results, left_out, run)
        if control := _results_beside(run.directory / "glue-from-scratch", left_out):
            controls[run.name] = summarize(f"{run.name}, random weights", control)
    sweep = [path for path in named if path not in places]
    found = run_page.Found(
        runs,
        scores,
        controls,
        sweeps=scaling.load_sweeps(sweep) if sweep else (),
        lines=_lines(board, left_out),
        records=wanted.records(),
        left_out=left_out,
    )
    report = run_report.write_report(runs, output, left_out)
    page = output / "report.html"
    write_whole(page, run_page.page(found))
    said = "".join(f"left out: {line}\n" for line in left_out)
    print(said, end="", file=sys.stderr)
    return f"{aligned(run_report.table(runs))}\n\n{report}\n{page}"


def _results_beside(directory: Path, left_out: list[str]) -> list[Result]:
    """Read the results that a run has beside it; none where nothing can be read."""
    if not directory.is_dir() or not result_files(directory):
        return []
    try:
        results = load_results(directory, left_out=left_out)
        summarize(str(directory), results)
    except UserError as error:
        left_out += error.faults
        return []
    return results


def _report_results(wanted: Wanted, left_out: list[str], without: Sequence[Path]) -> str:
    faults = Faults()
    named: dict[str, list[Result]] = {}
    for path in wanted.directories:
        if path not in without:
            found = faults.attempt(partial(load_results, path, left_out=left_out))
            named |= {str(path): found} if found else {}
    if not named:
        faults.stop()
    left_out += faults
    output = wanted.output or wanted.directories[0]
    make_directory(output)
    written = score_table.write_scores(named, output)
    board = wanted.board or output / leaderboard.FILE
    for name, results in named.items():
        if not any(result.get("from_scratch") for result in results):
            _record_line(board, Path(name), results, left_out)
    lines = _lines(board, left_out)
    all_series = [summarize(name, found) for name, found in named.items()]
    more = [Section("Leaderboard", leaderboard_part(lines))]
    page = write_page(all_series, output, more, left_out)
    print("".join(f"left out: {line}\n" for line in left_out), end="", file=sys.stderr)
    return f"{written}\n{page}"


def record_line(
    board: Path,
    directory: Path,
    results: Sequence[Result],
    command: str | None = None,
    run: RecordedRun | None = None,
) -> str | None:
    """Put the line of these results into a leaderboard.

    Returns:
        Why an earlier line stays, if it does.

    Args:
        directory: that the results lie in, `glue` in the run that they began from.
        command: that made them.
        run: that they began from; looked for if not given.
    """
    run = run or _run_of(directory, results)
    name = shown_name(run.directory) if run else str(directory)
    series = summarize(name, results)
    return leaderboard.add(board, leaderboard.line_of(name, run, series, results, command))


def _record_line(
    board: Path,
    directory: Path,
    results: Sequence[Result],
    left_out: list[str],
    run: RecordedRun | None = None,
) -> None:
    """Put the line into a leaderboard; a file that is none is named, and the report goes on."""
    try:
        left_out += [said for said in [record_line(board, directory, results, run=run)] if said]
    except UserError as error:
        left_out += error.faults


def _lines(board: Path, left_out: list[str]) -> list[leaderboard.Line]:
    """Return the lines of a leaderboard, none of a damaged one, with those published."""
    own: list[leaderboard.Line] = []
    try:
        own = leaderboard.read(board)
    except UserError as error:  # named already, if there was a line for it
        left_out += [fault for fault in error.faults if fault not in left_out]
    return leaderboard.with_published(own)


def _run_of(directory: Path, results: Sequence[Result]) -> RecordedRun | None:
    """Return the run that the results began from, if its records are still there."""
    starts = [Path(result["checkpoint"]) for result in results if not result.get("start_task")]
    for place in (directory.resolve().parent, *starts):
        if (place / CONFIG_NAME).is_file() and (place / LOG_NAME).is_file():
            try:
                return load_runs([place])[0]
            except UserError:
                continue
    return None


def _report_comparison(wanted: Wanted, left_out: list[str], without: Sequence[Path]) -> str:
    [directory] = wanted.directories
    return equal_time.write(wanted.output or directory, equal_time.runs_in(directory))


_REPORTS: dict[str, Callable[..., str]] = {
    RUN: _report_runs,
    RESULTS: _report_results,
    COMPARISON: _report_comparison,
}
