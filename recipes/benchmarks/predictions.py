"""What was predicted for a device, to stand beside what is measured on it."""

from __future__ import annotations

import json

from recipes.common.json_content import Json
from recipes.common.places import RESULTS

PREDICTIONS = RESULTS / "predictions.json"
ALL_ELSE = "all else"
"""Class of a prediction that holds every class of the breakdown that has none of its own."""

Beside = list[tuple[str, str, str]]
"""What, measured, predicted."""


def beside(content: Json) -> Beside:
    """List what a record measured and what was predicted for its device; empty without either."""
    if content.get("benchmark") != "throughput" or not PREDICTIONS.is_file():
        return []
    known = json.loads(PREDICTIONS.read_text("utf-8"))["throughput"].get(content["device"], [])
    lines: Beside = []
    for row in content["rows"]:
        for each in known:
            if all(row[key] == each[key] for key in ("model", "micro_batch", "global_batch")):
                lines += _mfu(row, each) + _classes(content["breakdowns"].get(row["model"]), each)
    return lines


def _mfu(row: Json, predicted: Json) -> Beside:
    if row["mfu"] is None:
        return []
    low, middle, high = predicted["mfu"]
    name = f"{row['model']}:{row['micro_batch']}:{row['global_batch']}, MFU"
    return [(name, f"{row['mfu']:.1%}", f"{middle:.1%} ({low:.1%} to {high:.1%})")]


def _classes(parts: Json | None, predicted: Json) -> Beside:
    """Compare the classes of a step, each as the milliseconds of the predicted number of tokens."""
    if parts is None or parts["micro_batch"] != predicted["micro_batch"]:
        return []
    tokens = predicted["real_tokens_per_micro_batch"]
    scale = 1e3 * tokens / parts["real_tokens"]
    expected = predicted["milliseconds"]
    found = dict.fromkeys(expected, 0.0)
    for kind, seconds in parts["seconds"].items():
        found[kind if kind in expected else ALL_ELSE] += scale * seconds
    return [
        (f"{predicted['model']}, {kind}, {tokens:,} tokens", f"{ms:.1f} ms", f"{expected[kind]} ms")
        for kind, ms in found.items()
    ]
