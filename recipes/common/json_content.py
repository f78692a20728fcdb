"""Content of JSON files: its type, how it is written, and what can be had of a file of any kind."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
