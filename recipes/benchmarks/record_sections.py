"""The benchmarks' records as parts of a report's page: figure, table, and the paper beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from recipes.benchmarks.presentation import where
from recipes.common.json_content import Json
from recipes.reporting.figures import in_style
from recipes.reporting.html_page import (
    Markup,
    Section,
    command,
    drawing,
    folded,
    joined,
    listed,
    paragraph,
    subheading,
    table,
)


class Shown(NamedTuple):
    """A benchmark of the page."""

    mode: str
    title: str
    paper: str = ""
    """What the paper says of its own."""


SHOWN = (
    Shown("throughput", "Training throughput on one device (Table S2)"),
    Shown("peers", "Peers: whole training steps in turns, on the same sequences"),
    Shown(
        "sequence-length",
        "Figure S2: throughput against the sequence length",
        "The paper, of RapidBERT-Base: as the sequence length doubles, the throughput halves. It "
        "prints no numbers.",
    ),
    Shown(
        "glu",
        "Figure S4: what gated feed-forwards cost beside the standard one",
        "The paper, forward pass on one GPU: both gated blocks are much slower than the standard "
        "one for small batches; below 128 sequences the fused one is the better of the two, "
        "beyond it slightly the worse. It prints no numbers.",
    ),
)


def record_sections(directory: Path) -> list[Section]:
    """Return a section of the records in a directory, those that are missing named.

    A record of a GPU goes before one of the CPU, which is of toy size.
    """
    parts = [_part(directory, shown) for shown in SHOWN]
    return [Section("Benchmarks", joined(*parts))]


def _part(directory: Path, shown: Shown) -> Markup:
    heading = joined(subheading(shown.title), paragraph(shown.paper) if shown.paper else Markup(""))
    names = (f"{shown.mode}.json", f"{shown.mode}_cpu.json")
    path = next((p for name in names if (p := directory / name).is_file()), None)
    if path is None:
        return joined(
            heading,
            paragraph(f"Not measured: no {names[0]} in {directory}. This makes it:"),
            command(f"python recipes/benchmark.py {shown.mode} --output {directory}"),
        )
    try:
        content: Json = json.loads(path.read_bytes())
        return joined(heading, _measured(path, content, shown))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        # A record of another version is anything; the page is made without it.
        said = f"{path}: cannot be shown ({type(error).__name__}: {error})"
        return joined(heading, paragraph(f"{said}; made by another version, or damaged."))


@in_style
def _measured(path: Path, content: Json, shown: Shown) -> Markup:
    # Not at the top of the file: it loads torch, for a page that may have no record.
    from recipes.benchmarks.mode import mode_of

    mode = mode_of(shown.mode)
    missing = {**content.get("not_run", {}), **content.get("failures", {})}
    lines = [f"{what}: {why}" for what, why in missing.items()]
    return joined(
        drawing(mode.figure(content), f"{where(content)}; from {path}.", shown.mode),
        folded("Table", table(_filled(mode.table(content)))),
        folded("What could not run", listed(lines)) if lines else Markup(""),
    )


def _filled(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return rows of equal length: a console does without the last cells."""
    width = max(len(row) for row in rows)
    return [(*row, *[""] * (width - len(row))) for row in rows]
