"""Writes docs/options.md: every option of every command, from the dataclasses of the settings.

python docs/write_options.py
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recipes.common.settings import help_of, option  # noqa: E402  # needs the path set above

PAGE = ROOT / "docs" / "options.md"
HEADER = """# Options

Every option of every command, as `--help` shows them. Names take `_` and `-` alike. This page is
written by `python docs/write_options.py` from the settings in the code; a test holds that it is.
"""


def commands() -> Iterator[tuple[str, Any]]:
    """The commands and the benchmark's modes, as they are typed, with their settings."""
    for path in sorted((ROOT / "recipes").glob("*.py")):
        module = importlib.import_module(f"recipes.{path.stem}")
        if path.stem == "benchmark":
            yield "benchmark.py all", module.AllSettings
            for name in module.MODES:
                yield f"benchmark.py {name}", module.mode_of(name).settings
        elif path.stem == "convert_hf":
            for name, (settings, _) in module.WORDS.items():
                yield f"convert_hf.py {name}", settings
        elif hasattr(module, "Settings"):
            yield path.name, module.Settings


def rows(settings: Any) -> Iterator[str]:
    """Markdown lines for the fields of a dataclass, those of dataclasses inside under a heading."""
    types = get_type_hints(settings)
    said = help_of(settings)
    inside = []
    yield "| option | default | |"
    yield "|---|---|---|"
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(types[field.name]):
            inside.append(types[field.name])
            continue
        text = " ".join(said.get(field.name, "").split()).replace("|", "\\|")
        yield f"| `{option(field.name)}` | {_default(field)} | {text} |"
    for group in inside:
        yield f"\n{inspect.cleandoc(group.__doc__ or '').splitlines()[0]}\n"
        yield from rows(group)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return ""  # the machine decides; the sentence says how
    if field.default is dataclasses.MISSING:
        return "needed"
    value = field.default
    if value is None or value is False or value == ():
        return ""
    shown = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return f"`{shown}`"


def page() -> str:
    """The whole page."""
    parts = [HEADER]
    for command, settings in commands():
        first = " ".join(inspect.cleandoc(settings.__doc__ or "").partition("\n\n")[0].split())
        parts.append(f"## `{command}`\n\n{first}\n\n" + "\n".join(rows(settings)) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(PAGE)
