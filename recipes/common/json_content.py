"""Content of JSON files: its type, and how it is written."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]
"""An object of a JSON file. `Any`, since the file says what stands behind a key, and not Python."""


def json_bytes(content: object) -> bytes:
    """Return what a file of JSON holds that people read, too."""
    return (json.dumps(content, indent=1) + "\n").encode()
