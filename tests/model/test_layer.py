from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_bert import layer_norm, paper_slopes, randomise

import model.layer
from model.attention import packed_attention
from model.config import PRESETS, ModelConfig, ModelOptions
from model.kernels.hashed_dropout import keep_mask, row_keys
from model.layer import PackedSequences, PostNormTransformerLayer, layer_spec
from model.megatron_config import megatron_config

OFFSETS = torch.tensor([0, 400, 401, 1000], dtype=torch.int32)


def build(kernels: str = "torch", **changes) -> PostNormTransformerLayer:
    sizes: dict[str, Any] = dict(num_layers=1, hidden_size=24, num_heads=3, ffn_size=32)
    config = ModelConfig("test", **(sizes | changes))
    spec = layer_spec(config)
    layer = spec.module(megatron_config(config, ModelOptions(kernels=kernels)), spec.submodules)
    randomise(layer)
    return layer


def run(layer: PostNormTransformerLayer, hidden: torch.Tensor, keep=None, offsets=OFFSETS) -> dict:
    """What goes into and out of the parts of the layer."""
    seen = {}

    def record(name):
        def hook(_, arguments, output):
            seen[name] = (arguments[0], output)

        return hook

    handles = [
        module.register_forward_hook(record(name)) for name, module in layer.named_children()
    ]
    keys = row_keys(torch.arange(3), offsets, len(hidden))
    packed = PackedSequences(offsets, 600, keys, keep)
    seen["layer"], again = layer(hidden, hidden, packed)
    assert torch.equal(again, seen["layer"])
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("feed_forward", ["standard", "glu", "fused_glu"])
def test_the_norms_stand_behind_the_residual_sums(feed_forward):
    layer = build(feed_forward=feed_forward, ffn_dropout=0.0).eval()
    hidden = torch.randn(1000, 1, 24)
    seen = run(layer, hidden)
    attended = torch.add(*seen["self_attention"][1])
    middle = layer_norm(hidden + attended, layer.post_attention_layernorm)
    torch.testing.assert_close(seen["mlp"][0], middle, rtol=0, atol=1e-5)
    fed_forward = torch.add(*seen["mlp"][1])
    output = layer_norm(middle + fed_forward, layer.post_mlp_layernorm)
    torch.testing.assert_close(seen["layer"], output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("feed_forward", ["standard", "glu", "fused_glu"])
def test_dropout_before_the_sums_except_behind_a_gated_feed_forward(feed_forward):
    layer = build(feed_forward=feed_forward, hidden_dropout=0.1, ffn_dropout=0.0).train()
    hidden = torch.randn(1000, 1, 24)
    seen = run(layer, hidden)
    keys = row_keys(torch.arange(3), OFFSETS, len(hidden))

    def dropped(part: str, site: int) -> torch.Tensor:
        kept = keep_mask(keys, site, 24, 0.1).unsqueeze(1)
        # The bias is dropped with the rest.
        return torch.where(kept, torch.add(*seen[part][1]) / 0.9, 0.0)

    middle = layer_norm(hidden + dropped("self_attention", 4), layer.post_attention_layernorm)
    torch.testing.assert_close(seen["mlp"][0], middle, rtol=0, atol=1e-5)
    added = dropped("mlp", 6) if feed_forward == "standard" else torch.add(*seen["mlp"][1])
    output = layer_norm(middle + added, layer.post_mlp_layernorm)
    torch.testing.assert_close(seen["layer"], output, rtol=0, atol=1e-5)
    straight = run(layer.eval(), hidden)["mlp"][0]
    assert not torch.allclose(seen["mlp"][0], straight)


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("feed_forward", ["standard", "glu", "fused_glu"])
def test_dropout_places_by_hand(feed_forward, kernels):
    """Both sums are of nothing but a bias of ones, so that what was dropped is a zero there.

    The norm of a row without zeros is zero; in a row with some, the zeros are below its mean.
    """
    if kernels != "torch" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off")
    ffn_dropout = 0.0 if feed_forward == "standard" else 0.1
    layer = build(kernels, feed_forward=feed_forward, ffn_dropout=ffn_dropout).train()
    weights = dict(layer.named_parameters())
    second = "mlp.linear_fc2" if feed_forward == "standard" else "mlp.linear_out"
    with torch.no_grad():
        for matrix, norm in (
            ("self_attention.linear_proj", "post_attention_layernorm"),
            (second, "post_mlp_layernorm"),
        ):
            weights[f"{matrix}.weight"].zero_()
            weights[f"{matrix}.bias"].fill_(1)
            weights[f"{norm}.weight"].fill_(1)
            weights[f"{norm}.bias"].zero_()
    rows, offsets = torch.zeros(64, 1, 24), OFFSETS.clamp(max=64)
    behind_attention = run(layer, rows, offsets=offsets)["mlp"][0]
    with torch.no_grad():
        weights["post_attention_layernorm.weight"].zero_()  # no residual for the second sum
    behind_feed_forward = run(layer, rows, offsets=offsets)["layer"]
    # 1,536 draws: five standard deviations are 0.038.
    assert (behind_attention < 0).float().mean().item() == pytest.approx(0.1, abs=0.038)
    if feed_forward == "standard":
        assert (behind_feed_forward < 0).float().mean().item() == pytest.approx(0.1, abs=0.038)
    else:
        assert not behind_feed_forward.any()


def test_attention_dropout_only_where_the_config_has_it():
    hidden = torch.randn(1000, 1, 24)
    for dropout in (0.0, 0.1):
        layer = build(hidden_dropout=0.0, ffn_dropout=0.0, attention_dropout=dropout).train()
        first, second = (run(layer, hidden)["layer"] for _ in range(2))
        assert torch.equal(first, second) == (dropout == 0.0)
        layer.eval()
        assert torch.equal(run(layer, hidden)["layer"], run(layer, hidden)["layer"])


def test_only_the_bert_presets_drop_attention_weights():
    for name, config in PRESETS.items():
        # Toy runs drop nothing: they see every sequence a few times at most.
        dropping = name in ("bert-base", "bert-large")
        assert config.attention_dropout == (0.1 if dropping else 0.0), name


def test_kept_rows_are_the_rows_picked_afterwards():
    layer = build().eval()
    hidden = torch.randn(1000, 1, 24)
    rows = torch.tensor([999, 3, 400, 4])
    kept = run(layer, hidden, keep=rows)
    assert kept["mlp"][0].shape == (4, 1, 24), "the feed-forward saw rows nobody asked for"
    expected = run(layer, hidden)["layer"][rows]
    torch.testing.assert_close(kept["layer"], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("positions", ["alibi", "learned"])
def test_slopes_stay_fp32_in_a_bf16_model(positions, monkeypatch):
    seen = []

    def spy(*arguments, slopes, **options):
        seen.append(slopes)
        return packed_attention(*arguments, slopes=slopes, **options)

    monkeypatch.setattr(model.layer, "packed_attention", spy)
    layer = build(positions=positions, num_heads=12).bfloat16().eval()
    run(layer, torch.randn(1000, 1, 24, dtype=torch.bfloat16))
    if positions == "learned":
        assert seen == [None]
    else:
        assert torch.equal(seen[0], torch.tensor(paper_slopes(12), dtype=torch.float32))
