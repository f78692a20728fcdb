"""What an export is made from: exports old and new, and any checkpoint of a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from export_scenarios import RAPIDBERT, make_export, trained
from safetensors.torch import load_file, save_file

from model.masked_lm import RapidBertForMaskedLM
from model.pretrained import read_description, read_export
from recipes.common.errors import UserError
from recipes.common.files import sha256
from recipes.convert_hf import main
from recipes.corpus.tokenizer import open_tokenizer
from recipes.training.checkpoints.manifest import FORMAT, key
from recipes.training.export_source import read_source
from recipes.training.progress import Progress

BIAS = "cls.predictions.decoder.bias"


@pytest.fixture
def run(finetune_place, tmp_path):
    """A run with one checkpoint, and the model that is in it."""
    data = tmp_path / "data"
    data.mkdir()
    tokenizer = open_tokenizer(finetune_place / "data")
    for name, content in tokenizer.files().items():
        (data / name).write_bytes(content)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000000003"
    checkpoint.mkdir(parents=True)
    model = trained(RapidBertForMaskedLM, RAPIDBERT)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    file = checkpoint / "tp00-dp00000.safetensors"
    save_file({key("weight", name, 0): x.flatten() for name, x in parameters.items()}, file)
    identity = {f"model.{name}": value for name, value in RAPIDBERT.to_dict().items()}
    identity |= {"tokenizer": tokenizer.fingerprint, "sequence_length": 128}
    manifest = {
        "format": FORMAT,
        "progress": asdict(Progress(3)),
        "facts": {"git_revision": "abc"},
        "identity": identity,
        "tensor_parallel_size": 1,
        "files": {
            file.name: {
                "bytes": file.stat().st_size,
                "sha256": sha256(file),
                "pieces": {name: [0, x.numel()] for name, x in parameters.items()},
            }
        },
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    record = {"run": {"data": str(data)}, "identity": identity, "total_steps": 9}
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    return checkpoint, model


def test_a_checkpoint_becomes_a_directory_of_transformers(run, tmp_path, capsys):
    checkpoint, model = run
    output = tmp_path / "hf"
    words = ["export", "--input", str(checkpoint), "--output", str(output), "--format", "hf"]
    assert main(words) == 0
    assert "outputs of RapidBertForMaskedLM for 10 texts: largest" in capsys.readouterr().out
    loaded = RapidBertForMaskedLM.from_pretrained(output)
    expected = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        if name != "head.decoder_bias":
            assert torch.equal(parameter, expected[name])
    bias = loaded.head.decoder_bias
    assert torch.equal(bias[:300], expected["head.decoder_bias"][:300])
    assert (bias[300:] == -1e4).all()
    description = read_description(output)
    assert description["progress"]["step"] == 3 and description["sequence_length"] == 128
    assert description["tokenizer"]["fingerprint"] == open_tokenizer(output).fingerprint


def test_what_keeps_a_checkpoint_from_being_exported_is_named(run, tmp_path):
    checkpoint, _ = run
    with pytest.raises(UserError) as error:
        read_source(tmp_path / "run")
    unfinished, way_out = error.value.faults
    assert "its newest checkpoint is of step 3 of 9" in unfinished
    assert way_out == f"its newest checkpoint can be exported: --input {checkpoint}"

    moved = shutil.move(tmp_path / "data", tmp_path / "gone")
    with pytest.raises(UserError, match="trained with the tokenizer .* not there any more"):
        read_source(checkpoint)
    shutil.move(moved, tmp_path / "data")
    (tmp_path / "run" / "config.json").unlink()  # the checkpoint itself knows its settings
    with pytest.raises(UserError, match="not there any more"):
        read_source(checkpoint)

    file = next(checkpoint.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4] + b"\x7f\x7f\x7f\x7f")
    with pytest.raises(UserError, match="checksum differs from the manifest's"):
        read_source(checkpoint)


def test_the_tokenizer_of_an_earlier_export_will_do(run, tmp_path):
    checkpoint, _ = run
    (tmp_path / "run" / "at-50" / "export").parent.mkdir()
    shutil.move(tmp_path / "data", tmp_path / "run" / "at-50" / "export")
    assert read_source(checkpoint).config == RAPIDBERT


def test_rows_that_pad_the_vocabulary_are_never_predicted_even_of_older_exports(
    finetune_place, tmp_path
):
    place = make_export(tmp_path, finetune_place / "data", RAPIDBERT)
    weights = place / "export" / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, BIAS: torch.zeros(320)}, weights)
    described = read_description(place / "export")
    (place / "export" / "config.json").write_text(json.dumps(described))  # as it was once
    source = read_source(place)
    assert (source.tensors[BIAS][:300] == 0).all() and (source.tensors[BIAS][300:] == -1e4).all()
    words = ["export", "--input", str(place), "--output", str(tmp_path / "hf")]
    assert main([*words, "--format", "hf"]) == 0
    assert (tmp_path / "hf" / "modeling_rapidbert.py").is_file()
    assert read_description(tmp_path / "hf") == described
    described["model"]["num_layers"] += 1
    (place / "export" / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="weights do not fit the model: missing"):
        read_source(place)


@pytest.mark.parametrize("head", ["classifier", "token_classifier", "span_classifier", "none"])
@pytest.mark.parametrize("config", ["rapidbert", "bert"])
def test_every_head_goes_along(finetune_place, tmp_path, head, config, capsys):
    from export_scenarios import BERT

    chosen = replace(BERT if config == "bert" else RAPIDBERT, num_layers=1)
    place = make_export(tmp_path, finetune_place / "data", chosen, head)
    assert read_source(place).head == head
    words = ["export", "--input", str(place), "--output", str(tmp_path / "hf")]
    assert main([*words, "--format", "hf"]) == 0
    first, again = (read_export(path).tensors for path in (place / "export", tmp_path / "hf"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
