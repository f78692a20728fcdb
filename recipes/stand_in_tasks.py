"""Eight small tasks in GLUE's folder layout, made from the text that comes with Python. Not GLUE.

    python recipes/stand_in_tasks.py --output data/demo-glue

They let the whole benchmark run offline in minutes, on what a small encoder can really learn from
that text: whether words are in their order, and how much two texts share. Files `STAND_IN` say what
they are, and everything that shows a score repeats it.

The text is the one that the demonstration pretrains on, dev documents included: the scores tell
that the recipe works, not how well an encoder knows English.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from recipes.common.entry import run
from recipes.common.numbers import whole
from recipes.common.settings import Seed, number_in, parse
from recipes.corpus.python_docs import python_documents
from recipes.tasks.classification_data import STAND_IN_FILE
from recipes.tasks.stand_ins import write_tasks

Examples = Annotated[int, number_in(whole(6, 1_000_000))]


@dataclass(frozen=True)
class Settings:
    """Stand-ins for GLUE's tasks, from the text of Python."""

    output: Path
    """Directory, gets a folder per task."""
    train: Examples = 4000
    """Training examples per task, at most."""
    dev: Examples = 400
    """Dev examples per task, at most."""
    seed: Seed = 0
    """Seed of the choice of documents and of the examples."""


def main(words: Sequence[str] | None = None) -> int:
    """Write the tasks and print how many examples they have; returns the exit code."""
    settings = parse(Settings, words, manual=__doc__)
    counts = write_tasks(
        settings.output,
        python_documents(),
        train=settings.train,
        dev=settings.dev,
        seed=settings.seed,
    )
    print("STAND-IN TASKS: not GLUE")
    for folder, files in counts.items():
        print(f"{folder:<6}" + ", ".join(f"{name} {count:,}" for name, count in files.items()))
    print(f"{settings.output}: {STAND_IN_FILE} in each folder says what its labels mean")
    return 0


if __name__ == "__main__":
    run(main)
