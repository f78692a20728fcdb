"""The whole benchmark: every task and seed through `recipes/finetune.py`, then the score table.

    python recipes/glue.py --checkpoint runs/base --output runs/base/glue
    python recipes/glue.py --checkpoint runs/base --tasks cola rte --seeds 1 -- --epochs 2

MNLI runs first; RTE, MRPC and STS-B start from its result, everything else runs beside it. Each job
is a process of its own, on a GPU of its own where there are any, so that one that dies takes
nothing with it. A restart skips the jobs whose results are there with the same settings, data and
start weights included.
"""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from recipes.common.cli import (  # noqa: E402
    COUNT,
    COUNT_OR_NONE,
    ArgumentParser,
    claimed,
    whole,
)
from recipes.common.entry import run
from recipes.common.errors import Faults, UserError
from recipes.common.files import why_no_directory  # noqa: E402
from recipes.common.locks import lock  # noqa: E402
from recipes.common.processes import last_error, received_signals
from recipes.reporting.score_table import write_scores  # noqa: E402
from recipes.reporting.scores import load_results  # noqa: E402
from recipes.tasks import finetune_options  # noqa: E402
from recipes.tasks.classification_data import find_task_data  # noqa: E402
from recipes.tasks.glue_tasks import TASKS, Task, find_task  # noqa: E402
from recipes.tasks.jobs import Job, result_of, run_jobs, slots  # noqa: E402
from recipes.training.export import read_tokenizer  # noqa: E402

FINETUNE = Path(__file__).with_name("finetune.py")
FIRST_SEED = 17
_GLUE_ONLY = "is for data of one's own; glue.py runs GLUE's tasks"
# Options of finetune.py that glue.py gives each job itself.
NOT_AFTER_DASHES = {
    "--task": "give --tasks before the --",
    "--seed": f"seeds count from {FIRST_SEED}; give --seeds, how many, before the --",
    "--checkpoint": "",
    "--output": "",
    "--data": "",
    "--from-scratch": "",
    "--dry-run": "",
    **dict.fromkeys(
        ("--train-file", "--dev-file", "--text-columns", "--label-column", "--regression"),
        _GLUE_ONLY,
    ),
}


def plan(
    tasks: Sequence[Task],
    *,
    checkpoint: Path,
    output: Path,
    seeds: int | None = None,
    from_scratch: bool = False,
    extra: Sequence[str] = (),
    finetune: Path = FINETUNE,
) -> list[Job]:
    """The jobs in the order in which they should start.

    MNLI comes first, since others wait for it, then the longest, so that none is left for the end.

    Args:
        seeds: at most so many per task; None for each task's own number.
        from_scratch: random weights instead of the checkpoint's. Jobs that start from MNLI still
            do: it is MNLI that is then trained from scratch.
        extra: options handed to `finetune`.
        finetune: the script that runs one job.
    """
    mnli_name = f"mnli-seed{FIRST_SEED}"
    # Read once: MNLI runs below write it only when it is a job itself.
    earlier_mnli = (output / f"{mnli_name}.json").exists() and (output / mnli_name).exists()

    def job(task: Task, seed: int, after: Job | None) -> Job:
        start, scratch = checkpoint, from_scratch
        if task.start == "mnli" and (after or earlier_mnli):
            start, scratch = output / mnli_name, False
        command = [sys.executable, str(finetune), "--task", task.name, "--seed", str(seed)]
        command += ["--checkpoint", str(start), "--output", str(output)]
        command += ["--from-scratch"] * scratch + list(extra)
        return Job(task, seed, command, output, after)

    order = sorted(tasks, key=lambda t: (t.name != "mnli", -t.train_count * t.epochs))
    jobs: list[Job] = []
    for task in order:
        first = jobs[0] if jobs and jobs[0].task.name == "mnli" else None
        after = first if task.start == "mnli" else None
        count = task.seeds if seeds is None else min(seeds, task.seeds)
        jobs += [job(task, FIRST_SEED + k, after) for k in range(count)]
    return jobs


