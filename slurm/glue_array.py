"""The parts of recipes/glue.py that jobs of SLURM run, each called by slurm/finetune_glue.sh.

    python slurm/glue_array.py list   --checkpoint runs/base    numbers of the jobs, for two arrays
    python slurm/glue_array.py job    --checkpoint runs/base    the job of SLURM_ARRAY_TASK_ID
    python slurm/glue_array.py report --checkpoint runs/base    the score table of what is there

They take the options of recipes/glue.py. A job's number is its place in the list of all jobs.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root, not from slurm/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from recipes.common.entry import run
from recipes.common.errors import Faults, UserError
from recipes.common.locks import lock
from recipes.common.settings import parse, split_rest
from recipes.reporting import leaderboard
from recipes.reporting.glue_report import report
from recipes.tasks.glue_plan import FINETUNE, Plan, Settings, resolve
from recipes.tasks.jobs import result_of, run_to_the_end, slots


def main(words: Sequence[str] | None = None, script: Path = FINETUNE) -> int:
    stage, *options = sys.argv[1:] if words is None else words
    own, handed_on = split_rest(options)
    refused = Faults()
    settings = parse(Settings, own, faults=refused)
    plan = resolve(settings, handed_on, refused, script, find_data=stage == "list")
    if stage == "list":
        list_arrays(plan)
        return 0
    plan.output.mkdir(parents=True, exist_ok=True)
    if stage == "job":
        return run_one(plan, settings)
    command = shlex.join(["python", "recipes/glue.py", *options])
    return report_all(plan, settings.leaderboard or plan.output / leaderboard.FILE, command)


def list_arrays(plan: Plan) -> None:
    """Print the jobs that can start at once, MNLI the first of them, and those that wait for it."""
    for name, waits in (("now", False), ("after-mnli", True)):
        numbers = [str(n) for n, job in enumerate(plan.jobs) if bool(job.after) == waits]
        print(name, ",".join(numbers))


def run_one(plan: Plan, settings: Settings) -> int:
    """Run this process's job of the array, beside other processes that do the same."""
    number = int(os.environ["SLURM_ARRAY_TASK_ID"])
    if number >= len(plan.jobs):
        raise UserError(f"job {number}: the jobs are numbered 0 to {len(plan.jobs) - 1}")
    job = replace(plan.jobs[number], after=None)
    return run_to_the_end([job], slots(settings.jobs)) or int(job.state != "done")


def report_all(plan: Plan, board: Path, command: str) -> int:
    """Write the score table of what the jobs have left; the arguments as those of `report`."""
    lock(plan.output, "running GLUE's tasks or writing their table")
    for job in plan.jobs:
        job.state = "done" if result_of(job) else "failed" if job.log.exists() else "waiting"
    return report(plan, board, command)


if __name__ == "__main__":
    run(main)
