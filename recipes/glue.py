"""The whole benchmark: every task and seed through `recipes/finetune.py`, then the score table.

    python recipes/glue.py --checkpoint runs/base --output runs/base/glue
    python recipes/glue.py --checkpoint runs/base --tasks cola rte --seeds 1 -- --epochs 2

MNLI runs first; RTE, MRPC and STS-B start from its result, everything else runs beside it. Each job
is a process of its own, on a GPU of its own where there are any, so that one that dies takes
nothing with it. A restart skips the jobs whose results are there with the same settings, data and
start weights included.

Options after a bare -- go to recipes/finetune.py, for all tasks alike.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from recipes.common.entry import run
from recipes.common.errors import Faults
from recipes.common.locks import lock
from recipes.common.processes import last_error, received_signals
from recipes.common.settings import parse, split_rest
from recipes.interop.model_card import refresh_scores
from recipes.reporting import leaderboard
from recipes.reporting.kinds import record_line
from recipes.reporting.score_table import write_scores
from recipes.reporting.scores import load_results
from recipes.tasks.glue_plan import FINETUNE, Plan, Settings, resolve
from recipes.tasks.jobs import Job, Slot, run_jobs, slots


def main(words: Sequence[str] | None = None, script: Path = FINETUNE) -> int:
    own, handed_on = split_rest(sys.argv[1:] if words is None else words)
    refused = Faults()
    settings = parse(Settings, own, faults=refused, manual=__doc__)
    plan = resolve(settings, handed_on, refused, script)
    places = slots(settings.jobs and min(settings.jobs, len(plan.jobs)))
    board = settings.leaderboard or plan.output / leaderboard.FILE
    leaderboard.read(board)  # what is wrong with it is said before hours of work
    if settings.dry_run:
        for job in plan.jobs:
            print(shlex.join(job.command) + (f"  # after {job.after.name}" if job.after else ""))
        print(f"{len(plan.jobs)} jobs, {len(places)} at a time, {places[0].threads} threads each")
        return 0
    plan.output.mkdir(parents=True, exist_ok=True)
    lock(plan.output, "running GLUE's tasks or writing their table")
    given = sys.argv[1:] if words is None else words
    command = shlex.join(["python", "recipes/glue.py", *given])
    return run_to_the_end(plan.jobs, places) or report(plan, board, command)


def run_to_the_end(jobs: Sequence[Job], places: Sequence[Slot]) -> int:
    """Run the jobs; returns an exit status other than 0 where a signal has ended them."""
    with received_signals() as signals:
        run_jobs(jobs, places, signals)
    if not signals:
        return 0
    left = sum(job.state in ("waiting", "running") for job in jobs)
    print(f"stopped with {left} jobs to do; the same command goes on", file=sys.stderr)
    return 128 + signals[0]


def report(plan: Plan, board: Path, command: str) -> int:
    """Write the scores, and name the jobs without a result; returns the exit status.

    Args:
        board: the leaderboard, which gets the line of the run; a control has none.
        command: that made the results, for that line.
    """
    unfinished = [job for job in plan.jobs if job.state != "done"]
    # What an unfinished job has left from an earlier time has other settings or another start.
    results = load_results(plan.output, without=[job.result for job in unfinished])
    if results:
        print(f"\n{write_scores({str(plan.output): results}, plan.output)}")
        if not any(result.get("from_scratch") for result in results):
            if said := record_line(board, plan.output, results, command):
                print(said)
    if not unfinished and (said := refresh_scores(plan.export, plan.output)):
        print(said)
    for job in unfinished:
        print(f"error: {job.name} {_why_unfinished(job)}", file=sys.stderr)
    return 1 if unfinished else 0


def _why_unfinished(job: Job) -> str:
    if job.state == "failed":
        return f"failed: {job.log}: {last_error(job.log)}"
    if job.state == "skipped":
        return f"skipped: it starts from {job.after.name}, which failed" if job.after else "skipped"
    what = "cannot be read" if job.result.exists() else "is not there"
    return f"has not run: {job.result} {what}, and there is no log of it"


if __name__ == "__main__":
    run(main)
