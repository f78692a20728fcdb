"""Exports written here by hand, read back by each class, and what is said about damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_bert import PaddedBatch, randomise
from safetensors.torch import save_file
from torch import nn

from model import (
    ModelConfig,
    ModelOptions,
    RapidBert,
    RapidBertForMaskedLM,
    RapidBertForSequenceClassification,
)
from model.pretrained import read_export
from model.weights import Head, to_public

CONFIG = ModelConfig("tiny", num_layers=2, hidden_size=24, num_heads=3, ffn_size=32, vocab_size=64)


def write(directory: Path, model: nn.Module, head: Head) -> Path:
    """An export, as a run leaves it."""
    state = {name: tensor.detach() for name, tensor in model.named_parameters()}
    tensors = {name: x.contiguous() for name, x in to_public(state, CONFIG, head).items()}
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model": CONFIG.to_dict(), "step": 3}))
    return directory


@pytest.fixture
def masked_lm() -> RapidBertForMaskedLM:
    model = RapidBertForMaskedLM(CONFIG)
    randomise(model)
    return model.eval()


@pytest.fixture
def export(tmp_path: Path, masked_lm) -> Path:
    return write(tmp_path / "export", masked_lm, "masked_lm")


def test_a_masked_language_model_comes_back(export, masked_lm):
    inputs = PaddedBatch.random([5, 3], 64).packed_inputs
    loaded = RapidBertForMaskedLM.from_pretrained(str(export), ModelOptions("sdpa"))
    assert not loaded.training and loaded.options.attention == "sdpa"
    found, expected = loaded.logits(**inputs), masked_lm.logits(**inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_so_does_its_encoder(export, masked_lm):
    inputs = PaddedBatch.random([5, 3], 64).packed_inputs
    loaded = RapidBert.from_pretrained(export)
    assert torch.equal(loaded(**inputs), masked_lm.encoder(**inputs))


def test_and_a_classifier_with_as_many_outputs_as_it_had(tmp_path):
    model = RapidBertForSequenceClassification(CONFIG, 5)
    randomise(model)
    export = write(tmp_path / "export", model, "classifier")
    inputs = PaddedBatch.random([5, 3], 64).packed_inputs
    loaded = RapidBertForSequenceClassification.from_pretrained(export)
    assert torch.equal(loaded.logits(**inputs), model.eval().logits(**inputs))
    assert RapidBert.from_pretrained(export).config == CONFIG


def test_a_pretrained_model_is_no_classifier(export):
    with pytest.raises(ValueError) as error:
        RapidBertForSequenceClassification.from_pretrained(export)
    for name in ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight"):
        assert f"missing {name}" in str(error.value)
    assert str(error.value).startswith(f"{export}: ")


def test_missing_files_are_all_named(export, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_export(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: no config.json and no model.safetensors there (did you mean {export}?)"
    )
    (export / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json there$"):
        read_export(export)


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "config.json does not say which model the weights are"),
        ('{"model": 3}', "config.json: model is 3, not an object"),
        ('{"model": {}, "tokenizer": []}', r"config.json: tokenizer is \[\], not an object"),
        ('{"model": {}, "sequence_length": null}', "is None, not a whole number"),
        ('{"model": {"nam": "x"}}', r"unknown model settings \['nam'\]"),
    ],
)
def test_both_damaged_files_are_named(export, description: Any, said: str):
    (export / "config.json").write_text(description)
    (export / "model.safetensors").write_bytes(b"damaged!")
    with pytest.raises(ValueError, match=f"damaged export: .*{said}.*; model.safetensors: "):
        read_export(export)


def test_what_is_ours_may_stand_beside_what_others_read(export):
    ours = {"model": CONFIG.to_dict(), "step": 3}
    assert read_export(export).description == ours  # as older versions wrote it
    (export / "config.json").write_text(json.dumps({"model_type": "rapidbert", "rapidbert": ours}))
    found = read_export(export)
    assert found.config == CONFIG and found.description == ours


def test_weights_of_another_size_are_all_named(export):
    other = CONFIG.to_dict() | {"ffn_size": 40}
    (export / "config.json").write_text(json.dumps({"model": other}))
    with pytest.raises(ValueError) as error:
        RapidBertForMaskedLM.from_pretrained(export)
    for layer in (0, 1):
        name = f"encoder.layers.{layer}.mlp.linear_out.weight"
        assert f"{name} is [24, 32], the model has [24, 40]" in str(error.value)
