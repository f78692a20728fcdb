from __future__ import annotations

import pytest

from model.config import PRESETS, ModelConfig, preset, training_flops
from model.masked_lm import RapidBertForMaskedLM


@pytest.mark.parametrize("feed_forward", ["standard", "glu", "fused_glu"])
@pytest.mark.parametrize("positions", ["alibi", "learned"])
def test_parameters_counts_what_is_built(feed_forward, positions):
    config = ModelConfig(
        "test",
        num_layers=2,
        hidden_size=24,
        num_heads=3,
        ffn_size=40,
        feed_forward=feed_forward,
        positions=positions,
        vocab_size=100,
        max_positions=20,
        ffn_dropout=0.0,
    )
    assert config.parameters() == sum(p.numel() for p in RapidBertForMaskedLM(config).parameters())


@pytest.mark.parametrize(
    "name, millions",
    [
        ("bert-base", 110),
        ("rapidbert-base", 137),
        ("bert-large", 336),
        ("rapidbert-large", 435),
        ("rapidbert-xl", 1300),
    ],
)
def test_presets_have_the_published_sizes(name, millions):
    assert PRESETS[name].parameters() == pytest.approx(millions * 1e6, rel=0.01)


def test_the_vocabulary_is_padded_to_a_multiple_of_64():
    assert preset("rapidbert-base").padded_vocab_size == 30528
    assert preset("rapidbert-base", vocab_size=30528).padded_vocab_size == 30528
    assert preset("rapidbert-base", vocab_size=1).padded_vocab_size == 64


def test_training_flops_by_hand():
    config = preset(
        "rapidbert-tiny", num_layers=2, hidden_size=4, num_heads=2, ffn_size=6, vocab_size=64
    )
    # Two sequences of 3 and 5 tokens, 2 of which are to be predicted.
    qkv = 2 * 8 * (4 * 12)  # both layers, every token
    attention = 2 * (2 * 4) * (9 + 25)  # QK^T and PV, both layers
    behind = (8 + 2) * (4 * 4 + 4 * 12 + 6 * 4)  # projection and GLU: layer 1 all, layer 2 masked
    head = 2 * (4 * 4 + 4 * 64)
    expected = 3 * 2 * (qkv + attention + behind + head)
    assert training_flops(config, tokens=8, masked_tokens=2, token_pairs=34) == expected


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match=r"'rapidbert-bsae' \(did you mean rapidbert-base\?\)"):
        preset("rapidbert-bsae")
    with pytest.raises(ValueError, match="presets: rapidbert-tiny, rapidbert-base"):
        preset("t5")


def test_a_dictionary_and_back():
    config = preset("bert-large", hidden_dropout=0.25)
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_a_mistyped_setting_does_not_vanish():
    values = preset("rapidbert-base").to_dict() | {"hiden_dropout": 0.0, "layers": 3}
    with pytest.raises(ValueError, match=r"\['hiden_dropout', 'layers'\].*'hidden_dropout'"):
        ModelConfig.from_dict(values)


def test_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="hidden_size 768 is not a multiple of num_heads 10"):
        preset("rapidbert-base", num_heads=10)
    with pytest.raises(ValueError, match=r"num_layers .* got 0; ffn_size .* got -1"):
        preset("rapidbert-base", num_layers=0, ffn_size=-1)


def test_settings_of_another_type_are_named():
    """They had come as far as torch, which says less of them."""
    values = preset("rapidbert-tiny").to_dict()
    assert ModelConfig.from_dict(values) == preset("rapidbert-tiny")
    wrong = {"num_layers": "3", "hidden_size": 64.0, "feed_forward": "", "layernorm_eps": [1]}
    wrong |= {"type_vocab_size": -1, "hidden_dropout": float("nan"), "initializer_range": 10**400}
    with pytest.raises(ValueError) as error:
        ModelConfig.from_dict(values | wrong)
    for name, value in wrong.items():
        assert f"{name} is {value!r}" in str(error.value)
