"""What `glue.py` and SLURM's array end with: scores, the leaderboard's line, what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

from recipes.common.processes import last_error
from recipes.interop.model_card import refresh_scores
from recipes.reporting.kinds import record_line
from recipes.reporting.score_table import write_scores
from recipes.reporting.scores import load_results
from recipes.tasks.glue_plan import Plan
from recipes.tasks.jobs import Job


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
