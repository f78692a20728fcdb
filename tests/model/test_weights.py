from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_bert import randomise
from safetensors.torch import load_file

from model.config import ModelConfig
from model.masked_lm import RapidBertForMaskedLM
from model.weights import from_public, gather_state, scatter_state, to_public

KINDS: dict[str, dict[str, Any]] = {
    "rapidbert": dict(),
    "two-matmul-glu": dict(feed_forward="glu"),
    "alibi-standard": dict(feed_forward="standard", ffn_dropout=0.0),
    "bert": dict(feed_forward="standard", positions="learned", ffn_dropout=0.0),
}
HIDDEN, HEADS, DIM = 12, 3, 4


def tiny(kind: str) -> ModelConfig:
    sizes: dict[str, Any] = dict(
        num_layers=2, hidden_size=HIDDEN, num_heads=HEADS, ffn_size=20, vocab_size=64
    )
    return ModelConfig(kind, **sizes, max_positions=8, **KINDS[kind])


def build(kind: str) -> RapidBertForMaskedLM:
    model = RapidBertForMaskedLM(tiny(kind))
    randomise(model)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind):
    model = build(kind)
    state = gather_state(model)
    assert state.keys() == dict(model.named_parameters()).keys()
    public = to_public(state, model.config)
    assert sum(t.numel() for t in public.values()) == model.config.parameters()
    back = from_public(public, model.config)
    assert back.keys() == state.keys()
    for name in state:
        assert torch.equal(back[name], state[name]), name

    other = RapidBertForMaskedLM(model.config)
    scatter_state(other, back)
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, state[name]), name


def test_qkv_rows_move_from_per_head_to_per_kind():
    model = build("rapidbert")
    # Number the rows by what they are: 100 * kind + 10 * head + dimension; q, k, v = 0, 1, 2.
    numbered = torch.empty(3 * HIDDEN)
    for head in range(HEADS):
        for kind in range(3):
            for dimension in range(DIM):
                numbered[(head * 3 + kind) * DIM + dimension] = 100 * kind + 10 * head + dimension
    state = gather_state(model)
    state["encoder.layers.1.self_attention.linear_qkv.bias"] = numbered
    public = to_public(state, model.config)["bert.encoder.layer.1.attention.self.Wqkv.bias"]
    assert public.tolist() == sorted(numbered.tolist())


def test_all_glus_share_one_layout_gate_before_value():
    state = gather_state(build("two-matmul-glu"))
    gate = state["encoder.layers.0.mlp.linear_gate.weight"]
    value = state["encoder.layers.0.mlp.linear_value.weight"]
    public = to_public(state, tiny("two-matmul-glu"))
    fused = from_public(public, tiny("rapidbert"))["encoder.layers.0.mlp.linear_in.weight"]
    assert torch.equal(fused, torch.cat([gate, value]))


def test_missing_tensors_are_all_named():
    config = tiny("bert")
    public = to_public(gather_state(build("bert")), config)
    del public["bert.encoder.layer.0.attention.self.key.weight"]
    del public["cls.predictions.decoder.bias"]
    with pytest.raises(ValueError) as error:
        from_public(public, config)
    assert "bert.encoder.layer.0.attention.self.key.weight" in str(error.value)
    assert "cls.predictions.decoder.bias" in str(error.value)
    assert str(error.value).count("missing") == 2


def test_qkv_that_cannot_be_regrouped_is_named_with_every_other_fault():
    config = tiny("bert")
    public = to_public(gather_state(build("bert")), config)
    # The sum of the rows is right; the parts are not.
    self_attention = "bert.encoder.layer.0.attention.self"
    public[f"{self_attention}.query.weight"] = torch.zeros(HIDDEN + 2, HIDDEN)
    public[f"{self_attention}.key.weight"] = torch.zeros(HIDDEN - 2, HIDDEN)
    del public["cls.predictions.decoder.bias"]
    with pytest.raises(ValueError) as error:
        from_public(public, config)
    assert str(error.value) == (
        f"weights do not fit the model: {self_attention}.query.weight is [14, 12], not 12 rows; "
        f"{self_attention}.key.weight is [10, 12], not 12 rows; "
        "missing cls.predictions.decoder.bias"
    )


