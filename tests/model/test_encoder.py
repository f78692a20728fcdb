from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_bert import PaddedBatch, layer_norm, randomise
from torch import Tensor

from model.config import ModelConfig
from model.encoder import Encoder
from model.layer import megatron_config


def build(**changes) -> Encoder:
    sizes: dict[str, Any] = dict(
        num_layers=2, hidden_size=24, num_heads=3, ffn_size=32, vocab_size=64
    )
    config = ModelConfig("test", **(sizes | changes))
    encoder = Encoder(config, megatron_config(config, "reference"))
    randomise(encoder)
    return encoder.eval()


def embed(encoder: Encoder, ids: Tensor, types: Tensor | None, offsets: list[int]) -> Tensor:
    return encoder.embedding(ids, types, torch.tensor(offsets, dtype=torch.int32)).squeeze(1)


@pytest.mark.parametrize("positions", ["alibi", "learned"])
def test_embedding_is_the_sum_of_its_tables(positions):
    encoder = build(positions=positions, max_positions=4)
    tables = encoder.embedding
    ids, types = torch.tensor([5, 9, 9, 63, 1]), torch.tensor([0, 1, 1, 0, 1])
    total = tables.word_embeddings.weight[ids] + tables.token_type_embeddings.weight[types]
    if positions == "learned":
        assert tables.position_embeddings is not None
        total = total + tables.position_embeddings.weight[torch.tensor([0, 1, 2, 0, 1])]
    expected = layer_norm(total, tables.layernorm)
    torch.testing.assert_close(embed(encoder, ids, types, [0, 3, 5]), expected, rtol=0, atol=1e-5)


def test_alibi_has_no_position_table():
    assert build().embedding.position_embeddings is None
    assert "position" not in " ".join(name for name, _ in build().named_parameters())


def test_dropout_behind_the_embedding():
    encoder = build(hidden_dropout=0.1)
    ids = torch.arange(1000) % 64
    whole = embed(encoder, ids, None, [0, 1000])
    encoder.train()
    torch.manual_seed(0)
    dropped = embed(encoder, ids, None, [0, 1000])
    assert (whole != 0).all()
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.9)
    # 24,000 draws: five standard deviations are 0.0097.
    assert (~kept).float().mean().item() == pytest.approx(0.1, abs=0.0097)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_kept_rows_are_the_rows_picked_afterwards(num_layers):
    encoder = build(num_layers=num_layers)
    inputs = PaddedBatch.random([5, 3], 64).packed_inputs
    rows = torch.tensor([6, 0, 3])
    whole = encoder(**inputs)
    assert whole.shape == (8, 24)
    torch.testing.assert_close(encoder(**inputs, keep=rows), whole[rows], rtol=0, atol=2e-6)


def test_one_seed_gives_one_dropout():
    encoder = build(hidden_dropout=0.5).train()
    inputs = PaddedBatch.random([5, 3], 64).packed_inputs

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return encoder(**inputs)

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_evaluation_draws_nothing():
    encoder = build(hidden_dropout=0.5, attention_dropout=0.5, ffn_dropout=0.5)
    inputs = PaddedBatch.random([5, 3], 64).packed_inputs
    before = torch.get_rng_state()
    first = encoder(**inputs)
    assert torch.equal(encoder(**inputs), first)
    assert torch.equal(torch.get_rng_state(), before)
