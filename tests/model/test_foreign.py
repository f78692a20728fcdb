"""Directories of others, saved by `transformers` or written here in the published layouts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from plain_bert import PaddedBatch, PlainRapidBERT, randomise
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ModelConfig, preset
from model.foreign import expected_shapes, read_foreign
from model.masked_lm import RapidBertForMaskedLM
from model.weights import gather_state, scatter_state, to_public

SIZES: dict[str, Any] = dict(
    vocab_size=60,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
)
# Keys and values of the published `config.json` of mosaicml/mosaic-bert-base, the sizes aside.
MOSAICBERT = SIZES | {
    "_name_or_path": "mosaicml/mosaic-bert",
    "alibi_starting_size": 512,
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "auto_map": {
        "AutoConfig": "configuration_bert.BertConfig",
        "AutoModelForMaskedLM": "bert_layers.BertForMaskedLM",
    },
    "classifier_dropout": None,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "transformers_version": "4.26.0",
    "type_vocab_size": 2,
    "use_cache": False,
}
# The same of jinaai/jina-embeddings-v2-base-en.
JINABERT = MOSAICBERT | {
    "_name_or_path": "jinaai/jina-bert-implementation",
    "architectures": ["JinaBertForMaskedLM"],
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 8192,
    "position_embedding_type": "alibi",
    "feed_forward_type": "geglu",
    "emb_pooler": "mean",
    "vocab_size": 64,
}
del JINABERT["alibi_starting_size"]


def write(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file({name: x.clone() for name, x in tensors.items()}, directory / "model.safetensors")
    return directory


def loaded(directory: Path) -> RapidBertForMaskedLM:
    found = read_foreign(directory)
    model = RapidBertForMaskedLM(found.config)
    found.load_into(model, "masked_lm")
    return model.eval()


@pytest.fixture(scope="module")
def plain() -> PlainRapidBERT:
    model = PlainRapidBERT(layers=2, hidden=24, heads=3, ffn=40, vocab=64)
    randomise(model)
    return model.eval()


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A BERT with its masked-token head, as `transformers` saves it."""
    hf_bert(tmp_path / "bert", "BertForMaskedLM")
    return tmp_path / "bert"


def hf_bert(directory: Path, kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES | {"max_position_embeddings": 32} | changes)
    model = getattr(transformers, kind)(config)
    randomise(model)
    model.eval().save_pretrained(directory)
    return model