def transformers_file(kind: str, directory: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model of `transformers` with a vocabulary of 60 pieces, and the file that it saves."""
    transformers = pytest.importorskip("transformers")
    model = getattr(transformers, kind)(
        transformers.BertConfig(
            vocab_size=60,
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            intermediate_size=20,
            max_position_embeddings=8,
        )
    )
    randomise(model)
    model.eval().save_pretrained(directory)
    return model, load_file(directory / "model.safetensors")


IDS = torch.tensor([2, 17, 59, 5, 3])
OF_60 = replace(tiny("bert"), vocab_size=60)


def old_norms(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the first files were, which TensorFlow's names shine through."""
    file = {
        x.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        : tensor for x, tensor in file.items()
    }  # fmt: skip
    assert sum("gamma" in x for x in file) == sum("beta" in x for x in file) == 6
    return file


def with_everything(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Both names of what has two, and what older versions saved beside the weights."""
    return file | {
        "cls.predictions.decoder.weight": file["bert.embeddings.word_embeddings.weight"].clone(),
        "cls.predictions.decoder.bias": file["cls.predictions.bias"].clone(),
        "bert.embeddings.position_ids": torch.arange(8)[None],
    }


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
@pytest.mark.parametrize("change", [dict, old_norms, with_everything])
def test_files_of_transformers_are_read(kind, change, tmp_path):
    """The masked-token head's bias under its own name, with pooler and next-sentence head or not,
    and a vocabulary that is not padded; logits as there.
    """
    theirs, file = transformers_file(kind, tmp_path)
    assert "cls.predictions.bias" in file and "cls.predictions.decoder.bias" not in file
    ours = RapidBertForMaskedLM(OF_60).eval()
    scatter_state(ours, from_public(change(file), OF_60))
    output = theirs(IDS[None])
    expected = output.logits if kind == "BertForMaskedLM" else output.prediction_logits
    logits = ours.logits(IDS, torch.tensor([0, 5], dtype=torch.int32), 5)
    torch.testing.assert_close(logits[:, :60], expected[0], rtol=0, atol=1e-5)
    assert (logits.softmax(-1)[:, 60:] == 0).all()


def test_a_file_without_heads_is_an_encoder(tmp_path):
    _, file = transformers_file("BertModel", tmp_path)
    assert "embeddings.word_embeddings.weight" in file
    state = from_public(file, OF_60, "none")
    assert all(name.startswith("encoder.") for name in state)
    with pytest.raises(ValueError, match=r"missing cls\.predictions\.decoder\.bias"):
        from_public(file, OF_60)


def test_two_names_that_differ_are_refused(tmp_path):
    _, file = transformers_file("BertForMaskedLM", tmp_path)
    for name, like in (
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
    ):
        for order in (1, -1):
            both = dict(list({**file, name: file[like] + 1}.items())[::order])
            with pytest.raises(ValueError, match="differ: to the model they are one tensor") as e:
                from_public(both, OF_60)
            assert name in str(e.value) and like in str(e.value)


def test_what_the_model_has_no_place_for_is_refused_not_dropped(tmp_path):
    """Layers beyond the last one, positions of a model that has none."""
    _, file = transformers_file("BertForMaskedLM", tmp_path)
    with pytest.raises(ValueError, match=r"no place for bert\.encoder\.layer\.1\.") as error:
        from_public(file, replace(OF_60, num_layers=1))
    assert "layer.1.output.dense.weight" in str(error.value)
    state = to_public(gather_state(build("rapidbert")), tiny("rapidbert"))
    state["bert.embeddings.position_embeddings.weight"] = torch.zeros(8, HIDDEN)
    with pytest.raises(ValueError, match="position_embeddings"):
        from_public(state, tiny("rapidbert"))


def test_scatter_names_missing_unknown_and_misshapen_tensors():
    model = build("rapidbert")
    before = gather_state(model)
    whole = dict(before)
    del whole["head.dense.bias"]
    whole["pooler.weight"] = torch.zeros(2)
    whole["head.decoder_bias"] = torch.zeros(63)
    whole["encoder.layers.0.mlp.linear_out.bias"] = torch.zeros(())
    with pytest.raises(ValueError) as error:
        scatter_state(model, whole)
    assert all(
        fault in str(error.value)
        for fault in (
            "missing head.dense.bias",
            "unknown pooler.weight",
            "head.decoder_bias is [63], the model has [64]",
            "encoder.layers.0.mlp.linear_out.bias is [], the model has [12]",
        )
    )
    after = gather_state(model)
    assert all(torch.equal(after[name], before[name]) for name in before), "a partial load"


def test_a_gathered_state_is_fp32_whatever_the_model_is():
    model = build("rapidbert").bfloat16()
    assert {tensor.dtype for tensor in gather_state(model).values()} == {torch.float32}


def test_a_gathered_state_does_not_follow_the_model():
    model = build("rapidbert")
    state = gather_state(model)
    with torch.no_grad():
        model.head.dense.bias.fill_(7.0)
    assert not (state["head.dense.bias"] == 7.0).any()
