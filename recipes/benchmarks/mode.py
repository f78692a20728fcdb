"""What a mode of the benchmark consists of, and which modes there are.

Imports nothing that takes long: `--help` reads this.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from recipes.common.errors import UserError
from recipes.common.json_content import Json
from recipes.common.settings import Minutes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recipes.benchmarks.records import Record, Rows


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
    "launches": Listed("kernels launched one by one, and as CUDA graphs: time and losses", 1.2),
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


@dataclass(frozen=True)
class AllSettings:
    """Measures everything within a time budget, the most important first, and prints one table.

    First comes a look at whether training works here: one process with NCCL (gloo on the CPU), 20
    steps of pretraining with a resume, and on a GPU the tests of the kernels. Where those do not
    pass, the records go to `unverified/` in the output.
    """

    output: Path = Path("docs/results")
    """Directory of the records, figures and logs."""
    minutes: Minutes = 9.0
    """Minutes for everything together."""
    data: Path | None = None
    """Prepared directory for the modes that take one; random tokens unless given."""
    archive: Path | None = None
    """File that gets everything that is written, .tar.gz; made anew after every mode."""


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
