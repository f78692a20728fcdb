"""Benchmarks at the smallest size, each in a world of its own."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from pretrain_scenarios import run_world, values

from recipes import benchmark


def run_benchmark(output: Path, mode: str, *words: str, **changed: Any) -> dict[str, Any]:
    """The record of `benchmark.py mode`, with names of the mode's module changed."""
    (status,) = values(run_world(1, _run, mode, [*words, "--output", str(output)], changed))
    (path,) = output.glob("*.json")
    record = json.loads(path.read_bytes())
    assert record["complete"] and path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert status == (1 if record["failures"] else 0)
    return record


def _run(mode: str, words: list[str], changed: dict[str, Any]) -> int:
    module = importlib.import_module(f"recipes.benchmarks.{mode.replace('-', '_')}")
    for name, value in changed.items():
        assert hasattr(module, name), name
        setattr(module, name, value)
    sys.argv = ["benchmark.py", mode, *words]
    return benchmark.main()
