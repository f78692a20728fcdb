from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_bert import PaddedBatch, layer_norm, randomise
from torch import Tensor

from model import padded_attention
from model.config import ModelConfig, ModelOptions, preset
from model.encoder import RapidBert
from model.kernels.hashed_dropout import row_keys
from model.layer import PackedSequences


def build(recompute: bool = False, **changes) -> RapidBert:
    sizes: dict[str, Any] = dict(
        num_layers=2, hidden_size=24, num_heads=3, ffn_size=32, vocab_size=64
    )
    config = ModelConfig("test", **(sizes | changes))
    encoder = RapidBert(config, ModelOptions(recompute=recompute))
    randomise(encoder)
    return encoder.eval()


def embed(encoder: RapidBert, ids: Tensor, types: Tensor | None, offsets: list[int]) -> Tensor:
    packed_offsets = torch.tensor(offsets, dtype=torch.int32)
    keys = row_keys(torch.arange(len(offsets) - 1), packed_offsets, len(ids))
    return encoder.embedding(ids, types, PackedSequences(packed_offsets, 1000, keys)).squeeze(1)


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


def test_dropout_follows_the_sequences_wherever_they_stand():
    """The same sequence with the same key is dropped alike in another batch, at another place."""
    encoder = build(hidden_dropout=0.5, ffn_dropout=0.5).train()
    a, b, c = (torch.randint(64, (length,)) for length in (5, 3, 4))

    def run(ids: list[Tensor], keys: list[int]) -> list[Tensor]:
        lengths = [len(x) for x in ids]
        offsets = torch.tensor([0, *lengths]).cumsum(0).int()
        hidden = encoder(torch.cat(ids), offsets, 8, sequence_keys=torch.tensor(keys))
        return list(hidden.split(lengths))

    first, second = run([a, b], [11, -7]), run([c, b, a], [3, -7, 11])
    torch.testing.assert_close(first[0], second[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(first[1], second[1], rtol=0, atol=1e-6)
    assert not torch.allclose(run([a, b], [12, -7])[0], first[0])


def test_training_with_dropout_asks_for_its_keys():
    encoder = build(hidden_dropout=0.5).train()
    with pytest.raises(ValueError, match="needs sequence_keys"):
        encoder(**PaddedBatch.random([5, 3], 64).packed_inputs)


@pytest.mark.parametrize("attention_dropout", [0.0, 0.3])
def test_recomputed_layers_give_the_same_gradients(attention_dropout):
    changes = dict(hidden_dropout=0.3, ffn_dropout=0.3, attention_dropout=attention_dropout)
    inputs = PaddedBatch.random([5, 3], 64).packed_inputs
    gradients = []
    for recompute in (False, True):
        encoder = build(recompute, **changes).train()
        torch.manual_seed(0)
        encoder(**inputs, sequence_keys=torch.arange(2)).square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("recompute", [False, True])
def test_padding_is_planned_once_for_all_layers(recompute, monkeypatch):
    nothing_dropped = dict(hidden_dropout=0.0, ffn_dropout=0.0)
    encoder, planned = build(recompute, num_layers=3, **nothing_dropped).train(), []

    def spy(*arguments, **options):
        planned.append(padded_attention.plan_padding(*arguments, **options))
        return planned[-1]

    monkeypatch.setattr("model.attention.plan_padding", spy)
    encoder(**PaddedBatch.random([5, 3], 64).packed_inputs).sum().backward()
    assert len(planned) == 1


def test_evaluation_draws_nothing():
    encoder = build(hidden_dropout=0.5, attention_dropout=0.5, ffn_dropout=0.5)
    inputs = PaddedBatch.random([5, 3], 64).packed_inputs
    before = torch.get_rng_state()
    first = encoder(**inputs)
    assert torch.equal(encoder(**inputs), first)
    assert torch.equal(torch.get_rng_state(), before)


HOLES = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("positions", ["alibi", "learned"])
def test_a_padded_batch_is_the_packed_one_put_back(positions):
    """Also where padding stands in front or between, and where a sequence has no token."""
    encoder = build(positions=positions)
    ids, types = torch.randint(64, HOLES.shape), torch.randint(2, HOLES.shape)
    found = encoder(ids, token_type_ids=types, attention_mask=HOLES)
    real = HOLES.bool()
    offsets = torch.tensor([0, 5, 8, 8], dtype=torch.int32)
    expected = torch.zeros(3, 6, 24)
    expected[real] = encoder(ids[real], offsets, 6, types[real])
    assert torch.equal(found, expected)


def test_a_padded_batch_without_a_mask_is_all_tokens():
    encoder = build()
    ids = torch.randint(64, (2, 4))
    offsets = torch.tensor([0, 4, 8], dtype=torch.int32)
    assert torch.equal(encoder(ids).flatten(0, 1), encoder(ids.flatten(), offsets, 4))


def test_rows_are_not_picked_from_a_padded_batch():
    with pytest.raises(ValueError, match="keep names rows of a packed batch"):
        build()(torch.randint(64, (2, 4)), keep=torch.tensor([1]))


def test_a_padded_batch_is_dropped_like_the_packed_one():
    encoder = build(hidden_dropout=0.5, ffn_dropout=0.5).train()
    batch, keys = PaddedBatch.random([5, 3], 64), torch.tensor([11, -7])
    found = encoder(**batch.padded_inputs, sequence_keys=keys)
    expected = encoder(**batch.packed_inputs, sequence_keys=keys)
    assert torch.equal(batch.pack(found), expected)


@pytest.mark.parametrize("typed", [False, True])
def test_tables_get_the_same_gradients_from_either_kernels(typed):
    """Words, types and learned positions, with rows behind the last sequence."""
    small: dict[str, Any] = dict(
        num_layers=1, hidden_size=48, num_heads=3, ffn_size=64, vocab_size=128
    )
    config = preset("bert-base", **small, hidden_dropout=0.0, attention_dropout=0.0)
    ids = torch.tensor([5, 6, 5, 9, 5, 7, 8, 5, 6, 9, 0, 0, 0, 0])
    offsets = torch.tensor([0, 7, 10], dtype=torch.int32)
    types = torch.arange(14) % 2 if typed else None
    weights = torch.randn(10, 48)
    found = []
    for kernels in ("torch", "triton"):
        torch.manual_seed(0)
        model = RapidBert(config, ModelOptions(kernels=kernels)).train()
        (model(ids, offsets, 7, types)[:10] * weights).sum().backward()
        found.append({name: p.grad for name, p in model.embedding.named_parameters()})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 5
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
