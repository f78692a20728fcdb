"""Tiny models with weights under which every term matters, written as runs write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plain_bert import randomise
from torch import nn

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelConfig, preset
from model.encoder import RapidBert
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from model.span_classifier import RapidBertForQuestionAnswering
from model.weights import Head
from recipes.corpus.tokenizer import open_tokenizer
from recipes.training.export import write_export

# 300 pieces in 320 rows; a number of heads that is no power of two, for the slopes.
SIZES: dict[str, Any] = dict(
    num_layers=2, hidden_size=48, num_heads=3, ffn_size=64, vocab_size=300, hidden_dropout=0.1
)
RAPIDBERT = preset("rapidbert-tiny", **SIZES)
BERT = preset("bert-tiny", **SIZES, max_positions=40)
LABELS = ("down", "up", "sideways")


class Encoder(nn.Module):
    """The bare encoder, under the name that it has in every model."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.encoder = RapidBert(config)


def make_export(place: Path, data: Path, config: ModelConfig, head: Head = "masked_lm") -> Path:
    """Write `place/export` of a random model with the tokenizer of prepared data."""
    initialize_parallel()
    model: nn.Module
    facts: dict[str, Any] = {
        "tokenizer": {"fingerprint": open_tokenizer(data).fingerprint},
        "sequence_length": 128,
    }
    if head == "masked_lm":
        model = RapidBertForMaskedLM(config)
    elif head == "classifier":
        model = RapidBertForSequenceClassification(config, len(LABELS))
        facts["task"] = {"name": "moves", "labels": LABELS}
    elif head == "span_classifier":
        model = RapidBertForQuestionAnswering(config)
    else:
        model = Encoder(config)
    randomise(model)
    state = {name: tensor.detach() for name, tensor in model.named_parameters()}
    write_export(place / "export", state, config, data, facts, head)
    return place
