"""All benchmarks within a time budget, the most important first, and one table at the end.

Each mode is a process of its own with a share of the time that is left; what it does not use goes
to those behind it. A mode that fails, or is still running well after its share, is ended and the
next one starts: its record holds what it had measured by then. Only wrong kernels change what
follows: then all other records go to a directory of their own, so that no speed of a wrong kernel
lies among the results.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from recipes.benchmarks.records import Rows, write_figure
from recipes.common import processes
from recipes.common.cli import MINUTES
from recipes.common.errors import UserError
from recipes.common.files import why_no_directory
from recipes.common.locks import lock
from recipes.reporting.tables import aligned

# In order of importance, with the weight by which they share the time.
ORDER = {
    "correctness": 1.5,
    "throughput": 3.0,
    "attention": 1.5,
    "peers": 2.0,
    "ablations": 2.0,
    "glu": 1.5,
    "sequence-length": 1.5,
    "checkpoint": 0.7,
    "input": 0.5,
}
# What the CPU is given where a mode's defaults are not a toy's.
TOY_WORDS = {
    "checkpoint": ["--model", "rapidbert-tiny", "--deepspeed-config", "ds_configs/tiny_cpu.json"]
}
GRACE_SECONDS = 45.0
"""A mode starts nothing new after its share; this long it may take to finish what it has begun."""
LEAST_SECONDS = 20.0
"""Less is not enough to import and to measure anything."""
UNVERIFIED = "unverified"
"""Where records go after kernels turned out to be wrong."""


@dataclass
class Ended:
    """How one mode ended."""

    mode: str
    status: str
    failed: bool
    seconds: float
    log: Path | None
    record: Path


def add_mode(modes: Any) -> None:
    parser = modes.add_parser("all", help="everything within a time budget", description=__doc__)
    parser.add_argument("--minutes", type=MINUTES, default=9.0, help="for all of them together")
    parser.add_argument("--data", type=Path, help="prepared directory, for the modes that take one")
    parser.add_argument(
        "--output", type=Path, default=Path("docs/results"), help="of records, figures and logs"
    )


def run_all(
    options: Namespace, modes: Mapping[str, Any], module_of: Callable[[str], ModuleType]
) -> int:
    """Run every mode, print the table; 1 where anything failed."""
    if refusal := why_no_directory(options.output):
        raise UserError(f"--output {options.output}: {refusal}")
    logs = options.output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    lock(
        logs, "measuring everything"
    )  # each mode, a process of its own, takes the directory itself
    ends = time.monotonic() + 60 * options.minutes
    waiting = [*ORDER, *(mode for mode in modes if mode not in ORDER)]
    ended: list[Ended] = []
    output = options.output
    for place, mode in enumerate(waiting):
        weights = [ORDER.get(name, 1.0) for name in waiting[place:]]
        left = ends - time.monotonic() - GRACE_SECONDS
        # What is important gets enough, even where nothing remains for what stands behind it.
        share = min(left, max(LEAST_SECONDS, left * weights[0] / sum(weights)))
        ended.append(run_one(mode, options, output, module_of(mode), share, ends))
        if mode == "correctness" and kernels_are_wrong(ended[-1].record):
            output = options.output / UNVERIFIED
            print(f"correctness: WRONG KERNELS; all other records go to {output}", flush=True)
    print("\n" + aligned(summary(ended, module_of)))
    failed = [end for end in ended if end.failed]
    for end in failed:
        print(f"{end.mode} failed ({end.status}); its log is {end.log}", file=sys.stderr)
    return 1 if failed else 0


def run_one(
    mode: str,
    options: Namespace,
    output: Path,
    module: ModuleType,
    share: float,
    ends: float,
) -> Ended:
    """One mode in a process of its own, for `share` seconds and a little more, not past `ends`."""
    name = f"{mode}_cpu" if module.BY_DEVICE and not torch.cuda.is_available() else mode
    record = output / f"{name}.json"
    if share < LEAST_SECONDS:
        return Ended(mode, "no time left", False, 0.0, None, record)
    log = output / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)  # what is there afterwards was measured now
    print(f"{mode}: up to {share:.0f} s, log in {log}", flush=True)
    words = [*command(mode), "--output", str(output), "--minutes", f"{share / 60:.3f}"]
    if not torch.cuda.is_available():
        words += TOY_WORDS.get(mode, [])
    if options.data is not None and "--data" in module_options(module):
        words += ["--data", str(options.data)]
    began = time.monotonic()
    log.unlink(missing_ok=True)
    # Compiling modes start workers, which are ended with them.
    status = processes.wait(
        processes.start(words, log), min(share + GRACE_SECONDS, ends - time.monotonic())
    )
    said = {0: "done", None: "ended at the time limit"}.get(status, f"exit status {status}")
    seconds = time.monotonic() - began
    if status != 0 and record.exists():
        try:  # a killed mode has not drawn what it measured
            write_figure(module.figure(json.loads(record.read_bytes())), record.with_suffix(".png"))
        except Exception as error:
            said += f"; no figure of what was measured ({type(error).__name__}: {error})"
    print(f"{mode}: {said} after {seconds:.0f} s", flush=True)
    return Ended(mode, said, status != 0, seconds, log, record)


def command(mode: str) -> list[str]:
    """What starts a mode."""
    return [sys.executable, str(Path(__file__).resolve().parents[1] / "benchmark.py"), mode]


def module_options(module: ModuleType) -> list[str]:
    """Option names of a mode."""
    from recipes.common.cli import ArgumentParser

    parser = ArgumentParser()
    module.add_options(parser)
    return list(parser._option_string_actions)


def kernels_are_wrong(record: Path) -> bool:
    """Whether the correctness record has an error above its limit."""
    try:
        return json.loads(record.read_bytes())["within_limits"] is False
    except (OSError, KeyError, ValueError):
        return False  # not measured: the table says so, and the mode has failed


def summary(ended: list[Ended], module_of: Callable[[str], ModuleType]) -> list[tuple[str, ...]]:
    """Mode, what, result; correctness first."""
    rows: Rows = [("benchmark", "what", "measured")]
    for end in ended:
        try:
            content = json.loads(end.record.read_bytes()) if end.log else None
            lines = module_of(end.mode).headlines(content) if content else []
        except (OSError, LookupError, ValueError) as error:
            lines = [("", f"no record ({type(error).__name__})")]
        if end.status != "done":
            lines = [*lines, ("", end.status)]
        rows += [(end.mode if number == 0 else "", *line) for number, line in enumerate(lines)]
    return rows
