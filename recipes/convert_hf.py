"""Brings models in from the rest of the world, and out to it.

    python recipes/convert_hf.py export --input runs/base --output base-gguf --format gguf
    python recipes/convert_hf.py import --input bert-base-uncased/ --output runs/bert/export

What was converted is checked against another implementation before it gets its name.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from recipes.common.entry import run
from recipes.common.errors import UserError
from recipes.common.settings import parse
from recipes.interop import exporting, importing
from recipes.training.export import write_export
from recipes.training.export_source import read_source

WORDS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    "export": (exporting.Settings, lambda settings: exporting.run(settings, read_source)),
    "import": (importing.Settings, lambda settings: importing.run(settings, write_export)),
}
"""What the first word may be: the settings behind it, and what is done with them."""


def main(words: Sequence[str] | None = None) -> int:
    """Do what the first word says; returns the exit code."""
    words = list(sys.argv[1:] if words is None else words)
    first = next((word for word in words if not word.startswith("-")), None)
    if first is None and {"-h", "--help"}.intersection(words):
        print(usage())
        return 0
    if first not in WORDS:
        what = f"{first!r} is unknown" if first else "the first word is missing"
        raise UserError(f"{what}: one of {', '.join(WORDS)}")
    words.remove(first)
    settings, do = WORDS[first]
    return do(parse(settings, words, program=f"convert_hf.py {first}"))


def usage() -> str:
    lines = ["usage: convert_hf.py WORD [--help] [options of the word]", "", str(__doc__), "words:"]
    firsts = {name: inspect.cleandoc(kind.__doc__ or "") for name, (kind, _) in WORDS.items()}
    return "\n".join([*lines, *(f"  {w:<8}{said.splitlines()[0]}" for w, said in firsts.items())])


if __name__ == "__main__":
    run(main)
