"""The kinds of tasks that a model is finetuned on, `--kind` by its name.

A new kind is a row here and a head in `model/`: a module whose `forward` takes what a batch has and
sums the losses of its examples, and its tensors' public names in `model/weights.py`. Which
columns it wants, what it reads and how it is measured is in a file of its own, such as
`sentence_embedding.py`; its name is one of those of `Settings.kind`. Everything else is shared: the
engine, the loop, the log, the result and the export.
"""

from __future__ import annotations

from recipes.tasks import (
    multi_label,
    question_answering,
    sentence_embedding,
    token_classification,
)
from recipes.tasks.classification_data import TaskData
from recipes.tasks.classifier import build_classifier
from recipes.tasks.evaluation import (
    chance_of_classes,
    classification_notes,
    encode,
    measure_classes,
)
from recipes.tasks.example_files import Examples
from recipes.tasks.finetune_settings import Checks, OwnData, Settings, text_checks
from recipes.tasks.own_data import label_scale, load_files
from recipes.tasks.work import Kind


def _columns(own: OwnData) -> Checks:
    one = "--label-column: name the column of the labels"
    return [*text_checks(own), (len(own.label_column) == 1, one)]


def _load_labelled(settings: Settings) -> TaskData[Examples]:
    own = settings.own_data
    return load_files(
        *own.files,
        text_columns=own.text_columns,
        label_column=own.label_column[0],
        regression=own.regression,
    )


def _class_metrics(data: TaskData[Examples]) -> tuple[str, ...]:
    if data.labels is None:
        return ("spearman", "pearson", "rmse")
    return ("accuracy", "f1") if len(data.labels) == 2 else ("accuracy",)


KINDS = {
    "classification": Kind(
        head="classifier",
        columns=_columns,
        load=_load_labelled,
        metrics=_class_metrics,
        build=build_classifier,
        encode=encode,
        notes=classification_notes,
        measure=measure_classes,
        chance=chance_of_classes,
        scale=label_scale,
    ),
    "multi-label": Kind(
        head="classifier",
        columns=multi_label.columns,
        load=multi_label.load,
        metrics=lambda _: multi_label.METRICS,
        build=build_classifier,
        encode=encode,
        notes=classification_notes,
        measure=multi_label.measure,
        facts=multi_label.facts,
    ),
    "token-classification": Kind(
        head="token_classifier",
        columns=token_classification.columns,
        load=token_classification.load,
        metrics=token_classification.metrics,
        build=token_classification.build,
        encode=token_classification.encode,
        notes=token_classification.notes,
        measure=token_classification.measure,
        facts=token_classification.facts,
        files=(token_classification.PREDICTIONS,),
    ),
    "question-answering": Kind(
        head="span_classifier",
        columns=question_answering.columns,
        load=question_answering.load,
        metrics=lambda _: ("f1", "exact_match"),
        build=question_answering.build,
        encode=question_answering.encode,
        notes=question_answering.notes,
        measure=question_answering.measure,
        facts=question_answering.facts,
        files=("predictions.json",),
    ),
    "sentence-embedding": Kind(
        head="none",
        columns=sentence_embedding.columns,
        load=sentence_embedding.load,
        metrics=sentence_embedding.metrics,
        build=sentence_embedding.build,
        encode=sentence_embedding.encode,
        notes=sentence_embedding.notes,
        measure=sentence_embedding.measure,
        why_not=sentence_embedding.why_not,
        batch_size=64,
    ),
}
