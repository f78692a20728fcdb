"""What saving and resuming cost.

    python recipes/benchmark.py checkpoint --model rapidbert-base
    torchrun --nproc-per-node 2 recipes/benchmark.py checkpoint

The engine, its checkpoints and its steps are those of pretraining; the micro-batch is tiny, which
saving does not notice. Measured are, several times each:

- the stall: how long training stands still while a checkpoint is begun;
- the write: from there until the checkpoint is published, on disk and synchronised, while
  training goes on;
- the processor time of a save: what the process uses more during steps beside a save than during
  as many steps without one. Other programs on the machine hardly change it, and training could lose
  no more than this if the thread that writes had no core of its own;
- the time lost: how much longer those steps take. With training on the same cores, and other
  programs there, it says more about the machine than about saving;
- resuming: checksums and loading, the files not in the page cache, and from the start of the
  process to the end of the first step.

From them follows by arithmetic the share of the training time that saving takes at the default
interval on one node of eight GPUs, at the published step time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch.distributed as dist
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from model.config import preset
from recipes.benchmarks.mode import Mode, ModeSettings
from recipes.benchmarks.presentation import panels, shown
from recipes.benchmarks.records import Record, Rows
from recipes.benchmarks.timing import spread
from recipes.benchmarks.training_step import Setup, Trainer, full_batch
from recipes.common.errors import Faults
from recipes.common.json_content import Json
from recipes.engine.ds_config import precision, read_config
from recipes.engine.world import World, initialize_world, shut_down, told_by_first
from recipes.reporting.figures import COLORS
from recipes.training.checkpoints.store import Checkpoints
from recipes.training.progress import Progress

REPEATS = 5
"""Number of saves, and of loads."""
STEPS = 8
"""Steps of one stretch of training, with or without a save at its beginning."""
SEQUENCES, SEQUENCE_LENGTH = 1, 64
"""Size of a micro-batch: little to compute, so that the state is what costs."""
SAVE_EVERY = 1000
"""Steps between checkpoints: the default of recipes/pretrain.py."""
# RapidBERT-Base on one node of 8 x A100-80, 4,096 sequences of 128 tokens (appendix, Table S2).
GPUS = 8
PUBLISHED_TOKENS_PER_SECOND = 1.1e6
PUBLISHED_STEP_SECONDS = 4096 * 128 / PUBLISHED_TOKENS_PER_SECOND


@dataclass(frozen=True)
class Settings(ModeSettings):
    """Measures what saving and resuming cost, and what share of the training time that is."""

    model: str = "rapidbert-base"
    """Preset."""
    deepspeed_config: Path = Path("ds_configs/base.json")
    """DeepSpeed JSON with precision and ZeRO stage; its batch sizes are not used."""
    directory: Path | None = None
    """Directory to write to, on the disk that is to be measured; /tmp unless given."""


def seconds_since_start() -> float:
    """Count the seconds since this process was started, the imports included."""
    fields = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22: ticks since the system's boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


@dataclass
class Passes:
    """What the saves and the loads so far have taken, on this rank."""

    steps: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    timings: list[dict[str, float]] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    def saving(self) -> Json:
        """Compute stall, write and whole cost of a checkpoint; of rank 0, which has the timings."""
        gigabytes = self.timings[0]["checkpoint/gigabytes"]
        writes = [timing["checkpoint/write_seconds"] for timing in self.timings]
        return {
            "gigabytes": gigabytes,
            "step_seconds": spread(self.steps),
            "stall_seconds": spread(
                [timing["checkpoint/stall_seconds"] for timing in self.timings]
            ),
            "write_seconds": spread(writes),
            "write_mb_per_second": spread([1000 * gigabytes / seconds for seconds in writes]),
            "processor_seconds": spread(self.work),
            "lost_seconds": spread(self.lost),
        }


def measure_pass(training: Trainer, directory: Path, passes: Passes) -> None:
    """Measure one save, and one load of what it wrote; the checkpoint stays in `directory`."""
    checkpoints = Checkpoints(directory, training.world, keep=1)
    before = _stretch(training)
    during = _stretch(training, checkpoints)
    after = _stretch(training)
    usual = (before + after) / 2 / STEPS  # of one step
    passes.steps += [before[0] / STEPS, after[0] / STEPS]
    passes.lost.append(during[0] - during[2] * usual[0])
    passes.work.append(during[1] - during[2] * usual[1])
    checkpoints.wait()
    passes.timings.append(checkpoints.timings)
    passes.loads.append(measure_loading(training, directory))


def _stretch(training: Trainer, checkpoints: Checkpoints | None = None) -> np.ndarray:
    """Do some steps: `STEPS`, or as many as a checkpoint takes to be written.

    Returns:
        Their seconds, their processor seconds on this rank, and their number, float64 [3].
    """
    dist.barrier()
    began = time.perf_counter(), time.process_time()
    if checkpoints:
        checkpoints.save(training.engine, Progress(training.done))
    count, going = 0, True
    while going:
        training.step()
        count += 1
        # Rank 0 hears of the last rank's end.
        going = told_by_first(checkpoints.writing if checkpoints else count < STEPS)
    return np.array([time.perf_counter() - began[0], time.process_time() - began[1], count])


def measure_loading(training: Trainer, directory: Path) -> float:
    """Measure the seconds to verify and load the checkpoint, its files read from the disk."""
    if training.world.rank == 0:
        _forget_pages(directory)
    dist.barrier()
    began = time.perf_counter()
    Checkpoints(directory, training.world).resume(training.engine, expected=True)
    dist.barrier()
    return time.perf_counter() - began


def _forget_pages(directory: Path) -> None:
    for path in directory.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def share_of_training(saving: Json, processes: int) -> Json:
    """Compute which share of the training time the seconds are at the default interval.

    On one node of eight GPUs, at the published step time. The node holds the state once, in eight
    parts, each the work of its own rank, written to one disk. So a rank has an eighth of the
    processor time; stall (memory bandwidth may be its limit) and write are taken as they are here,
    where fewer processes do it all. The slowest of each measurement counts.
    """
    seconds = {
        "stall": saving["stall_seconds"]["max"],
        "processor_time": saving["processor_seconds"]["max"] * processes / GPUS,
        "training_that_waits_for_the_write": saving["stall_seconds"]["max"]
        + saving["write_seconds"]["max"],
    }
    interval = SAVE_EVERY * PUBLISHED_STEP_SECONDS
    return {
        "save_every_steps": SAVE_EVERY,
        "step_seconds": PUBLISHED_STEP_SECONDS,
        "shares": {name: value / interval for name, value in seconds.items()},
        # With shorter steps than these the default interval is too short.
        "step_seconds_for_one_percent": {
            name: 100 * value / SAVE_EVERY for name, value in seconds.items()
        },
    }


SHARES = {
    "stall": "training stands still",
    "processor_time": "if the training of each rank did its eighth of the work of a save",
    "training_that_waits_for_the_write": "if training waited for the disk",
}


def figure(record: Json) -> Figure:
    """Draw the seconds of a save and a resume, and the share of the training time by interval."""
    saving, resuming, share = record["saving"], record["resuming"], record["share_of_training"]
    title = f"Checkpoints of {record['settings']['model']}, {saving['gigabytes']:.2f} GB"
    drawn, ((seconds,), (shares,)) = panels(2, 1, title, record)
    bars = {
        "training stands still": saving["stall_seconds"],
        "written and published": saving["write_seconds"],
        "processor time of a save": saving["processor_seconds"],
        "verified and loaded": resuming["load_seconds"],
    }
    medians = [bar["median"] for bar in bars.values()]
    whiskers = [
        [bar["median"] - bar["min"] for bar in bars.values()],
        [bar["max"] - bar["median"] for bar in bars.values()],
    ]
    seconds.barh(list(bars), medians, xerr=whiskers, color=COLORS[0], height=0.6, capsize=3)
    seconds.invert_yaxis()
    seconds.set_xlim(left=0)
    seconds.set_xlabel("seconds; median, whiskers to the fastest and the slowest pass")
    seconds.set_title(
        f"{record['settings']['processes']} process(es), local disk",
        loc="left",
        fontsize=9,
    )
    intervals = [share["save_every_steps"] * 2**n / 8 for n in range(7)]
    for color, (key, label) in zip(COLORS, SHARES.items(), strict=False):
        at_default = share["shares"][key] * share["save_every_steps"]
        shares.plot(
            intervals, [at_default / every for every in intervals], "o-", color=color, label=label
        )
    shares.axhline(0.01, color="#777777", linestyle=(0, (4, 3)), linewidth=1)
    shares.axvline(share["save_every_steps"], color="#777777", linestyle=(0, (1, 2)), linewidth=1)
    shares.set_xscale("log", base=2)
    shares.set_yscale("log")
    shares.set_xticks(intervals)
    shares.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    shares.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    shares.set_xlabel("steps between checkpoints; dotted: the default, dashed: 1%")
    shares.set_ylabel("share of the training time")
    shares.set_title(
        f"by arithmetic: one node of 8 GPUs, {1000 * share['step_seconds']:.0f} ms a step "
        "(appendix, Table S2)",
        loc="left",
        fontsize=9,
    )
    shares.legend()
    return drawn


def table(record: Json) -> Rows:
    """List the record in a few lines."""
    saving, resuming, share = record["saving"], record["resuming"], record["share_of_training"]
    parts = resuming["to_the_first_step"]
    return [
        ("model", f"{record['settings']['model']}, {record['settings']['parameters'] / 1e6:.1f}M"),
        (
            "CPU",
            f"{record['cpu']}, {record['settings']['processes']} process(es); load average before "
            f"{record['settings']['load_average']:.1f}",
        ),
        ("checkpoint", f"{saving['gigabytes']:.2f} GB"),
        ("training stands still", f"{shown(saving['stall_seconds'], '.3f')} s"),
        (
            "written",
            f"{shown(saving['write_seconds'], '.2f')} s, "
            f"{shown(saving['write_mb_per_second'], '.0f')} MB/s, beside the training",
        ),
        ("processor time", f"{shown(saving['processor_seconds'], '.2f')} s"),
        (
            "time lost here",
            f"{shown(saving['lost_seconds'], '.2f')} s, with training on the same cores",
        ),
        (
            "verified and loaded",
            f"{shown(resuming['load_seconds'], '.2f')} s, "
            f"{shown(resuming['load_mb_per_second'], '.0f')} MB/s",
        ),
        (
            "start to first step",
            " + ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in parts.items())
            + f" = {sum(parts.values()):.1f} s",
        ),
        (
            "share, one node",
            f"every {share['save_every_steps']:,} steps of {share['step_seconds']:.3f} s: "
            + ", ".join(f"{label} {share['shares'][key]:.2%}" for key, label in SHARES.items()),
        ),
    ]


def headlines(record: Json) -> list[tuple[str, str]]:
    """List what a save costs."""
    wanted = ("checkpoint", "training stands still", "written", "verified and loaded")
    return [(name, value) for name, value in table(record) if name in wanted]


def measure(settings: Settings, record: Record) -> None:
    faults = Faults()
    faults.attempt(lambda: preset(settings.model))
    deepspeed = faults.attempt(lambda: read_config(settings.deepspeed_config))
    faults.stop()
    assert deepspeed
    world = initialize_world()
    start_up = seconds_since_start()
    record.of_another_rank = world.rank != 0
    record["size"] = "toy" if settings.model.endswith("-tiny") else "full"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            # All ranks on this machine, in rank 0's directory.
            place = told_by_first(str(settings.directory or scratch))
            directory = Path(place) / "checkpoint-benchmark"
            try:
                _measure(settings, record, deepspeed, world, directory, start_up)
            finally:
                dist.barrier()
                if world.rank == 0:
                    shutil.rmtree(directory, ignore_errors=True)
    finally:
        shut_down()


def _measure(
    settings: Settings,
    record: Record,
    deepspeed: Json,
    world: World,
    directory: Path,
    start_up: float,
) -> None:
    load_average = os.getloadavg()[0]  # others on the machine make everything slower
    began = time.perf_counter()
    setup = Setup(preset(settings.model), deepspeed, "sdpa", "torch")
    batch = full_batch(setup.model, SEQUENCES, SEQUENCE_LENGTH)
    training = Trainer(setup, SEQUENCES, SEQUENCES * world.world_size, [batch], world)
    built = time.perf_counter()
    training.step()
    start = {"process_and_imports": start_up, "build": built - began}
    first_step = time.perf_counter() - built
    record["settings"] = {
        "model": settings.model,
        "parameters": training.parameters,
        "processes": world.world_size,
        "zero_stage": deepspeed.get("zero_optimization", {}).get("stage", 0),
        "precision": precision(deepspeed),
        "repeats": REPEATS,
        "load_average": load_average,
    }
    passes = Passes()
    for done in range(REPEATS):
        over = record.out_of_time(f"passes after {done}")
        if told_by_first(over):  # the clocks of ranks differ
            break
        measure_pass(training, directory / "checkpoints", passes)
        if world.rank == 0:
            record.content |= results(passes, start, first_step, world.world_size)
            record.save()


def results(passes: Passes, start: dict[str, float], first_step: float, processes: int) -> Json:
    """Compute what the record holds after some passes."""
    saving, loads = passes.saving(), passes.loads
    return {
        "saving": saving,
        "resuming": {
            "load_seconds": spread(loads),
            "load_mb_per_second": spread([1000 * saving["gigabytes"] / each for each in loads]),
            "to_the_first_step": start
            | {"verify_and_load": spread(loads)["median"], "first_step": first_step},
        },
        "share_of_training": share_of_training(saving, processes),
    }


MODE = Mode(Settings, measure, table, figure, headlines)
