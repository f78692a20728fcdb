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


class TokenClassifier(Encoder):
    """With a linear head on every token."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, len(LABELS))


def trained(kind: type[nn.Module], *arguments: Any) -> nn.Module:
    """A model in evaluation mode, far from its initial weights."""
    initialize_parallel()
    model = kind(*arguments)
    randomise(model)
    return model.eval()


def make_export(place: Path, data: Path, config: ModelConfig, head: Head = "masked_lm") -> Path:
    """Write `place/export` of a random model with the tokenizer of prepared data."""
    initialize_parallel()
    facts: dict[str, Any] = {
        "tokenizer": {"fingerprint": open_tokenizer(data).fingerprint},
        "sequence_length": 128,
    }
    if head == "masked_lm":
        model = trained(RapidBertForMaskedLM, config)
    elif head == "classifier":
        model = trained(RapidBertForSequenceClassification, config, len(LABELS))
        facts["task"] = {"name": "moves", "labels": LABELS}
    elif head == "token_classifier":
        model = trained(TokenClassifier, config)
        facts["task"] = {"name": "moves", "labels": LABELS}
    elif head == "span_classifier":
        model = trained(RapidBertForQuestionAnswering, config)
    else:
        model = trained(Encoder, config)
    state = {name: tensor.detach() for name, tensor in model.named_parameters()}
    write_export(place / "export", state, config, data, facts, head)
    return place
