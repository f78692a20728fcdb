"""The jobs of the whole benchmark: every task and seed as a call of `recipes/finetune.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from recipes.common.errors import Faults, UserError
from recipes.common.files import why_no_directory, why_no_file
from recipes.common.numbers import whole
from recipes.common.places import RECIPES
from recipes.common.settings import Count, claimed, number_in, parse
from recipes.tasks import finetune_settings
from recipes.tasks.classification_data import find_task_data
from recipes.tasks.finetuning import read_shared
from recipes.tasks.glue_tasks import TASKS, Task, find_task
from recipes.tasks.jobs import Job, result_of
from recipes.tasks.results import run_name
from recipes.training.export import export_directory

FINETUNE = RECIPES / "finetune.py"
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
    **dict.fromkeys(("--help", "-h"), "recipes/finetune.py --help explains its options"),
    **dict.fromkeys(
        ("--train-file", "--dev-file", "--text-columns", "--label-column", "--regression"),
        _GLUE_ONLY,
    ),
}


@dataclass(frozen=True)
class Settings:
    """Finetune on GLUE, all tasks and seeds, and write the score table.

    Options after a bare -- go to recipes/finetune.py, for all tasks alike.
    """

    checkpoint: Path
    """Directory of a run, or its export."""
    output: Path | None = None
    """Directory of the results; glue (glue-from-scratch) in --checkpoint if not given."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks to run."""
    seeds: Count | None = None
    """Seeds per task, at most; 1 to 5 by task if not given."""
    data: Path | None = None
    """Directory with the tasks; the hub's GLUE if not given."""
    jobs: Annotated[int, number_in(whole(1, 1024))] | None = None
    """Jobs at a time; one per GPU, or on the CPU one per core up to 4, if not given."""
    from_scratch: bool = False
    """Start from random weights of the same architecture, for comparison."""
    leaderboard: Path | None = None
    """File that gets a line with score, cost and what repeats them; leaderboard.json in --output if
    not given. Runs that are to stand beside each other share one."""
    dry_run: bool = False
    """Print the jobs and end."""


@dataclass(frozen=True)
class Plan:
    """What there is to do, checked."""

    output: Path
    export: Path
    """Where the jobs start, MNLI's followers apart."""
    jobs: list[Job]
    """In the order in which they should start."""


def resolve(
    settings: Settings,
    handed_on: Sequence[str] = (),
    refused: Sequence[str] = (),
    script: Path = FINETUNE,
    *,
    find_data: bool = True,
) -> Plan:
    """Plan the jobs that the settings ask for.

    Args:
        handed_on: options for every job.
        refused: values of the command line that are no settings, to be named with the other faults.
        script: what runs one job.
        find_data: look whether each task's data is there.

    Raises:
        UserError: all faults of the settings at once.
    """
    faults = Faults(refused)
    found = [faults.attempt(partial(find_task, name)) for name in settings.tasks]
    tasks = list({task.name: task for task in found if task}.values())
    data = settings.data
    if data is not None and not data.is_dir():
        faults.append(f"--data {data}: no such directory")
    elif data is not None and find_data:
        for task in tasks:
            faults.attempt(partial(find_task_data, task, data))
    output = settings.output
    if output is None:
        output = settings.checkpoint / ("glue-from-scratch" * settings.from_scratch or "glue")
    if refusal := why_no_directory(output):
        faults.append(f"--output {output}: {refusal}")
    if settings.leaderboard and (refusal := why_no_file(settings.leaderboard)):
        faults.append(f"--leaderboard {settings.leaderboard}: {refusal}")
    _check_jobs(settings, output, handed_on, faults)
    faults.stop()
    jobs = plan(
        tasks,
        checkpoint=settings.checkpoint,
        output=output,
        seeds=settings.seeds,
        from_scratch=settings.from_scratch,
        extra=([] if data is None else ["--data", str(data)]) + list(handed_on),
        script=script,
    )
    _check_kind(jobs, settings)
    return Plan(output, export_directory(settings.checkpoint), jobs)


def plan(
    tasks: Sequence[Task],
    *,
    checkpoint: Path,
    output: Path,
    seeds: int | None = None,
    from_scratch: bool = False,
    extra: Sequence[str] = (),
    script: Path = FINETUNE,
) -> list[Job]:
    """List the jobs in the order in which they should start.

    MNLI comes first, since others wait for it, then the longest, so that none is left for the end.

    Args:
        seeds: at most so many per task; None for each task's own number.
        from_scratch: random weights instead of the checkpoint's. Jobs that start from MNLI still
            do: it is MNLI that is then trained from scratch.
        extra: options handed to every job.
        script: what runs one job.
    """
    mnli_name = run_name("mnli", FIRST_SEED)
    # Read once: MNLI's result is written here only where MNLI is a job itself.
    earlier_mnli = (output / f"{mnli_name}.json").exists() and (output / mnli_name).exists()

    def job(task: Task, seed: int, after: Job | None) -> Job:
        start, scratch = checkpoint, from_scratch
        if task.start == "mnli" and (after or earlier_mnli):
            start, scratch = output / mnli_name, False
        options = ["--task", task.name, "--seed", str(seed)]
        options += ["--checkpoint", str(start), "--output", str(output)]
        options += ["--from-scratch"] * scratch + list(extra)
        return Job(task, seed, script, options, output, after)

    order = sorted(tasks, key=lambda t: (t.name != "mnli", -t.train_count * t.epochs))
    jobs: list[Job] = []
    for task in order:
        first = jobs[0] if jobs and jobs[0].task.name == "mnli" else None
        after = first if task.start == "mnli" else None
        count = task.seeds if seeds is None else min(seeds, task.seeds)
        jobs += [job(task, FIRST_SEED + k, after) for k in range(count)]
    return jobs


def _check_jobs(settings: Settings, output: Path, handed_on: Sequence[str], faults: Faults) -> None:
    """Find what every job would find wrong with its options, its start and this machine."""
    wrong = claimed(handed_on, NOT_AFTER_DASHES)
    faults += wrong
    words = ["--checkpoint", str(settings.checkpoint), "--output", str(output)]

    def with_handed_on() -> finetune_settings.Settings:
        try:
            return parse(finetune_settings.Settings, [*words, *handed_on], faults=faults)
        except UserError as error:
            raise UserError(*(f"finetune.py: {fault}" for fault in error.faults)) from None

    of_jobs = None if wrong else faults.attempt(with_handed_on)
    read_shared(of_jobs or parse(finetune_settings.Settings, words), faults)


def _check_kind(jobs: Sequence[Job], settings: Settings) -> None:
    """Raises UserError where the directory has results of the other kind of start."""
    other = [
        f"{job.result}: from_scratch is {not settings.from_scratch} there"
        for job in jobs
        if job.task.start == "pretrained"
        and (result := result_of(job))
        and result.get("from_scratch", False) != settings.from_scratch
    ]
    if other:
        raise UserError("give another --output; this one has the results of the other kind", *other)
