"""What is known about an export, from the records that lie beside it: the facts of its model card.

Nothing here fails: a record that is missing or damaged only makes the card shorter.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from model.config import ModelConfig
from model.weights import Head
from recipes.common.files import sha256
from recipes.common.json_content import Json, finite, object_in

GLUE = ("mnli", "qnli", "qqp", "rte", "cola", "sst2", "mrpc", "stsb")


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card can say.

    Attributes:
        description: what `config.json` says about the origin.
        record: `config.json` of the run that pretrained the model; empty where there is none.
        log: records of `log.jsonl` up to this export, in their order.
        manifest: of the prepared data.
        glue: see `glue_scores`.
        parameters: numbers in the file of the weights; 0 where there is none.
    """

    config: ModelConfig
    head: Head
    description: Json
    record: Json
    log: list[Json]
    manifest: Json
    glue: dict[str, list[tuple[float, str]]]
    parameters: int

    @property
    def task(self) -> Json:
        """What the description says about the task; empty for a pretrained model."""
        task = self.description.get("task")
        return task if isinstance(task, dict) else {}

    @property
    def progress(self) -> Json:
        """How far the pretraining was."""
        progress = self.description.get("progress")
        return progress if isinstance(progress, dict) else {}


def gather(
    directory: Path,
    config: ModelConfig,
    head: Head,
    description: Json,
    data: Path,
    weights: Path,
) -> CardFacts:
    """Read what lies beside an export.

    Args:
        directory: of the export, as it will be called; a run's, or one within a run.
        data: where its tokenizer is from; the prepared data of a pretraining.
        weights: the file of the weights, which scores may have been computed with.
    """
    run = directory.parent
    if run.name.startswith("at-"):  # exported on the way
        run = run.parent
    # Another directory's neighbours, such as an import's, say nothing about it.
    own = directory.name == "export" and "imported_from" not in description
    record = object_in(run / "config.json") if own else {}
    log = _log(run / "log.jsonl") if own else []
    progress = description.get("progress") or {}
    step = progress.get("step", math.inf)
    return CardFacts(
        config=config,
        head=head,
        description=description,
        record=record if "identity" in record else {},
        log=[line for line in log if line["step"] <= step],
        manifest=object_in(data / "manifest.json"),
        glue=glue_scores(run / "glue", weights) if own else {},
        parameters=count_parameters(weights),
    )


def glue_scores(results: Path, weights: Path) -> dict[str, list[tuple[float, str]]]:
    """Scores and metrics by task of the finetunings that began from exactly these weights.

    RTE, MRPC and STS-B may have begun from an MNLI model that did. Scores of stand-in tasks, and
    those from random weights, are left out.
    """
    there = [(path, object_in(path)) for path in sorted(results.glob("*-seed*.json"))]
    real = [
        (path, result)
        for path, result in there
        if result.get("task") in GLUE
        and result.get("stand_in") is False
        and result.get("from_scratch") is False
        and finite(result.get("score")) is not None
    ]
    if not real:
        return {}
    starts = {sha256(weights)}
    for path, result in real:
        mnli = path.with_suffix("") / "export" / weights.name
        if result["task"] == "mnli" and result.get("checkpoint_sha256") in starts:
            starts |= {sha256(mnli)} if mnli.is_file() else set()
    found: dict[str, list[tuple[float, str]]] = {}
    for task in GLUE:
        for _, result in real:
            if result["task"] == task and result.get("checkpoint_sha256") in starts:
                scored = (float(result["score"]), str(result.get("score_metric")))
                found.setdefault(task, []).append(scored)
    return found


def count_parameters(weights: Path) -> int:
    """How many numbers a safetensors file holds."""
    if not weights.is_file():
        return 0
    with safe_open(weights, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  # no dict


def _log(path: Path) -> list[Json]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and finite(record.get("step")) is not None:
            records.append(record)
    return records
