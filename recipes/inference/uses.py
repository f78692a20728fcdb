"""The kinds of tasks in use, by their names in `recipes.tasks.kinds`.

A new kind is a row here, with a file of its own that says how its scores become answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from recipes.common.errors import UserError
from recipes.common.json_content import Json
from recipes.common.numbers import LENGTHS
from recipes.inference.classes import CLASSIFICATION, MULTI_LABEL
from recipes.inference.finetuned import Finetuned
from recipes.inference.spans import QUESTION_ANSWERING
from recipes.inference.tags import TOKEN_CLASSIFICATION
from recipes.training.export import open_export

USES = {
    "classification": CLASSIFICATION,
    "multi-label": MULTI_LABEL,
    "token-classification": TOKEN_CLASSIFICATION,
    "question-answering": QUESTION_ANSWERING,
}
DEFAULT_KIND = "classification"  # of exports of older versions, as the length
DEFAULT_LENGTH = 256


def open_finetuned(checkpoint: Path) -> Finetuned:
    """Read the export of a finetuning.

    Raises:
        UserError: no export there, a damaged one, or one of a model that answers nothing; all that
            is wrong with what it says of its task.
    """
    export = open_export(checkpoint)
    task = export.description.get("task")
    if not isinstance(task, dict):
        raise UserError(
            f"{checkpoint}: a pretrained model, which has learnt no task yet; "
            "recipes/finetune.py teaches it one, and its <task>-seed<k> goes here"
        )
    if faults := list(_faults_of(task)):
        raise UserError(*(f"{checkpoint}: damaged export: config.json: {each}" for each in faults))
    labels = task.get("labels")
    found = Finetuned(
        export=export,
        kind=task.get("kind", DEFAULT_KIND),
        task=task,
        labels=None if labels is None else tuple(labels),
        text_columns=tuple(task.get("text_columns") or ()),
        max_length=task.get("max_length", DEFAULT_LENGTH),
    )
    if found.kind == "sentence-embedding":
        raise UserError(f"{checkpoint}: gives vectors, and no answers; recipes/embed.py uses it")
    if not isinstance(found.kind, str) or found.kind not in USES:
        known = ", ".join(USES)
        raise UserError(f"{checkpoint}: finetuned for {found.kind!r}; known are {known}")
    use = USES[found.kind]
    head, outputs = export.tensors.get(use.head), use.outputs(found)
    if head is None or head.shape[0] != outputs:
        there = "none" if head is None else f"{head.shape[0]}"
        raise UserError(
            f"{checkpoint}: config.json speaks of {outputs} outputs, and {use.head} has {there}"
        )
    return found


def _faults_of(task: Json) -> Iterator[str]:
    """What cannot be, of what an export says of its task."""
    labels, columns = task.get("labels"), task.get("text_columns")
    labels, columns = [] if labels is None else labels, [] if columns is None else columns
    length = task.get("max_length", DEFAULT_LENGTH)
    if not _are_names(labels) or len(set(labels)) < len(labels):
        yield f"labels are {labels!r}, not names of which each is there once"
    if not _are_names(columns):
        yield f"text_columns are {columns!r}, no names"
    if type(length) is not int or length not in LENGTHS:
        yield f"max_length is {length!r}: must be {LENGTHS}"


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
