"""Where the models drop, and how much: against independent ones that are given the same masks.

RapidBERT beside the plain padded one, BERT and its classifier beside `transformers`, each with the
rates that it has by itself, in training mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_bert import PaddedBatch, PlainRapidBERT, randomise
from torch import Tensor, nn

from model.classifier import RapidBertForSequenceClassification
from model.config import PRESETS, ModelConfig, ModelOptions, preset
from model.kernels.hashed_dropout import keep_mask, row_keys
from model.masked_lm import RapidBertForMaskedLM
from model.weights import Head, from_public, scatter_state, to_public

LENGTHS = [7, 1, 12, 4]
SIZES: dict[str, Any] = dict(
    num_layers=2, hidden_size=48, num_heads=3, ffn_size=64, vocab_size=128, max_positions=16
)
SEQUENCE_KEYS = torch.tensor([5, -(2**61), 7 * 2**40, 123456789])
SITES = {"embedding": 0, "pooler": 1, "attention": 0, "inner": 1, "output": 2}

KERNELS = {
    "torch": ModelOptions(),
    "triton": ModelOptions("triton", "triton"),
    "triton, recomputed": ModelOptions("triton", "triton", recompute=True),
}


@pytest.fixture
def batch() -> PaddedBatch:
    return PaddedBatch.random(LENGTHS, SIZES["vocab_size"])


class Masks:
    """The masks of our models, for the cells of a padded batch; `seen` are places and rates."""

    def __init__(self, batch: PaddedBatch):
        self.batch = batch
        self.keys = row_keys(SEQUENCE_KEYS, batch.offsets, len(batch.cells()))
        self.seen: list[tuple[int, str, float]] = []

    def __call__(self, x: Tensor, probability: float, place: tuple[int, str]) -> Tensor:
        self.seen.append((*place, probability))
        layer, name = place
        kept = keep_mask(self.keys, 4 * layer + SITES[name], x.shape[-1], probability)
        cells = torch.zeros(x.shape, dtype=torch.bool)
        for row, cell in enumerate(self.batch.cells()):
            cells[cell] = kept[row]
        return x * cells / (1 - probability)


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        error = (ours[name] - theirs[name]).norm()
        assert error <= 3e-5 * theirs[name].norm() + 1e-6, name


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of every parameter; one without a gradient fails."""
    grads = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        grads[name] = parameter.grad
    return grads


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("feed_forward", ["glu", "fused_glu"])
def test_rapidbert_drops_where_the_published_code_does(feed_forward, kernels, batch):
    if kernels != "torch" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off")
    config = preset("rapidbert-base", feed_forward=feed_forward, **SIZES)
    ours = RapidBertForMaskedLM(config, KERNELS[kernels])
    randomise(ours)
    plain = PlainRapidBERT(*(SIZES[name] for name in list(SIZES)[:5]))
    state = to_public(dict(ours.named_parameters()), config)
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    plain.load_state_dict(state)

    masks = Masks(batch)
    scores = plain(**batch.padded_inputs, drop=masks)
    expected = F.cross_entropy(scores.flatten(0, 1), batch.labels.flatten(), reduction="sum")
    expected.backward()
    loss = ours.train()(**batch.packed_inputs, **batch.packed_targets, sequence_keys=SEQUENCE_KEYS)
    loss.backward()
    assert len(masks.seen) == 1 + 2 * 2
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    close(to_public(gradients(ours), config), gradients(plain))


class MaskedDropout(nn.Module):
    """In the place of one of `transformers`' dropouts, with its rate."""

    def __init__(self, masks: Callable[..., Tensor], place: tuple[int, str], probability: float):
        super().__init__()
        self.masks, self.place, self.probability = masks, place, probability

    def forward(self, x: Tensor) -> Tensor:
        return self.masks(x, self.probability, self.place)


