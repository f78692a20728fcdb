"""The scaling sweep (slurm/scaling_sweep.sh) as a table and a figure: Figure S1 of the paper.

The runs of a sweep are too short for anything but their speed: real tokens per second against the
global batch, a line for every number of devices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    NullFormatter,
)

from recipes.common.errors import UserError
from recipes.common.files import write_whole
from recipes.common.tables import aligned, shown
from recipes.common.tables import markdown as markdown_table
from recipes.reporting.figures import (
    add_legend,
    count_axis,
    from_zero,
    look,
    stacked_panels,
    write_png,
)
from recipes.reporting.html_page import (
    NOTHING,
    Markup,
    Section,
    document,
    drawing,
    joined,
    listed,
    paragraph,
    subheading,
)
from recipes.reporting.html_page import table as html_table
from recipes.reporting.output import make_directory
from recipes.reporting.runs import RecordedRun, load_runs

POINT = re.compile(r"gpus-(\d+)-batch-(\d+)")
"""Name of a run's directory, which the sweep gives it."""

NEEDED = (
    *("model.name", "world_size", "device", "requested_global_batch", "global_batch"),
    *("micro_batch", "accumulation"),
)
"""What the report says of each run's configuration."""

NOTE = (
    "Medians over the windows of each run, without the first, which warms up. Efficiency: real "
    "tokens/s per device against the fewest devices that ran the same global batch."
)

PAPER = (
    "The paper, of RapidBERT-Large on 8 to 200 A100s: with a constant global batch the throughput "
    "does not grow linearly with the number of GPUs, since 4,096 sequences on 64 GPUs leave 64 to "
    "each; with 65,536 it grows better. It prints no numbers."
)


@dataclass(frozen=True)
class Point:
    """One run of a sweep over numbers of devices."""

    devices: int
    batch: int
    """Sequences per global batch that were asked for: 200 devices do not divide 4,096."""
    run: RecordedRun

    @property
    def speed(self) -> float:
        """Real tokens per second of all devices together."""
        return self.run.median("throughput/tokens_per_sec", skip=1) or 0.0


@dataclass(frozen=True)
class Sweep:
    """The runs of one model on one kind of device, by devices and global batch."""

    model: str
    device: str
    points: list[Point]
    missing: list[str]
    """The reasons why other runs have left no speed."""

    def efficiency(self, point: Point) -> float:
        """Return the speed per device, as a share of that of the fewest devices on this batch."""
        same = [other for other in self.points if other.batch == point.batch]
        fewest = min(same, key=lambda other: other.devices)
        return (point.speed / point.devices) / (fewest.speed / fewest.devices)

    @property
    def unit(self) -> str:
        """What a device is called in tables and legends."""
        return "CPU process" if self.device == "cpu" else "GPU"


def is_sweep(directories: Sequence[Path]) -> bool:
    """Say whether these are runs of a sweep, and nothing else."""
    return all(POINT.fullmatch(directory.resolve().name) for directory in directories)


def load_sweeps(directories: Sequence[Path]) -> list[Sweep]:
    """Read the runs of sweeps: one sweep for each model and kind of device.

    Raises:
        UserError: no run has left a speed.
    """
    points: dict[tuple[str, str], list[Point]] = {}
    missing: list[str] = []
    for directory in directories:
        try:
            [run] = load_runs([directory], needed=NEEDED)
        except UserError as error:
            missing += error.faults
            continue
        config = run.config
        point = Point(config["world_size"], config["requested_global_batch"], run)
        if point.speed:
            points.setdefault((run.model, config["device"]), []).append(point)
        else:
            missing.append(f"{directory}: no window after the first has been logged")
    if not points:
        raise UserError(*missing)
    return [
        Sweep(*key, sorted(own, key=lambda p: (p.devices, p.batch)), missing)
        for key, own in sorted(points.items())
    ]


def table(sweep: Sweep) -> list[tuple[str, ...]]:
    """Return a header, then a row for each run."""
    batch = ("global batch", "micro-batch x accumulation")
    speed = ("real tokens/s", "per device", "MFU, 6N", "efficiency")
    return [("devices", *batch, *speed), *(_row(sweep, point) for point in sweep.points)]


