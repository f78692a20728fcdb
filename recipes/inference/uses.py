"""The kinds of tasks in use, by their names in `recipes.tasks.kinds`.

A new kind is a row here, with a file of its own that says how its scores become answers.
"""

from __future__ import annotations

from pathlib import Path

from recipes.common.errors import UserError
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
        UserError: no export there, a damaged one, or one of a model that answers nothing.
    """
    export = open_export(checkpoint)
    task = export.description.get("task")
    if not isinstance(task, dict):
        raise UserError(
            f"{checkpoint}: a pretrained model, which has learnt no task yet; "
            "recipes/finetune.py teaches it one, and its <task>-seed<k> goes here"
        )
    labels = task.get("labels")
    found = Finetuned(
        export=export,
        kind=task.get("kind", DEFAULT_KIND),
        task=task,
        labels=None if labels is None else tuple(labels),
        text_columns=tuple(task.get("text_columns") or ()),
        max_length=task.get("max_length") or DEFAULT_LENGTH,
    )
    if found.kind == "sentence-embedding":
        raise UserError(f"{checkpoint}: gives vectors, and no answers; recipes/embed.py uses it")
    if found.kind not in USES:
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
