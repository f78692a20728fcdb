"""Questions to the planner, and records of throughput that they stand on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recipes.common.errors import Faults
from recipes.common.settings import parse
from recipes.planning.settings import Question, Settings, resolve


def question(tmp_path: Path, *words: str, config: dict[str, Any] | None = None) -> Question:
    """What a command line asks, with no record."""
    arguments = [] if "--model" in words else ["--model", "rapidbert-base"]
    if "--record" not in words:
        (tmp_path / "no-records").mkdir(exist_ok=True)
        arguments += ["--record", str(tmp_path / "no-records")]
    if config is not None:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config, indent=1))
        arguments += ["--deepspeed-config", str(path)]
    faults = Faults()
    return resolve(parse(Settings, [*arguments, *words], faults=faults), faults)


def write_record(path: Path, device: str) -> Path:
    """A made-up record: 0.1 s of update in each step, and sequences that cost less in a crowd."""

    def row(micro_batch: int, global_batch: int, seconds: float) -> dict[str, Any]:
        sizes = {"micro_batch": micro_batch, "global_batch": global_batch}
        counts = {"sequences_per_step": global_batch, "real_tokens_per_step": 100.0 * global_batch}
        times = {"median": seconds, "min": 0.9 * seconds, "max": 1.2 * seconds}
        return {"model": "rapidbert-base", **sizes, **counts, "step_seconds": times}

    rows = [row(512, 4096, 8.0), row(512, 512, 1.1), row(64, 64, 0.2)]
    settings = {"sequence_length": 128, "setups": {"rapidbert-base": {"recompute": False}}}
    content = {"device": device, "settings": settings, "rows": rows}
    content["largest_micro_batch"] = {"rapidbert-base": {"micro_batch": 2048}}
    path.write_text(json.dumps(content))
    return path