def hugging_face(kind: str, masks: Masks, **more: Any) -> nn.Module:
    """One of `transformers`' BERTs, in training mode, which drops what our masks say."""
    transformers = pytest.importorskip("transformers")
    model = getattr(transformers, kind)(
        transformers.BertConfig(
            vocab_size=SIZES["vocab_size"],
            hidden_size=SIZES["hidden_size"],
            num_hidden_layers=SIZES["num_layers"],
            num_attention_heads=SIZES["num_heads"],
            intermediate_size=SIZES["ffn_size"],
            max_position_embeddings=SIZES["max_positions"],
            attn_implementation="eager",
            **more,
        )
    )
    randomise(model)
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Dropout):
            continue
        path = name.split(".")
        layer = int(path[path.index("layer") + 1]) + 1 if "layer" in path else 0
        if name.endswith("attention.self.dropout"):
            continue  # not called: its rate is handed to a function
        kinds = {"embeddings": "embedding", "attention": "attention", "output": "output"}
        found = next((kinds[part] for part in path if part in kinds), "pooler")
        place = MaskedDropout(masks, (layer, found), module.p)
        model.get_submodule(".".join(path[:-1]))._modules[path[-1]] = place
    return model.train()


@pytest.fixture
def attention_masks(monkeypatch) -> list[float]:
    """Give both models one mask for the n-th layer's attention weights; rates as they are asked."""
    rates: list[float] = []

    def dropout(weights: Tensor, p: float, training: bool = True) -> Tensor:
        draw = torch.Generator().manual_seed(len(rates) % SIZES["num_layers"])
        rates.append(p)
        return weights * (torch.rand(weights.shape, generator=draw) >= p) / (1 - p)

    monkeypatch.setattr(F, "dropout", dropout)
    return rates


def bert() -> ModelConfig:
    return preset("bert-base", **SIZES)


def carry_over(theirs: nn.Module, ours: nn.Module, head: Head) -> None:
    state = theirs.state_dict()
    scatter_state(ours, from_public(state, bert(), head))


def of_transformers(grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under our public names."""
    if "cls.predictions.bias" in grads:
        grads["cls.predictions.decoder.bias"] = grads.pop("cls.predictions.bias")
    return grads


def test_bert_drops_where_transformers_does(batch, attention_masks):
    masks = Masks(batch)
    theirs, ours = hugging_face("BertForMaskedLM", masks), RapidBertForMaskedLM(bert()).train()
    carry_over(theirs, ours, "masked_lm")
    scores = theirs(**batch.padded_inputs).logits
    expected = F.cross_entropy(scores.flatten(0, 1), batch.labels.flatten(), reduction="sum")
    expected.backward()
    loss = ours(**batch.packed_inputs, **batch.packed_targets, sequence_keys=SEQUENCE_KEYS)
    loss.backward()
    assert len(masks.seen) == 1 + 2 * 2 and {rate for *_, rate in masks.seen} == {0.1}
    assert attention_masks == [0.1] * 4
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    close(to_public(gradients(ours), bert()), of_transformers(gradients(theirs)))


def test_the_classifier_drops_where_transformers_does(batch, attention_masks):
    masks = Masks(batch)

    def drop(x: Tensor, probability: float, place: tuple[int, str]) -> Tensor:
        if place[1] != "pooler":
            return masks(x, probability, place)
        masks.seen.append((*place, probability))
        kept = keep_mask(SEQUENCE_KEYS, SITES["pooler"], x.shape[-1], probability)
        return x * kept / (1 - probability)

    theirs = hugging_face("BertForSequenceClassification", drop, num_labels=3)  # type: ignore[arg-type]
    ours = RapidBertForSequenceClassification(bert(), 3).train()
    carry_over(theirs, ours, "classifier")
    labels = torch.tensor([2, 0, 1, 1])
    expected = F.cross_entropy(theirs(**batch.padded_inputs).logits, labels, reduction="sum")
    expected.backward()
    loss = ours(**batch.packed_inputs, labels=labels, sequence_keys=SEQUENCE_KEYS)
    loss.backward()
    assert masks.seen[-1] == (0, "pooler", 0.1) and len(masks.seen) == 2 + 2 * 2
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    found = to_public(gradients(ours), bert(), "classifier")
    close(found, gradients(theirs))


def test_published_rates():
    """0.1 throughout, but on attention weights in BERT only; toys drop nothing."""
    published = {n: c for n, c in PRESETS.items() if n.startswith(("rapidbert-", "bert-"))}
    assert len(published) == 7  # other tests add presets of their own
    for name, config in published.items():
        rate = 0.0 if name.endswith("tiny") else 0.1
        gated = name.startswith("rapidbert")
        assert config.hidden_dropout == rate, name
        assert config.ffn_dropout == (rate if gated else 0.0), name
        assert config.attention_dropout == (0.0 if gated else rate), name
