"""Exports of random models to use on texts: a pretrained one, classifiers, a regression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetune_scenarios import BAD, FILLER, GOOD, sentence
from torch import nn

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelConfig
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from model.span_classifier import RapidBertForQuestionAnswering
from model.token_classifier import RapidBertForTokenClassification
from model.weights import Head
from recipes.corpus.tokenizer import open_tokenizer
from recipes.training.export import write_export

LABELS = ("bad", "so, so", "good")
TASKS: dict[str, dict[str, Any]] = {
    "single": {"name": "mood", "labels": LABELS, "text_columns": ("text",), "max_length": 64},
    "pair": {"name": "rte", "labels": ("yes", "no"), "text_columns": ("a", "b"), "max_length": 32},
    "answers": {"name": "squad", "kind": "question-answering", "labels": None, "max_length": 64},
    "several": {"name": "topics", "kind": "multi-label", "labels": LABELS, "max_length": 64},
    "tags": {
        **{"name": "names", "kind": "token-classification", "labels": ("O", "B-X", "I-X")},
        **{"max_length": 16, "unread_tag": "O"},
    },
    "score": {"name": "price", "labels": None, "text_columns": ("text",), "max_length": 64},
}


def make_models(folder: Path, data: Path) -> Path:
    """`pretrained`, and a model for each of TASKS, with weights large enough to tell texts apart.

    Args:
        data: prepared, with a tokenizer.
    """
    initialize_parallel()
    torch.manual_seed(3)
    tokenizer = open_tokenizer(data)
    config = ModelConfig(
        *("tiny", 2, 64, 2, 128), vocab_size=tokenizer.vocab_size, initializer_range=0.1
    )
    facts = {"tokenizer": {"fingerprint": tokenizer.fingerprint}, "sequence_length": 48}
    state = dict(RapidBertForMaskedLM(config).state_dict())
    write_export(folder / "pretrained" / "export", state, config, data, facts)
    for name, task in TASKS.items():
        outputs = len(task["labels"] or [0])
        model: nn.Module = RapidBertForSequenceClassification(config, outputs)
        head: Head = "classifier"
        if task.get("kind") == "question-answering":
            model, head = RapidBertForQuestionAnswering(config), "span_classifier"
        if task.get("kind") == "token-classification":
            model, head = RapidBertForTokenClassification(config, outputs), "token_classifier"
        state = {name: value.detach() for name, value in model.named_parameters()}
        described = {**facts, "task": task}
        write_export(folder / name / "export", state, config, data, described, head)
    return folder


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of many lengths, in no order."""
    rng = np.random.default_rng(seed)
    words = GOOD + BAD + FILLER
    return [
        " ".join(sentence(rng, str(rng.choice(words))) for _ in range(int(rng.integers(1, 5))))
        for _ in range(count)
    ]
