"""The record of a measurement: what was measured, with what and where, and what could not be.

A record is on the disk after every point that was measured, so that a killed process loses nothing
but the point it was at. What could not run is in the record with its reason: `not_run` (a package
that is not installed, too little memory, no time left), or `failures` (everything else).
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from recipes.benchmarks.timing import release_memory
from recipes.common.files import write_whole
from recipes.common.json_content import Json, json_bytes
from recipes.training.provenance import device_name, git_revision, sources_sha256, versions

OTHER_PACKAGES = ("transformers", "flash-attn")
"""Measured beside ours, so their versions belong to the record."""

Result = TypeVar("Result")
Rows = list[tuple[str, ...]]
"""Cells of a table for the console, its header first."""


def cpu_name() -> str:
    """Return the processor's name as the system gives it, or "unknown"."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def environment() -> Json:
    """Return what a rate depends on besides the settings: date, devices, versions and revision."""
    found = versions()
    for package in OTHER_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.is_available()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "device": device_name(),
        "device_memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if gpu else None,
        "versions": found,
        "git_revision": git_revision(),
        "sources_sha256": sources_sha256(),
    }


class Record:
    """One measurement's JSON, on the disk after every `save`.

    Args:
        benchmark: the mode.
        output: directory of the record and the figure.
        minutes: `out_of_time` says so after these.
        by_device: whether the numbers are a device's, at full size on a GPU and at toy size on the
            CPU. The toy's record has a name of its own, so that it replaces no GPU's.
    """

    def __init__(
        self, benchmark: str, output: Path, minutes: float | None = None, *, by_device: bool = True
    ):
        self._asked = False
        self._ends = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.gpu else "cpu")
        self.output = output
        self.of_another_rank = False  # of a benchmark of several processes, whose first one writes
        self.name = f"{benchmark}_cpu" if by_device and not self.gpu else benchmark
        self.content: Json = {"benchmark": benchmark, "complete": False}
        if by_device:
            self.content["size"] = "full" if self.gpu else "toy"
        self.content |= environment() | {"settings": {}, "not_run": {}, "failures": {}}

    @property
    def path(self) -> Path:
        return self.output / f"{self.name}.json"

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def __setitem__(self, key: str, value: object) -> None:
        self.content[key] = value

    def save(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json_bytes(self.content))

    def left(self) -> float:
        """Give the seconds until the minutes are over; infinite where none were given."""
        return max(0.0, self._ends - time.monotonic())

    def out_of_time(self, what: str) -> bool:
        """Say whether the minutes are over; if so, `what` is noted as not run.

        Not when it is asked for the first time: where imports took all of the time, one thing is
        measured nevertheless."""
        first, self._asked = not self._asked, True
        if first or time.monotonic() < self._ends:
            return False
        self["not_run"][what] = "no time left"
        return True

    def here(self, what: str, check: Callable[..., None], *arguments: Any) -> bool:
        """Say whether `check(what, *arguments)` raises no `NotHere`; a reason is noted."""
        try:
            check(what, *arguments)
        except NotHere as reason:
            self["not_run"][what] = str(reason)
            return False
        return True

    def attempt(self, what: str, work: Callable[..., Result], *arguments: Any) -> Result | None:
        """Return what `work(*arguments)` returns, or None after noting why it did not end well.

        What goes wrong with one contender must not cost the measurements of the others.
        """
        # Memory is given back behind the handlers: inside, the exception's frames hold tensors.
        try:
            return work(*arguments)
        except NotHere as reason:
            self["not_run"][what] = str(reason)
        except torch.cuda.OutOfMemoryError:
            self["not_run"][what] = "out of memory"
        except Exception as error:
            traceback.print_exc()
            self["failures"][what] = f"{type(error).__name__}: {error}"
        for key in ("not_run", "failures"):
            if what in self[key]:
                print(f"{what}: {self[key][what]}", file=sys.stderr, flush=True)
        release_memory()
        return None


class NotHere(Exception):
    """Something optional that this machine lacks, with the reason."""
