"""Content of JSON files: its type, how it is written, and what can be had of a file of any kind."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

Json = dict[str, Any]
"""An object of a JSON file. `Any`, since the file says what stands behind a key, and not Python."""


def json_bytes(content: object) -> bytes:
    """Return what a file of JSON holds that people read, too."""
    return (json.dumps(content, indent=1) + "\n").encode()


def object_in(path: Path) -> Json:
    """Return the object that a file holds; an empty one where it holds none, or is not there."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def at(record: object, dotted: str) -> Any:
    """Return the value under keys within keys, joined by dots; None where there is none."""
    for key in dotted.split("."):
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def finite(value: object) -> float | None:
    """Return a finite number, None for anything else that a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of more than 308 digits
        return None


def misfits(value: object, kind: Any, where: str) -> Iterator[str]:  # a kind is any annotation
    """Name what is not as a TypedDict says, whose fields are whole numbers of 0 or more, finite
    numbers, flags, texts, TypedDicts, and lists and dictionaries of these.

    Args:
        where: what the value is called.
    """
    origin, inside = get_origin(kind), get_args(kind)
    if is_typeddict(kind) and isinstance(value, dict):
        for key, of in get_type_hints(kind, include_extras=True).items():
            if get_origin(of) is NotRequired:
                continue
            if key in value:
                yield from misfits(value[key], of, f"{where}.{key}")
            else:
                yield f"{where}.{key} is missing"
    elif origin is list and isinstance(value, list):
        for number, each in enumerate(value):
            yield from misfits(each, inside[0], f"{where}[{number}]")
    elif origin is dict and isinstance(value, dict):
        for key, each in value.items():
            yield from misfits(each, inside[1], f"{where}.{key}")
    elif kind in (int, float):
        whole = type(value) is int and value >= 0
        if not (whole if kind is int else finite(value) is not None):
            yield f"{where} is {repr(value)[:60]}"
    elif not (kind in (str, bool) and isinstance(value, kind)):
        yield f"{where} is {repr(value)[:60]}"