def _row(sweep: Sweep, point: Point) -> tuple[str, ...]:
    config = point.run.config
    return (
        f"{point.devices} x {sweep.unit}",
        f"{config['global_batch']:,}",
        f"{config['micro_batch']} x {config['accumulation']}",
        f"{point.speed:,.0f}",
        f"{point.speed / point.devices:,.0f}",
        shown(point.run.median("throughput/device/mfu", skip=1), "{:.1%}"),
        f"{sweep.efficiency(point):.1%}",
    )


def figure(sweep: Sweep) -> Figure:
    """Draw real tokens per second, of all devices and of each, against the global batch."""
    drawn, (speed, each) = stacked_panels(2, f"Throughput scaling of {sweep.model}")
    sizes = sorted({point.devices for point in sweep.points})
    for index, devices in enumerate(sizes):
        own = [point for point in sweep.points if point.devices == devices]
        batches = [point.batch for point in own]
        seen = look(index)
        style: dict[str, Any] = {"color": seen.color, "marker": seen.marker, "markersize": 5}
        style["linestyle"] = seen.dashes
        label = f"{devices} x {sweep.unit}"
        speed.plot(batches, [point.speed for point in own], label=label, **style)
        each.plot(batches, [point.speed / devices for point in own], **style)
    each.set_xlabel("global batch, sequences")
    speed.set_ylabel(f"real tokens/s, all devices ({sweep.device})")
    each.set_ylabel("real tokens/s, each device")
    speed.set_yscale("log")
    from_zero(each)
    batches = sorted({point.batch for point in sweep.points})
    for axes in (speed, each):
        count_axis(axes, batches)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    speed.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    speed.yaxis.set_minor_formatter(NullFormatter())
    add_legend(speed, columns=6)
    return drawn


def markdown(sweep: Sweep, image: str) -> str:
    """Return the report of one sweep as Markdown."""
    config = sweep.points[0].run.config
    versions = ", ".join(f"{name} {is_}" for name, is_ in config.get("versions", {}).items())
    lines = [f"# Throughput scaling of {sweep.model}", ""]
    lines += [f"Device: {sweep.device}. {NOTE}", "", markdown_table(table(sweep))]
    lines += ["", f"![scaling]({image})", ""]
    lines += [f"git revision {config.get('git_revision')}; {versions}"]
    if sweep.missing:
        lines += ["", "Without a speed:", "", *(f"- {line}" for line in sweep.missing)]
    return "\n".join(lines) + "\n"


def part(sweep: Sweep, key: str) -> Markup:
    """Return figure and table of a sweep, with what the paper says of its own.

    Args:
        key: as for `drawing`.
    """
    heading = f"Figure S1: throughput scaling of {sweep.model}, device: {sweep.device}"
    return joined(
        subheading(heading),
        paragraph(PAPER),
        drawing(figure(sweep), NOTE, key),
        html_table(table(sweep)),
        listed([f"Without a speed: {line}" for line in sweep.missing]),
    )


def write_reports(sweeps: Sequence[Sweep], output: Path) -> list[Path]:
    """Write `scaling-<model>.md`, `.png` and `.html` for each sweep; return the first of each."""
    make_directory(output)
    written = []
    for sweep in sweeps:
        several = sum(other.model == sweep.model for other in sweeps) > 1
        device = re.sub(r"\W+", "-", f"-{sweep.device}") if several else ""
        path = output / f"scaling-{sweep.model}{device}.md"
        write_png(path.with_suffix(".png"), figure(sweep))
        write_whole(path, markdown(sweep, path.with_suffix(".png").name).encode())
        title = f"Throughput scaling of {sweep.model}"
        body = [Section("Scaling", part(sweep, "sweep"))]
        page = document(title, f"device: {sweep.device}", NOTHING, body)
        write_whole(path.with_suffix(".html"), page)
        written.append(path)
    return written


def write(directories: Sequence[Path], output: Path | None) -> str:
    """Write the reports of sweeps, beside the models' directories unless told where.

    Returns:
        Their tables and places for a console.

    Raises:
        UserError: as `load_sweeps`.
    """
    sweeps = load_sweeps(directories)
    reports = write_reports(sweeps, output or directories[0].resolve().parent.parent)
    tables = [(f"{sweep.model}, device: {sweep.device}", aligned(table(sweep))) for sweep in sweeps]
    parts = [f"{heading}\n{rows}\n" for heading, rows in tables]
    parts += [f"without a speed: {line}" for line in sweeps[0].missing]
    return "\n".join([*parts, *map(str, reports)])
