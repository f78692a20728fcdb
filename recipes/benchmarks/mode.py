"""What a mode of the benchmark consists of, which modes there are, and how one is run."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from matplotlib.figure import Figure

from recipes.benchmarks.records import Json, Record, Rows
from recipes.common.errors import UserError
from recipes.common.files import why_no_directory
from recipes.common.locks import lock, unlock_if_alone
from recipes.common.settings import Minutes
from recipes.reporting.figures import in_style, write_png
from recipes.reporting.tables import aligned


class Listed(NamedTuple):
    """What the list of modes says about one."""

    measures: str
    weight: float
    """Share of the time that `all` has, beside the weights of the others."""


# A mode is a file of this folder with a `MODE` at its end, called as the mode with _ for -, and a
# line here. The most important first: in this order `all` runs them.
MODES = {
    "throughput": Listed("training: model x micro-batch x global batch, and a step's parts", 3.0),
    "attention": Listed("attention backends against each other and the hardware's floor", 1.5),
    "gemm": Listed("matrix products of a step, and other ways to compute each", 1.0),
    "peers": Listed("training beside Hugging Face's models and the published design", 2.0),
    "ablations": Listed("the training step with one choice changed at a time", 2.0),
    "glu": Listed("the three feed-forwards of appendix G (Figure S4)", 1.5),
    "sequence-length": Listed("training at 128 to 8,192 tokens (Figure S2)", 1.5),
    "checkpoint": Listed("saving and resuming, and their share of the training time", 0.7),
    "input": Listed("real tokens/s from shards to batches, tokenisation MB/s, per core", 0.5),
}


@dataclass(frozen=True)
class ModeSettings:
    """Options of every mode."""

    output: Path = Path("docs/results")
    """Directory of the record and the figure."""
    minutes: Minutes | None = None
    """Minutes after which nothing new is started; everything is measured unless given."""


@dataclass(frozen=True)
class DataSettings(ModeSettings):
    """Options of every mode that reads token shards."""

    data: Path | None = None
    """Prepared directory; random tokens in documents of real lengths unless given."""


Settings = TypeVar("Settings", bound=ModeSettings)


@dataclass(frozen=True)
class Mode(Generic[Settings]):
    """One mode. The functions that show a record get it as it is on disk."""

    settings: type[Settings]
    measure: Callable[[Settings, Record], None]
    """Fills the record."""
    table: Callable[[Json], Rows]
    """Gives the rows for the console, a header first where there are several columns."""
    figure: Callable[[Json], Figure]
    headlines: Callable[[Json], list[tuple[str, str]]]
    """Gives what was measured and the result, in the few lines that the table of all modes has."""
    by_device: bool = True
    """Whether the numbers are a GPU's, or a toy's on the CPU; else they are always the CPU's."""


def mode_of(name: str) -> Mode[Any]:
    """Import a mode.

    Raises:
        UserError: there is none of this name.
    """
    if name not in MODES:
        near = difflib.get_close_matches(name, [*MODES, "all"], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"mode {name}: must be one of {', '.join(MODES)} or all{hint}")
    mode: Mode[Any] = importlib.import_module(f"recipes.benchmarks.{name.replace('-', '_')}").MODE
    return mode


def run_mode(name: str, mode: Mode[Settings], settings: Settings) -> int:
    """Measure, write the record and the figure, print the table; 1 where something failed."""
    take_directory(settings.output)
    record = Record(name, settings.output, settings.minutes, by_device=mode.by_device)
    try:
        mode.measure(settings, record)
    except UserError:
        unlock_if_alone(settings.output)
        with suppress(OSError):  # unless something is in it
            settings.output.rmdir()
        raise
    if record.of_another_rank:
        return 0
    record["complete"] = True
    record.save()
    _show(mode, record)
    return 1 if record["failures"] else 0


def take_directory(output: Path) -> None:
    """Keep other measurements out of it: they would mix records, and slow each other down.

    Raises:
        UserError: it cannot be, or another process is measuring into it.
    """
    if refusal := why_no_directory(output):
        raise UserError(f"--output {output}: {refusal}")
    output.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") == "0":  # the one that writes, where a launcher started several
        lock(output, "measuring into it")


@in_style
def draw(mode: Mode[Any], content: Json, record: Path) -> Path:
    """Draw what a record's file holds, and return the picture beside it."""
    picture = record.with_suffix(".png")
    write_png(picture, mode.figure(content))
    return picture


def _show(mode: Mode[Settings], record: Record) -> None:
    """Draw the figure and print the table, what is missing from it, and where the files are."""
    picture = draw(mode, record.content, record.path)
    print("\n" + aligned(mode.table(record.content)))
    for kind in ("not_run", "failures"):
        for what, why in record[kind].items():
            print(f"{kind.replace('_', ' ')}: {what}: {why}")
    print(f"\n{record.path}\n{picture}")
