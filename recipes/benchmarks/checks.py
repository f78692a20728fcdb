"""What comes before the modes: a look at whether training works on this machine at all.

Side by side, since nothing in it is timed. Each has a time limit of its own; what fails is in the
record with the last lines of its output, and the modes run nevertheless.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from recipes.benchmarks.limited_processes import (
    LATE,
    NOT_FINISHED,
    Ended,
    LimitedProcess,
    run_at_once,
)
from recipes.common.places import RECIPES, ROOT

KERNELS = "kernels"
"""Name of the tests of the kernels: where they do not pass, no speed is to be believed."""
GPU_TESTS = (
    "model",
    "recipes/benchmarks/test_timing.py",
    "recipes/corpus/test_mlm_batches.py",
    "recipes/training/test_throughput.py",
)
"""Where tests are that want a GPU. The others are not collected: one that lacks a package, as
`convert_hf.py`'s may on a machine without a network, would keep all from running."""
GRAPH_TESTS = "recipes/engine/test_cuda_graphs.py"
"""Those of `--cuda-graphs`, a check of their own: other speeds do not depend on them."""
COMPILED = ("rapidbert-base", "rapidbert-large", "bert-base")
"""Models whose kernels are compiled before the first mode's clock starts."""


class Check(NamedTuple):
    """A check: what it is called, what it says, and how it is started."""

    name: str
    says: str
    seconds: float
    """Limit."""
    words: Sequence[str]


def checks(gpu: bool, scratch: Path) -> list[Check]:
    """List the checks of this machine.

    Args:
        scratch: directory that they may write into.
    """

    def first_step(name: str, *words: str) -> list[str]:
        program = RECIPES / "benchmarks" / "first_steps.py"
        return [sys.executable, str(program), name, str(scratch / "-".join((name, *words))), *words]

    found = [
        Check("world", "one process with its collectives", 90, first_step("world")),
        Check(
            "pretraining",
            "20 steps through the command, with a resume",
            240,
            first_step("pretraining", "rapidbert-base" if gpu else "rapidbert-tiny"),
        ),
    ]
    if gpu:
        found.append(Check(KERNELS, "their tests on this GPU", 240, kernel_tests()))
        words = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(ROOT)]
        words.append(str(ROOT / "tests" / GRAPH_TESTS))
        found.append(Check("CUDA graphs", "a capture, and one that fails", 120, words))
        for model in COMPILED:
            words = first_step("compile", model)
            found.append(Check(f"compile {model}", "first steps, not timed", 180, words))
    return found


def kernel_tests() -> list[str]:
    """Give the command that tests the kernels: several processes, because they compile long.

    tests/conftest.py puts those at the sizes of training first."""
    processes = max(2, min(8, (os.cpu_count() or 2) // 2))
    words = ["-m", "pytest", "-m", "gpu", "-n", str(processes), "-q", "--rootdir", str(ROOT)]
    return [sys.executable, *words, *(str(ROOT / "tests" / place) for place in GPU_TESTS)]


def run_checks(
    listed: Sequence[Check], logs: Path, seconds: float, signals: Sequence[int]
) -> list[Ended]:
    """Run the checks at once, none for longer than `seconds`."""
    processes = [
        LimitedProcess(
            check.name,
            check.words,
            logs / f"{check.name.replace(' ', '-')}.log",
            min(check.seconds, seconds),
            check.says,
        )
        for check in listed
    ]
    return [_with_count(end) for end in run_at_once(processes, signals)]


def _with_count(end: Ended) -> Ended:
    """Say of the kernels' tests, where they took too long, what those found that had ended."""
    if end.name != KERNELS or end.status != LATE or end.log is None:
        return end
    # `pytest -q` prints a letter for each test that has ended, and from time to time a percentage.
    text = end.log.read_text("utf-8", errors="replace")
    letters = "".join(re.findall(r"^([.FEsxX]+) *(?:\[ *\d+%\])?$", text, re.MULTILINE))
    failed = sum(letters.count(letter) for letter in "FE")
    return replace(end, status=f"{NOT_FINISHED}: {letters.count('.')} passed, {failed} failed")
