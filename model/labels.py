"""The label that the losses of all models skip."""

from __future__ import annotations

IGNORED_LABEL = -100
"""Label of rows that do not count: they only fill a shape. torch's cross entropy skips it too."""
