from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_bert import randomise

from model.config import ModelConfig
from model.masked_lm import MaskedLM
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


def build(kind: str) -> MaskedLM:
    model = MaskedLM(tiny(kind))
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

    other = MaskedLM(model.config)
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