def rewrite(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def jina_names(public: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published layout with query, key and value apart."""
    apart = {}
    for name, tensor in public.items():
        if "Wqkv" in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                apart[name.replace("Wqkv", part)] = rows
        else:
            apart[name] = tensor
    return apart


def same_logits(model: RapidBertForMaskedLM, theirs: Callable[..., Tensor]) -> None:
    batch = PaddedBatch.random([9, 4, 1], SIZES["vocab_size"])
    expected = batch.pack(theirs(**batch.padded_inputs))
    found = model.logits(**batch.packed_inputs)[:, : expected.shape[1]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def as_safetensors(directory: Path) -> None:
    pass


def as_bin(directory: Path, **options: Any) -> None:
    file = directory / "model.safetensors"
    torch.save(load_file(file), directory / "pytorch_model.bin", **options)
    file.unlink()


def as_old_bin(directory: Path) -> None:
    as_bin(directory, _use_new_zipfile_serialization=False)


def in_parts(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, directory / file)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (directory / "model.safetensors.index.json").write_text(index)


@pytest.mark.parametrize("form", [as_safetensors, as_bin, as_old_bin, in_parts])
@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
def test_bert_of_transformers(kind, form, tmp_path):
    theirs = hf_bert(tmp_path, kind)
    form(tmp_path)
    found = read_foreign(tmp_path)
    assert (found.layout, found.has_masked_lm) == ("bert", True)
    assert found.config == ModelConfig(
        "bert-2x24",
        num_layers=2,
        hidden_size=24,
        num_heads=3,
        ffn_size=40,
        feed_forward="standard",
        positions="learned",
        vocab_size=60,
        max_positions=32,
        attention_dropout=0.1,
        ffn_dropout=0.0,
    )
    others = {name.rpartition(".")[0] for name in found.left_out}
    expected = {"bert.pooler.dense", "cls.seq_relationship"} if kind == "BertForPreTraining" else ()
    assert others == set(expected)

    def logits(**batch: Tensor) -> Tensor:
        output = theirs(**batch)
        return output.logits if kind == "BertForMaskedLM" else output.prediction_logits

    same_logits(loaded(tmp_path), logits)


def test_bert_as_its_first_files_had_it(tmp_path):
    """Norms called gamma and beta, numbers of positions, both names of what has two."""
    theirs = hf_bert(tmp_path, "BertForMaskedLM")
    file = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x
        for name, x in file.items()
    }
    old["cls.predictions.decoder.weight"] = file["bert.embeddings.word_embeddings.weight"]
    old["bert.embeddings.position_ids"] = torch.arange(32)[None]
    config = json.loads((tmp_path / "config.json").read_bytes())
    same_logits(loaded(write(tmp_path, config, old)), lambda **batch: theirs(**batch).logits)


def test_an_encoder_without_a_head(tmp_path):
    theirs = hf_bert(tmp_path, "BertModel")
    found = read_foreign(tmp_path)
    assert not found.has_masked_lm
    assert found.left_out == ("bert.pooler.dense.bias", "bert.pooler.dense.weight")
    words = found.tensors["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(words[:60], theirs.embeddings.word_embeddings.weight)
    assert "encoder.layers.1.mlp.linear_fc2.weight" in found.state("none")


def test_published_mosaicbert(plain, tmp_path):
    """30,522 pieces and 30,528 rows there; 60 and 64 here."""
    found = read_foreign(write(tmp_path, MOSAICBERT, plain.state_dict()))
    assert found.layout == "mosaicbert" and found.config.vocab_size == 60
    assert (found.config.hidden_dropout, found.config.ffn_dropout) == (0.1, 0.1)
    same_logits(loaded(tmp_path), plain)


def test_published_jinabert(plain, tmp_path):
    tensors = jina_names(plain.state_dict())
    found = read_foreign(write(tmp_path, JINABERT, tensors))
    assert found.layout == "jinabert" and found.config.vocab_size == 64
    same_logits(loaded(tmp_path), plain)
    # The published embedding models: the encoder alone, half precision, a pooler that is unused.
    alone = {
        name.removeprefix("bert."): tensor.half()
        for name, tensor in tensors.items()
        if name.startswith("bert.")
    }
    alone["pooler.dense.weight"] = torch.zeros(24, 24)
    found = read_foreign(write(tmp_path / "alone", JINABERT, alone))
    assert not found.has_masked_lm and found.left_out == ("bert.pooler.dense.weight",)
    name = "bert.encoder.layer.1.attention.self.Wqkv.weight"
    assert torch.equal(found.tensors[name], plain.state_dict()[name].half().float())


@pytest.mark.parametrize("new", [False, True])
def test_an_export_of_ours(new, plain, tmp_path):
    ours = RapidBertForMaskedLM(
        ModelConfig("odd", 2, 24, 3, 40, vocab_size=60, feed_forward="glu", hidden_dropout=0.3)
    )
    state = to_public(gather_state(ours), ours.config)
    described = {"model": ours.config.to_dict()}
    config = {"model_type": "rapidbert", "rapidbert": described} if new else described
    found = read_foreign(write(tmp_path, config, {n: x.contiguous() for n, x in state.items()}))
    assert found.layout == "rapidbert" and found.config == ours.config
    again = RapidBertForMaskedLM(found.config)
    scatter_state(again, found.state("masked_lm"))
    assert all(
        torch.equal(x, dict(ours.named_parameters())[n]) for n, x in again.named_parameters()
    )


@pytest.mark.parametrize("name", ["bert-base", "rapidbert-large"])
def test_the_shapes_are_those_of_the_model(name):
    """Told by the count of parameters, which has a test of its own, and names a preset again."""
    config = preset(name)
    shapes = expected_shapes(config, masked_lm=True)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == config.parameters()


def test_a_shape_that_is_a_presets_has_its_name(tmp_path):
    config = dict(
        model_type="bert",
        vocab_size=64,
        hidden_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=768,
    )
    tiny = preset("bert-tiny", vocab_size=64)
    tensors = {n: torch.zeros(s) for n, s in expected_shapes(tiny, masked_lm=True).items()}
    found = read_foreign(write(tmp_path, config, tensors)).config
    assert found.name == "bert-tiny" and found.hidden_dropout == 0.1


# Everything that is wrong is said at once, and nothing is executed.


def faults_of(directory: Path) -> list[str]:
    with pytest.raises(ValueError) as error:
        read_foreign(directory)
    lines = str(error.value).split("\n")
    assert all(line.startswith(f"{directory}: ") for line in lines)
    return [line.removeprefix(f"{directory}: ") for line in lines]


def test_no_directory_and_an_empty_one(tmp_path):
    assert faults_of(tmp_path / "nothing") == ["no such directory"]
    no_config, no_weights = faults_of(tmp_path)
    assert no_config.startswith("no config.json there")
    assert no_weights.startswith("no weights there: none of model.safetensors, ")


def test_a_run_instead_of_its_export(bert):
    run = bert.parent
    assert (
        f"did you mean {run / 'export'}?"
        in faults_of(shutil.copytree(bert, run / "export") and run)[0]
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu': this model computes 'gelu' alone"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder True: this model computes False alone"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4}"),
        ({"model_type": "roberta"}, "model_type 'roberta' is an architecture that is not read"),
        ({"num_attention_heads": 5}, "hidden_size 24 is not a multiple of num_heads 5"),
        ({"hidden_size": "24"}, "hidden_size is '24'; it must be a whole number"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
        ({"position_embedding_type": "alibi"}, "feed_forward_type None: this model computes"),
    ],
)
def test_what_no_model_of_ours_computes(changes, said, bert):
    rewrite(bert, **changes)
    assert any(said in fault for fault in faults_of(bert))


def test_several_faults_are_said_at_once(bert):
    rewrite(bert, hidden_act="gelu_new", is_decoder=True, num_hidden_layers=None)
    (bert / "model.safetensors").write_bytes(b"damaged")
    said = faults_of(bert)
    assert len(said) == 4
    for part in (
        "hidden_act",
        "is_decoder",
        "num_hidden_layers is missing",
        "safetensors: damaged",
    ):
        assert any(part in fault for fault in said), part


def test_jinabert_with_norms_on_queries(plain, tmp_path):
    config = JINABERT | {"auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--m.M"}}
    (said,) = faults_of(write(tmp_path / "told", config, jina_names(plain.state_dict())))
    assert "qk-post-norm" in said
    name = "bert.encoder.layer.0.attention.self.layer_norm_q.weight"
    tensors = {**jina_names(plain.state_dict()), name: torch.ones(24)}
    extra, norms = faults_of(write(tmp_path / "untold", JINABERT, tensors))
    assert extra == f"the model has no place for {name}" and "qk-post-norm" in norms


def test_missing_superfluous_misshapen_and_not_finite_tensors(bert):
    tensors = load_file(bert / "model.safetensors")
    for layer in (0, 1):
        del tensors[f"bert.encoder.layer.{layer}.attention.self.key.bias"]
    tensors["bert.encoder.layer.2.output.dense.bias"] = torch.zeros(24)
    tensors["lora.down"] = torch.zeros(2)
    tensors["bert.encoder.layer.0.output.dense.weight"] = torch.zeros(24, 41)
    tensors["bert.embeddings.LayerNorm.bias"][3] = torch.nan
    write(bert, json.loads((bert / "config.json").read_bytes()), tensors)
    assert faults_of(bert) == [
        "missing tensors: bert.encoder.layer.{0,1}.attention.self.key.bias",
        "the model has no place for bert.encoder.layer.2.output.dense.bias, lora.down",
        "bert.encoder.layer.0.output.dense.weight is [24, 41], config.json makes it [24, 40]",
        "model.safetensors: bert.embeddings.LayerNorm.bias of 40 tensors hold numbers that are not "
        "finite",
    ]


def test_a_vocabulary_that_does_not_match_the_embeddings(bert):
    rewrite(bert, vocab_size=61)
    words, bias = faults_of(bert)
    for name, said in (("bert.embeddings.word_embeddings.weight", words), ("decoder.bias", bias)):
        assert name in said and "has 60 rows, and config.json says vocab_size 61: 61 to 64" in said


class Code:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_executed(zipped, bert, tmp_path):
    tensors = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    torch.save(
        {**tensors, "x": Code(tmp_path / "executed")},
        bert / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    (said,) = faults_of(bert)
    assert said.startswith("pytorch_model.bin: holds more than tensors (posix.system)")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "junk", "empty", "list"])
def test_a_damaged_bin(damage, bert):
    as_bin(bert)
    path = bert / "pytorch_model.bin"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    broken = {"cut": whole[: len(whole) // 2], "flipped": whole, "junk": b"junk" * 9, "empty": b""}
    if damage == "list":
        torch.save([torch.zeros(2)], path)
    else:
        path.write_bytes(broken[damage])
    (said,) = faults_of(bert)
    kind = "not a mapping of names to tensors" if damage == "list" else "damaged: "
    assert said.startswith(f"pytorch_model.bin: {kind}")


def test_an_index_that_leads_astray(bert):
    in_parts(bert)
    index = bert / "model.safetensors.index.json"
    places = json.loads(index.read_bytes())["weight_map"]
    places |= {"a": "../elsewhere.safetensors", "b": "gone.safetensors"}
    index.write_text(json.dumps({"weight_map": places}))
    said = faults_of(bert)
    assert said[0].endswith("'../elsewhere.safetensors' is not the name of a file beside it")
    assert said[1] == "gone.safetensors: missing, model.safetensors.index.json names it"


def test_quantised_weights(bert):
    tensors = load_file(bert / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    tensors[name] = tensors[name].to(torch.int8)
    write(bert, json.loads((bert / "config.json").read_bytes()), tensors)
    assert f"model.safetensors: {name} holds int8; weights are read in fp32" in faults_of(bert)[0]