def main(arguments: Sequence[str] | None = None, finetune: Path = FINETUNE) -> int:
    options = parse_arguments(arguments)
    jobs = resolve(options, finetune)
    places = slots(options.jobs and min(options.jobs, len(jobs)))
    if options.dry_run:
        for job in jobs:
            print(shlex.join(job.command) + (f"  # after {job.after.name}" if job.after else ""))
        print(f"{len(jobs)} jobs, {len(places)} at a time, {places[0].threads} threads each")
        return 0
    if options.list_arrays:
        # MNLI, where it is asked for, is number 0.
        for name, waits in (("now", False), ("after-mnli", True)):
            numbers = [str(n) for n, job in enumerate(jobs) if bool(job.after) == waits]
            print(name, ",".join(numbers))
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    if options.only is not None:  # beside other processes that do the same
        jobs = [replace(jobs[options.only], after=None)]
    else:
        lock(options.output, "running GLUE's tasks or writing their table")
    if options.report_only:
        for job in jobs:
            job.state = "done" if result_of(job) else "failed" if job.log.exists() else "waiting"
        return report(jobs, options.output)
    with received_signals() as signals:
        run_jobs(jobs, places, signals)
    if signals:
        left = sum(job.state in ("waiting", "running") for job in jobs)
        print(f"stopped with {left} jobs to do; the same command goes on", file=sys.stderr)
        return 128 + signals[0]
    if options.only is not None:
        return int(jobs[0].state != "done")
    return report(jobs, options.output)


def report(jobs: Sequence[Job], output: Path) -> int:
    """Write the score table, and name the jobs without a result; returns the exit status."""
    unfinished = [job for job in jobs if job.state != "done"]
    # What an unfinished job has left from an earlier time has other settings or another start.
    results = load_results(output, without=[job.result for job in unfinished])
    if results:
        print(f"\n{write_scores({str(output): results}, output)}")
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


def resolve(options: Any, finetune: Path = FINETUNE) -> list[Job]:
    """The jobs that the options ask for.

    Raises:
        UserError: all faults of the options at once.
    """
    faults = Faults(options.faults)
    found = [faults.attempt(functools.partial(find_task, name)) for name in options.tasks]
    faults += claimed(options.finetune, NOT_AFTER_DASHES)
    faults.attempt(lambda: _check_start(options.checkpoint))
    if options.data is not None and not options.data.is_dir():
        faults.append(f"--data {options.data}: no such directory")
    if options.output is None:
        options.output = options.checkpoint / ("glue-from-scratch" * options.from_scratch or "glue")
    if refusal := why_no_directory(options.output):
        faults.append(f"--output {options.output}: {refusal}")
    faults.stop()
    jobs = plan(
        list({task.name: task for task in found if task}.values()),
        checkpoint=options.checkpoint,
        output=options.output,
        seeds=options.seeds,
        from_scratch=options.from_scratch,
        extra=(["--data", str(options.data)] if options.data else []) + options.finetune,
        finetune=finetune,
    )
    if options.only is not None and options.only >= len(jobs):
        raise UserError(f"--only {options.only}: the jobs are numbered 0 to {len(jobs) - 1}")
    if options.data is not None and not options.report_only:
        wanted = jobs if options.only is None else [jobs[options.only]]
        for task in {job.task.name: job.task for job in wanted}.values():
            faults.attempt(functools.partial(find_task_data, task, options.data))
        faults.stop()
    # Leaves on a mistyped option, once for all.
    faults += finetune_options.parse_arguments(jobs[0].options).faults
    faults.stop()
    for job in jobs:
        result = result_of(job)
        if job.task.start == "pretrained" and result:
            if result.get("from_scratch", False) != options.from_scratch:
                faults.append(f"{job.result}: from_scratch is {not options.from_scratch} there")
    if faults:
        raise UserError(
            "give another --output; this one has the results of the other kind", *faults
        )
    return jobs


def _check_start(checkpoint: Path) -> None:
    config, _, description = finetune_options.starting_weights(checkpoint)
    read_tokenizer(checkpoint, config, description)


def parse_arguments(arguments: Sequence[str] | None = None) -> Any:
    parser = ArgumentParser(
        refuse=False,
        description="Finetune on GLUE, all tasks and seeds, and write the score table.",
        epilog="Options after a bare -- go to recipes/finetune.py, for all tasks alike.",
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="directory of a run, or its export")
    add(
        "--output",
        type=Path,
        help="directory of the results; glue (glue-from-scratch) in --checkpoint if not given",
    )
    add("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help="which to run")
    add("--seeds", type=COUNT, help="at most so many per task; 1 to 5 by task if not given")
    add("--data", type=Path, help="directory with the tasks; the hub's GLUE if not given")
    add(
        "--jobs",
        type=whole(1, 1024),
        help="at a time; one per GPU, or on the CPU one per core up to 4, if not given",
    )
    add("--from-scratch", action="store_true", help="control: the same without pretraining")
    add("--dry-run", action="store_true", help="print the jobs and exit")
    add(
        "--only",
        type=COUNT_OR_NONE,
        metavar="N",
        help="run job N of the list, without the score table",
    )
    add("--report-only", action="store_true", help="run nothing, write the score table")
    add("--list-arrays", action="store_true", help="print job numbers for job arrays, and exit")
    add("finetune", nargs="*", metavar="-- OPTION", help="options for recipes/finetune.py")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
