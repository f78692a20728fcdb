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
from recipes.common.settings import parse, split_rest
from recipes.reporting import leaderboard
from recipes.reporting.glue_report import report
from recipes.tasks.glue_plan import FINETUNE, Settings, resolve
from recipes.tasks.jobs import run_to_the_end, slots


def main(words: Sequence[str] | None = None, script: Path = FINETUNE) -> int:
    given = sys.argv[1:] if words is None else words
    own, handed_on = split_rest(given)
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
    command = shlex.join(["python", "recipes/glue.py", *given])
    return run_to_the_end(plan.jobs, places) or report(plan, board, command)


if __name__ == "__main__":
    run(main)
