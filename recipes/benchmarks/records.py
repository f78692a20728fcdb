"""What every measurement shares: the clock, the spread, the environment, the record, the figure.

A record is on the disk after every point that was measured, so that a killed process loses nothing
but the point it was at. What could not run is in the record with its reason: `not_run` (a package
that is not installed, too little memory, no time left), or `failures` (everything else).
"""

from __future__ import annotations

import gc
import importlib.metadata
import io
import json
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.common.files import write_whole
from recipes.training.provenance import git_revision, versions

OTHER_PACKAGES = ("transformers", "flash-attn")
"""Measured beside ours, so their versions belong to the record."""
WARM_UP_CALLS = 3
MAX_CALLS = 1000

Result = TypeVar("Result")
Rows = list[tuple[str, ...]]
"""Cells of a table for the console, its header first."""
Json = dict[str, Any]
"""What a record's file holds; its types are known where it is written, not where it is read."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, slowest, fastest and the number of repeats."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repeats": len(values),
    }


def ratios(of: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """Spread of the ratios within each round of alternating measurements.

    What slows a machine down for a while slows both down, and leaves their ratio.
    """
    return spread([a / b for a, b in zip(of, to, strict=True)])


def rates(work: Callable[[], float], repeats: int) -> dict[str, float]:
    """Measure the rates of `work`, which returns how much it did: median, min and max per second.

    An untimed pass comes first, for caches and lazy imports.
    """
    work()
    measured = []
    for _ in range(repeats):
        begin = time.perf_counter()
        amount = work()
        measured.append(amount / (time.perf_counter() - begin))
    return spread(measured)


def synchronize(device: torch.device) -> None:
    """Wait for everything that was queued on `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Time of one of `calls` calls in a row: by CUDA events on a GPU, so without the host's share
    where the host is ahead of the device; by the clock on the CPU."""
    synchronize(device)
    if device.type == "cuda":
        began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
        ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
        began.record()
        for _ in range(calls):
            work()
        ended.record()
        ended.synchronize()
        milliseconds: float = began.elapsed_time(ended)
        return milliseconds / 1000 / calls
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    repeats: int,
    seconds: float = 0.0,
    go_on: Callable[[dict[str, list[float]]], bool] = lambda times: True,
) -> dict[str, list[float]]:
    """Seconds per call of each contender, taking turns: A B C A B C ...

    Args:
        repeats: rounds that count; the calls before them, which compile and fill caches, do not.
        seconds: how long one turn lasts at least, in calls in a row, where a call is too short for
            the clock.
        go_on: asked after every round, with the times so far.

    Returns:
        One time per round for each; round i of all of them ran within the same moments.
    """
    calls = {}
    for name, work in contenders.items():
        for _ in range(WARM_UP_CALLS):
            work()
        once = seconds_per_call(work, device)
        calls[name] = min(MAX_CALLS, max(1, round(seconds / max(once, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, work in contenders.items():
            times[name].append(seconds_per_call(work, device, calls[name]))
        if not go_on(times):
            break
    return times


def release_memory() -> None:
    """After what was measured is out of scope: give its device memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def cpu_name() -> str:
    """The processor's name as the system gives it, or "unknown"."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def device_name() -> str:
    """As the driver gives it, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def environment() -> dict[str, Any]:
    """What a rate depends on besides the settings: date, devices, versions and revision."""
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

    def __setitem__(self, key: str, value: Any) -> None:
        self.content[key] = value

    def save(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, (json.dumps(self.content, indent=1) + "\n").encode())

    def out_of_time(self, what: str) -> bool:
        """Whether the minutes are over, in which case `what` is noted as not run."""
        if time.monotonic() < self._ends:
            return False
        self["not_run"][what] = "no time left"
        return True

    def here(self, what: str, check: Callable[..., None], *arguments: Any) -> bool:
        """Whether `check(what, *arguments)` raises no `NotHere`; the reason is noted."""
        try:
            check(what, *arguments)
        except NotHere as reason:
            self["not_run"][what] = str(reason)
            return False
        return True

    def attempt(self, what: str, work: Callable[..., Result], *arguments: Any) -> Result | None:
        """What `work(*arguments)` returns, or None after noting why it did not end well.

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


def write_figure(figure: Figure, path: Path) -> None:
    """As PNG."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    write_whole(path, image.getvalue())


def panels(
    rows: int, columns: int, title: str, record: Mapping[str, Any], *, height: float = 3.2
) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure that says on what it was measured, and its axes [rows][columns]."""
    figure = Figure(figsize=(9.5, 1.2 + height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontweight="bold")
    figure.text(0.01, 1 - 0.32 / figure.get_figheight(), where(record), fontsize=9, va="top")
    for axes in grid.flat:
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, [list(row) for row in grid]


def where(record: Mapping[str, Any]) -> str:
    """Device and date in one line; a toy says that it is one."""
    device = record["device"]
    if device == "cpu":
        threads = record["threads"]
        device = f"CPU ({record['cpu']}, {threads} thread{'s' if threads > 1 else ''})"
    toy = ", TOY SIZE" if record.get("size") == "toy" else ""
    return f"{device}{toy}, {record['date'][:10]}"


def shown(values: Mapping[str, float], form: str = ",.1f", unit: float = 1.0) -> str:
    """ "median (min to max)" of a spread, divided by `unit`."""
    median, low, high = (format(values[key] / unit, form) for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"
