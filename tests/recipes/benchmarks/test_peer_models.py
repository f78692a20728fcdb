"""The published design, written anew, against our model; Hugging Face's sizes."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from model.config import PRESETS
from model.kernels.hashed_dropout import keep_mask, row_keys
from model.labels import IGNORED_LABEL
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from model.weights import gather_state, to_public
from recipes.benchmarks.peer_models import PaddedRapidBERT, peers
from recipes.benchmarks.peers import pad_batch

CONFIG = replace(
    PRESETS["rapidbert-base"],
    num_layers=2,
    hidden_size=48,
    num_heads=3,
    ffn_size=64,
    vocab_size=90,
    hidden_dropout=0.0,
    ffn_dropout=0.0,
)
LENGTHS = (7, 1, 12, 4)


@pytest.fixture(scope="module", autouse=True)
def single_process():
    initialize_parallel()
    yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def randomised(model: torch.nn.Module) -> None:
    """Weights under which every term matters (initial biases are zero, norms the identity)."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


def test_padded_batches_hold_the_same_sequences_and_labels(batch):
    padded = pad_batch(batch)
    assert {tensor.shape for tensor in padded.values()} == {(4, 16)}
    start = 0
    labels = dict(zip(batch.masked_positions.tolist(), batch.labels.tolist(), strict=True))
    labels[0] = int(batch.labels[0])  # the filling rows point there too
    for sequence, length in enumerate(LENGTHS):
        row = {name: tensor[sequence].tolist() for name, tensor in padded.items()}
        assert row["input_ids"][:length] == batch.input_ids[start : start + length].tolist()
        assert row["attention_mask"] == [1] * length + [0] * (16 - length)
        expected = [labels.get(start + place, IGNORED_LABEL) for place in range(length)]
        assert row["labels"] == expected + [IGNORED_LABEL] * (16 - length)
        start += length


def test_the_padded_design_computes_the_same_function(batch):
    """Loss and every gradient, with the weights carried over under their public names."""
    torch.manual_seed(0)
    ours, padded = RapidBertForMaskedLM(CONFIG), PaddedRapidBERT(CONFIG)
    randomised(ours)
    weights = to_public(gather_state(ours), CONFIG)
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    padded.load_state_dict(weights)
    loss = ours(
        batch.input_ids,
        batch.sequence_offsets,
        batch.max_sequence_length,
        batch.masked_positions,
        batch.labels,
    )
    other = padded(**pad_batch(batch))
    torch.testing.assert_close(loss / batch.masked_tokens, other)
    (loss / batch.masked_tokens).backward()
    other.backward()
    state = gather_state(ours, lambda _, parameter: parameter.grad)
    gradients = to_public(state, CONFIG)
    compared = dict(padded.named_parameters())
    assert compared.keys() <= gradients.keys() | {"cls.predictions.decoder.weight"}
    for name, parameter in compared.items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_padded_design_drops_in_the_same_places(batch, monkeypatch):
    """Its dropouts, in the order of their calls, with the masks that ours hashes for the places."""
    config = replace(CONFIG, hidden_dropout=0.1, ffn_dropout=0.1)
    ours, padded = RapidBertForMaskedLM(config).train(), PaddedRapidBERT(config).train()
    randomised(ours)
    weights = to_public(gather_state(ours), config)
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    padded.load_state_dict(weights)
    inputs = batch.input_ids, batch.sequence_offsets, batch.max_sequence_length
    keys = row_keys(batch.sequence_keys, batch.sequence_offsets, batch.real_tokens)
    loss = ours(*inputs, batch.masked_positions, batch.labels, sequence_keys=batch.sequence_keys)
    mask = pad_batch(batch)["attention_mask"]
    sites = iter([0, 4, 5, 8, 9])  # embedding; of each layer, attention's output and inside the GLU

    def dropout(x, p, training):
        assert p == 0.1 and training
        site = next(sites)
        rows = keys[batch.masked_positions[: batch.masked_tokens]] if site >= 8 else keys
        kept = keep_mask(rows, site, x.shape[-1], p)
        if x.dim() == 3:  # the embedding, which is padded still
            kept = torch.zeros_like(x, dtype=torch.bool).masked_scatter(mask[..., None] == 1, kept)
        return x * kept / (1 - p)

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    other = padded(**pad_batch(batch))
    assert next(sites, None) is None
    torch.testing.assert_close(loss / batch.masked_tokens, other)


def test_the_padded_design_under_autocast_norms_in_low_precision(batch):
    padded = PaddedRapidBERT(CONFIG)
    seen = []
    norm = padded.bert.encoder.layer[0].mlp.layernorm
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        low = padded(**pad_batch(batch))
    assert seen == [torch.bfloat16]
    torch.testing.assert_close(low.float(), padded(**pad_batch(batch)), rtol=2e-2, atol=0)


def test_toys_have_as_many_parameters_as_ours():
    config = replace(PRESETS["rapidbert-tiny"], vocab_size=4096)
    counts = {}
    for name, build in peers(True, config).items():
        if "flash" not in name:
            counts[name] = sum(parameter.numel() for parameter in build().parameters())
    ours = config.parameters()
    assert counts["RapidBERT, padded in each layer"] == ours
    assert all(0.95 < count / ours < 1.1 for count in counts.values()), (ours, counts)
