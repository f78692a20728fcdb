"""Tables and figures of what was pretrained, finetuned or compared, made from its records.

    python recipes/report.py runs/base                             a run
    python recipes/report.py runs/base runs/large --output pages   runs beside one another
    python recipes/report.py runs/scaling/rapidbert-large/*        a scaling sweep
    python recipes/report.py runs/base/glue                        results of finetuning
    python recipes/report.py runs/cram                             a comparison after equal time
    python recipes/report.py --leaderboard board.json              GLUE against dollars

The directories tell which it is. Runs get `report.html`, one page with everything inside: their
curves, the scores of finetuning that lie beside them (`glue`, `glue-from-scratch`), the
leaderboard, the paper's tables and the benchmarks' records; beside it `report.md`, `loss.png` and
`throughput.png`. A sweep gets `scaling-<model>.html`, `.md` and `.png`; named behind runs, it is a
part of their page. Results get `scores.html`, `.md`, `.json` and `.png`, a comparison
`equal_time.html`, `.md`, `.json` and `.png`.

Nothing is measured here: every number is in the records, so a report can be made again at any time,
anywhere. What cannot be read is named, and the report is of the rest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from recipes.benchmarks.record_sections import record_sections
from recipes.common.entry import run
from recipes.common.errors import Faults
from recipes.common.files import why_no_directory, why_no_file
from recipes.common.places import RESULTS
from recipes.common.settings import Positional, parse
from recipes.reporting import leaderboard_page
from recipes.reporting.kinds import Wanted, report_of


@dataclass(frozen=True)
class Settings:
    """Tables and figures of runs, of a scaling sweep, of finetuning results or of a comparison."""

    directories: Positional = ()
    """Directories of runs (--output of pretrain.py), of a sweep's runs, of results (--output of
    glue.py), or of a comparison (--output of cram.py)."""
    output: Path | None = None
    """Directory of the report and its figures; the first of DIRECTORIES if not given, and beside
    the models' directories for a sweep."""
    leaderboard: Path | None = None
    """File that gets a line for each run with scores, shown beside the published ones;
    leaderboard.json in the report's directory if not given. Without DIRECTORIES the report is of
    this file alone."""
    records: Path | None = None
    """Directory of the benchmarks' records (--output of benchmark.py) that the page shows; the
    repository's docs/results if not given."""


def given_twice(directories: Sequence[Path]) -> Iterator[str]:
    """Name the directories that are there again under this name or another."""
    for number, directory in enumerate(directories):
        for earlier in directories[:number]:
            if directory.exists() and earlier.exists() and directory.samefile(earlier):
                twice = "twice" if directory == earlier else f"as {earlier}, too"
                yield f"{directory}: is named {twice}; name it once"
                break


def main(words: Sequence[str] | None = None) -> int:
    """Find out what the directories hold, write its report and print it; return the exit code."""
    settings = parse(Settings, words, manual=__doc__)
    directories = [Path(word) for word in settings.directories]
    faults = Faults()
    if not directories and not settings.leaderboard:
        faults.append("name at least one directory, such as runs/base")
    if settings.output and (refusal := why_no_directory(settings.output)):
        faults.append(f"--output {settings.output}: {refusal}")
    if settings.leaderboard and (refusal := why_no_file(settings.leaderboard)):
        faults.append(f"--leaderboard {settings.leaderboard}: {refusal}")
    if settings.records and not settings.records.is_dir():
        faults.append(f"--records {settings.records}: no such directory")
    faults += (twice := list(given_twice(directories)))
    report = None
    if directories and not twice:
        report = faults.attempt(lambda: report_of(directories))
    faults.stop()
    if settings.leaderboard and not directories:
        print(
            leaderboard_page.write(
                settings.leaderboard, settings.output or settings.leaderboard.parent
            )
        )
    if report:
        sections = partial(record_sections, settings.records or Path(os.path.relpath(RESULTS)))
        print(report(Wanted(directories, settings.output, settings.leaderboard, sections)))
    return 0


if __name__ == "__main__":
    run(main)
