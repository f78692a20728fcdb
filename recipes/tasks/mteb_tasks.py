"""Tasks of MTEB on data that lies on this machine, for a model of sentence vectors.

    from pathlib import Path
    from recipes.tasks.mteb_tasks import evaluate_locally

    evaluate_locally(Path("runs/base/pairs/custom-seed17/export"),
                     {"STSBenchmark.v2": Path("data/stsbenchmark-sts")})

Where there is a network, `hf download --repo-type dataset mteb/stsbenchmark-sts --local-dir DIR`
brings a task's data; `mteb.get_task(NAME).metadata.dataset` names it. Where there is none, start
Python with `HF_HUB_OFFLINE=1`, so that nothing asks for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from recipes.common.errors import Faults, UserError


def evaluate_locally(export: Path, tasks: Mapping[str, Path]) -> dict[str, float]:
    """Run tasks of MTEB and return the main score of each, by its name.

    Args:
        export: of any model; its vectors are the means of its tokens' hidden states.
        tasks: the directory with the data of each task, by MTEB's name of it.

    Raises:
        UserError: all faults: a task that MTEB does not know, no such directory, no export.
    """
    import mteb  # seconds to import
    from sentence_transformers import SentenceTransformer

    faults = Faults()
    if not (export / "modules.json").is_file():
        faults.append(f"{export}: no modules.json there; name the export/ of a run")
    found = [faults.attempt(partial(_task, name, path)) for name, path in tasks.items()]
    faults.stop()
    # The code of the export is this repository's own.
    model = SentenceTransformer(str(export), trust_remote_code=True)
    results = mteb.evaluate(model, [task for task in found if task], cache=None)
    return {result.task_name: float(result.get_score()) for result in results.task_results}


def _task(name: str, directory: Path) -> Any:
    """A task of MTEB, which has no types, that reads its data from a directory."""
    import mteb

    if not directory.is_dir():
        raise UserError(f"{name}: {directory}: no such directory")
    try:
        task = mteb.get_task(name)
    except KeyError as error:
        raise UserError(f"{name}: {error.args[0]}") from None
    local = {"path": str(directory), "revision": "local"}
    task.metadata = task.metadata.model_copy(update={"dataset": local})
    return task
