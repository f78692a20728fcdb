"""Plan a pretraining run: the micro-batch that fits, and what a number of GPUs makes of it.

    python recipes/plan.py --model rapidbert-large --gpu h200 --gpus 8 16 32 64 128 200
    python recipes/plan.py --model rapidbert-base --gpu a100-40 --global-batch 16384 --tokens 1e10
    python recipes/plan.py --simulate

Batches and memory are arithmetic (`planning/memory.py`). Times are predictions (`planning/
forecast.py`), with an interval: from a record of `benchmark.py throughput` where there is one of
this GPU, else from data sheets and what Table S2 of the paper says about the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from recipes.common.entry import run
from recipes.common.errors import Faults
from recipes.common.files import write_whole
from recipes.common.json_content import json_bytes
from recipes.common.settings import parse
from recipes.planning.forecast import forecast
from recipes.planning.settings import SIMULATED, Settings, resolve
from recipes.reporting.plan_page import page, record


def main(words: Sequence[str] | None = None) -> int:
    """Forecast the run on each number of GPUs and print the plan; returns the exit code."""
    faults = Faults()
    settings = parse(Settings, words, faults=faults, manual=__doc__)
    if settings.simulate:
        return simulate(settings, faults)
    question = resolve(settings, faults)
    counts = dict.fromkeys(settings.hardware.gpus)
    found = [faults.attempt(partial(forecast, question, count)) for count in counts]
    faults.stop()
    forecasts = [each for each in found if each is not None]
    print(page(question, forecasts))
    if settings.json:
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        write_whole(settings.json, json_bytes(record(question, forecasts)))
    return 0


def simulate(settings: Settings, faults: Faults) -> int:
    """Draw and tabulate the models on all numbers of GPUs; returns the exit code."""
    from recipes.reporting.plan_figure import write

    models = [settings.run.model] if settings.run.model else SIMULATED
    questions = [resolve(settings, faults, model) for model in models]
    print(write(questions, settings.output or Path("runs/plan")))
    return 0


if __name__ == "__main__":
    run(main)
