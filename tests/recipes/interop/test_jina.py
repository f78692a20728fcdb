"""The JinaBERT-v2 layout against the published names, and there and back again."""

from __future__ import annotations

import json

import pytest
import torch
from export_scenarios import RAPIDBERT, make_export
from safetensors.torch import load_file

from recipes.convert_hf import main
from recipes.interop.jina_reference import _alibi

# The tensors of jina-embeddings-v2, of a layer and around the layers.
LAYER = """attention.self.query attention.self.key attention.self.value attention.output.dense
    attention.output.LayerNorm mlp.wo mlp.layernorm""".split()
AROUND = ["embeddings.LayerNorm", "cls.predictions.transform.dense"]
AROUND += ["cls.predictions.transform.LayerNorm"]


def names(prefix: str) -> set[str]:
    both = [f"encoder.layer.{n}.{name}" for n in range(2) for name in LAYER] + AROUND
    found = {f"{name}.{part}" for name in both for part in ("weight", "bias")}
    found |= {f"encoder.layer.{n}.mlp.gated_layers.weight" for n in range(2)}
    found |= {f"embeddings.{kind}_embeddings.weight" for kind in ("word", "token_type")}
    return {name if name.startswith("cls.") else prefix + name for name in found} | {
        "cls.predictions.bias"
    }


@pytest.fixture(scope="module")
def exported(finetune_place, tmp_path_factory):
    """Run, and its export, of a model with the masked-token head and of a bare encoder."""
    found = {}
    for head in ("masked_lm", "none"):
        folder = tmp_path_factory.mktemp(head)
        place = make_export(folder / "run", finetune_place / "data", RAPIDBERT, head)
        words = ["export", "--input", str(place), "--output", str(folder / "jina")]
        assert main([*words, "--format", "jina"]) == 0
        found[head] = place, folder / "jina"
    return found


def test_names_and_configuration_are_the_published_ones(exported):
    _, directory = exported["masked_lm"]
    assert load_file(directory / "model.safetensors").keys() == names("bert.")
    _, bare = exported["none"]
    assert load_file(bare / "model.safetensors").keys() == {
        name for name in names("") if not name.startswith("cls.")
    }
    config = json.loads((directory / "config.json").read_bytes())
    assert config["model_type"] == "bert" and config["position_embedding_type"] == "alibi"
    assert config["feed_forward_type"] == "geglu" and config["emb_pooler"] == "mean"
    assert config["_name_or_path"] == "jinaai/jina-bert-implementation"
    assert config["vocab_size"] == 320 and config["layer_norm_eps"] == 1e-12
    assert config["architectures"] == ["JinaBertForMaskedLM"]


def test_there_and_back_the_weights_are_the_same_to_the_byte(exported, tmp_path):
    for head, (place, directory) in exported.items():
        back = tmp_path / head / "export"
        assert main(["import", "--input", str(directory), "--output", str(back)]) == 0
        first, again = (load_file(p / "model.safetensors") for p in (place / "export", back))
        assert first.keys() == again.keys()
        assert all(torch.equal(first[name], again[name]) for name in first)
        once_more = tmp_path / head / "jina"
        words = ["export", "--input", str(back), "--output", str(once_more)]
        assert main([*words, "--format", "jina"]) == 0
        same = (path / "model.safetensors" for path in (directory, once_more))
        assert len({path.read_bytes() for path in same}) == 1


def test_the_checks_slopes_are_the_papers():
    """Twelve heads: those of eight, then every second one of sixteen."""
    slopes = -_alibi(12, 2)[0, :, 0, 1]
    expected = [2.0**-i for i in range(1, 9)] + [2.0 ** -(i / 2) for i in (1, 3, 5, 7)]
    torch.testing.assert_close(slopes, torch.tensor(expected))
    assert (_alibi(4, 5) == _alibi(4, 5).transpose(-1, -2)).all()
