"""Jobs side by side: each a process of its own, on a GPU of its own where there are any.

One that dies takes nothing with it, and a signal ends all that they have started.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from recipes.common import processes
from recipes.common.errors import UserError
from recipes.common.processes import last_error, last_line, received_signals
from recipes.common.settings import parse
from recipes.tasks.finetune_result import is_done
from recipes.tasks.finetune_settings import Settings
from recipes.tasks.finetuning import resolve
from recipes.tasks.glue_tasks import Task
from recipes.tasks.results import Result, describe, read_result, run_name
from recipes.training.console import duration

CPU_JOBS = 4
POLL_SECONDS = 0.2

State = Literal["waiting", "running", "done", "failed", "skipped"]


@dataclass
class Job:
    """One task with one seed; `after` is the job whose result it starts from."""

    task: Task
    seed: int
    script: Path
    """What runs it: `recipes/finetune.py`."""
    options: list[str]
    """The script's."""
    output: Path
    after: Job | None = None
    state: State = "waiting"

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(self.script), *self.options]

    @property
    def name(self) -> str:
        return run_name(self.task.name, self.seed)

    @property
    def result(self) -> Path:
        return self.output / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.output / "logs" / f"{self.name}.log"


@dataclass(frozen=True, eq=False)  # two slots on one GPU are two
class Slot:
    """Where a job runs: the GPU, as `CUDA_VISIBLE_DEVICES` names it, or None for CPU threads."""

    name: str
    gpu: str | None
    threads: int

    def environment(self) -> dict[str, str]:
        """What a job here gets beside its parent's environment: a world of one, by itself."""
        world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        device = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}
        return world | address | device | {"OMP_NUM_THREADS": str(self.threads)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Running:
    """A job whose process has started, and the slot that it holds."""

    job: Job
    slot: Slot
    process: processes.Child
    began: float
    before: Result | None
    """The result that was there when it started."""


def slots(count: int | None) -> list[Slot]:
    """Return a slot per visible GPU, or up to four on the CPU; or `count` that share these.

    Two jobs with one thread each finish a third sooner than one after the other with two; more than
    four of Base's would need more memory than a laptop has.

    Raises:
        UserError: OMP_NUM_THREADS is no number of threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    gpus = [str(index) for index in range(torch.cuda.device_count())]
    if gpus and (visible := os.environ.get("CUDA_VISIBLE_DEVICES")):
        gpus = visible.split(",")[: len(gpus)]  # as the machine names them
    number = count or len(gpus) or min(cores, CPU_JOBS)
    # A user's own choice of threads is kept only where it cannot oversubscribe the cores.
    threads = min(_wanted_threads() or cores, max(1, cores // number))
    if not gpus:
        return [Slot(f"slot {index}", None, threads) for index in range(number)]
    chosen = [gpus[index % len(gpus)] for index in range(number)]
    return [Slot(f"GPU {gpu}", gpu, threads) for gpu in chosen]


def _wanted_threads() -> int | None:
    """OMP_NUM_THREADS, the first of its numbers; None where it is not set."""
    said = os.environ.get("OMP_NUM_THREADS", "").strip()
    first = said.partition(",")[0].strip()
    if said and not (first.isdecimal() and int(first)):
        raise UserError(f"OMP_NUM_THREADS={said}: must be a whole number, 1 or more")
    return int(first) if said else None


def run_to_the_end(jobs: Sequence[Job], places: Sequence[Slot]) -> int:
    """Run the jobs until all have ended; returns an exit status, not 0 if a signal came first."""
    with received_signals() as signals:
        run_jobs(jobs, places, signals)
    if not signals:
        return 0
    left = sum(job.state in ("waiting", "running") for job in jobs)
    print(f"stopped with {left} jobs to do; the same command goes on", file=sys.stderr)
    return 128 + signals[0]


def run_jobs(jobs: Sequence[Job], places: Sequence[Slot], signals: Sequence[int] = ()) -> None:
    """Run the jobs, as many at once as there are places; each job's `state` is then final.

    Prints a line for each job that ends; a terminal also shows the running ones.

    Args:
        signals: watched; as soon as it is not empty, running jobs are ended, no more are started,
            and the states stay as they were.
    """
    running: list[Running] = []
    quiet = not sys.stderr.isatty()
    bars = [tqdm(bar_format="{desc}", position=i, disable=quiet) for i in range(len(places))]
    total = tqdm(total=len(jobs), desc="jobs", position=len(places), disable=quiet)
    try:
        while not signals and any(job.state in ("waiting", "running") for job in jobs):
            for job in jobs:
                if job.state == "waiting" and job.after and job.after.state == "failed":
                    job.state = "skipped"
                    _finished(total, job, f"{job.after.name}, from which it starts, failed")
            free = [place for place in places if place not in [other.slot for other in running]]
            for job in [job for job in jobs if job.state == "waiting" and _may_start(job)]:
                if signals or not free:
                    break
                if _is_done(job):
                    job.state = "done"
                    _finished(total, job, f"{describe(read_result(job.result))}, there already")
                else:
                    running.append(_start(job, free.pop(0)))
            for bar, slot in zip([] if quiet else bars, places, strict=False):
                bar.set_description_str(_doing(slot, running))
            time.sleep(POLL_SECONDS)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                processes.kill(each.process)  # what the job may have left behind
                _finished(total, each.job, _outcome(each))
    finally:
        processes.stop([each.process for each in running])
        for bar in (*bars, total):
            bar.close()


def _may_start(job: Job) -> bool:
    return job.after is None or job.after.state == "done"


def _is_done(job: Job) -> bool:
    """What the job would find out itself, without the seconds that its process takes to start."""
    if not job.result.exists():
        return False
    try:
        return is_done(resolve(parse(Settings, job.options), 1))
    except UserError:
        return False  # the job will say why it cannot be


def _start(job: Job, slot: Slot) -> Running:
    job.state = "running"
    job.log.parent.mkdir(parents=True, exist_ok=True)
    before = result_of(job)
    job.log.write_text(f"$ {shlex.join(job.command)}\n")
    process = processes.start(job.command, job.log, environment=slot.environment())
    return Running(job, slot, process, time.monotonic(), before)


def _outcome(each: Running) -> str:
    """Set the state of a job that has ended; returns what there is to say about it."""
    job, status = each.job, each.process.returncode
    result = result_of(job) if status == 0 else None
    if result is None:
        job.state = "failed"
        how = f"exit status {status}" if status else f"no result in {job.result}"
        return f"{how}; {job.log}: {last_error(job.log)}"
    job.state = "done"
    took = duration(time.monotonic() - each.began)
    if result == each.before:
        return f"{describe(result)}, there already"
    again = ", again: the settings have changed" if each.before else ""
    return f"{describe(result)}, {took} on {each.slot.name}{again}"


def result_of(job: Job) -> Result | None:
    try:
        return read_result(job.result)
    except (FileNotFoundError, UserError):
        return None


def _finished(total: tqdm, job: Job, what: str) -> None:
    with total.external_write_mode(file=sys.stdout):
        print(f"{job.state:<8}{job.name:<14}{what}", flush=True)
    total.update()


def _doing(slot: Slot, running: Sequence[Running]) -> str:
    for each in running:
        if each.slot is slot:
            passed = duration(time.monotonic() - each.began)
            return f"{slot.name:<8}{each.job.name:<14}{passed:>7}  {last_line(each.job.log)[:90]}"
    return f"{slot.name:<8}-"
