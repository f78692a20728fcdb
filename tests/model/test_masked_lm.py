"""The whole model against `transformers` and against the plain padded RapidBERT."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_bert import PaddedBatch, PlainRapidBERT, randomise
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig, ModelOptions, training_flops
from model.kernels import operations as kernels
from model.labels import IGNORED_LABEL
from model.masked_lm import RapidBertForMaskedLM
from model.weights import from_public, scatter_state, to_public

LENGTHS = [7, 1, 12, 4]


def rapidbert(**changes) -> ModelConfig:
    sizes: dict[str, Any] = dict(
        num_layers=2, hidden_size=48, num_heads=3, ffn_size=64, vocab_size=128
    )
    return ModelConfig("test-rapidbert", **(sizes | changes))


def bert(**changes) -> ModelConfig:
    kind: dict[str, Any] = dict(
        feed_forward="standard", positions="learned", ffn_dropout=0.0, max_positions=16
    )
    return rapidbert(**(kind | changes))


def build(config: ModelConfig, backend: str = "reference") -> RapidBertForMaskedLM:
    model = RapidBertForMaskedLM(config, ModelOptions(backend))
    randomise(model)
    return model.eval()


def mean_loss(model: RapidBertForMaskedLM, batch: PaddedBatch) -> Tensor:
    targets = batch.packed_targets
    return model(**batch.packed_inputs, **targets) / len(targets["labels"])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of every parameter; one without a gradient fails."""
    grads = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        grads[name] = parameter.grad
    return grads


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=0, atol=atol, msg=f"{name} differs"
        )


def check_parity(model: RapidBertForMaskedLM, plain: nn.Module, batch: PaddedBatch) -> None:
    """Logits, loss and every gradient; `plain` maps a padded batch to logits [S, L, V]."""
    model.zero_grad()
    plain.zero_grad()
    expected = plain(**batch.padded_inputs)
    logits = model.logits(**batch.packed_inputs)
    torch.testing.assert_close(logits, batch.pack(expected), rtol=0, atol=1e-5)

    expected_loss = F.cross_entropy(expected.flatten(0, 1), batch.labels.flatten())
    loss = mean_loss(model, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-5)

    expected_loss.backward()
    loss.backward()
    assert_same(to_public(gradients(model), model.config), gradients(plain))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(rapidbert(), id="3-heads"),
        pytest.param(rapidbert(num_heads=12), id="12-heads"),
        pytest.param(rapidbert(num_heads=16, hidden_size=64), id="16-heads"),
        pytest.param(rapidbert(feed_forward="glu"), id="two-matmul-glu"),
        pytest.param(rapidbert(feed_forward="standard", ffn_dropout=0.0), id="no-glu"),
    ],
)
def test_rapidbert_equals_the_plain_padded_one(config):
    model = build(config)
    plain = PlainRapidBERT(
        config.num_layers,
        config.hidden_size,
        config.num_heads,
        config.ffn_size,
        config.vocab_size,
        gated=config.feed_forward != "standard",
    )
    state = to_public(dict(model.named_parameters()), config)
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    plain.load_state_dict(state)
    for lengths in (LENGTHS, [9], [1, 1, 16]):
        check_parity(model, plain, PaddedBatch.random(lengths, config.vocab_size))


class HuggingFaceBert(nn.Module):
    """`transformers`' BERT with the interface of `PlainRapidBERT`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        transformers = pytest.importorskip("transformers")
        self.model = transformers.BertForMaskedLM(
            transformers.BertConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.ffn_size,
                max_position_embeddings=config.max_positions,
                attn_implementation="eager",
            )
        )
        randomise(self.model)
        self.eval()

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs).logits

    def public(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Hugging Face holds the decoder's bias under two names, one of which is listed."""
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
        return tensors


@pytest.mark.parametrize("lengths", [LENGTHS, [16], [3, 3, 3]], ids=str)
@pytest.mark.parametrize("vocab_size", [128, 100], ids=["whole-vocabulary", "padded-vocabulary"])
def test_bert_equals_transformers(lengths, vocab_size):
    config = bert(vocab_size=vocab_size)
    theirs = HuggingFaceBert(config)
    word_embeddings = "bert.embeddings.word_embeddings.weight"
    decoder_bias = "cls.predictions.decoder.bias"

    model = RapidBertForMaskedLM(config).eval()
    scatter_state(model, from_public(theirs.model.state_dict(), config))

    batch = PaddedBatch.random(lengths, vocab_size)
    expected = theirs(**batch.padded_inputs)
    logits = model.logits(**batch.packed_inputs)[:, :vocab_size]
    torch.testing.assert_close(logits, batch.pack(expected), rtol=0, atol=1e-5)

    expected_loss = theirs.model(**batch.padded_inputs, labels=batch.labels).loss
    loss = mean_loss(model, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-5)

    expected_loss.backward()
    loss.backward()
    ours = to_public(gradients(model), config)
    for name in (word_embeddings, decoder_bias):
        assert not ours[name][vocab_size:].any(), "the dead rows of the vocabulary got a gradient"
        ours[name] = ours[name][:vocab_size]
    assert_same(ours, theirs.public(gradients(theirs)))


def test_both_backends_agree():
    batch = PaddedBatch.random(LENGTHS, 128)
    results = []
    for backend in ("reference", "sdpa"):
        model = build(rapidbert(), backend)
        loss = mean_loss(model, batch)
        loss.backward()
        results.append({"loss": loss.detach()} | gradients(model))
    assert_same(results[0], results[1])


@pytest.fixture(scope="module", params=["rapidbert", "bert"])
def model(request, single_process) -> RapidBertForMaskedLM:
    return build(rapidbert() if request.param == "rapidbert" else bert())


FAST = {
    "triton": ModelOptions("triton", "triton"),
    "triton, recomputed": ModelOptions("triton", "triton", recompute=True),
    "triton, tiled": ModelOptions("triton", "triton"),
    "compile": ModelOptions("sdpa", "compile"),
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("path", "feed_forward"),
    [*((path, "fused_glu") for path in FAST), ("triton", "glu"), ("triton", "standard")],
)
def test_the_fast_paths_train_like_the_plain_one(path, feed_forward, dtype, monkeypatch):
    """The same masks of dropout, and losses and gradients that differ by rounding."""
    # All of torch.compile but its code generation, which takes a minute here.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    kernels._compiled.cache_clear()
    dropout = dict(hidden_dropout=0.2, ffn_dropout=0.0 if feed_forward == "standard" else 0.2)
    config = rapidbert(feed_forward=feed_forward, **dropout)
    batch = PaddedBatch.random(LENGTHS, config.vocab_size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = batch.packed_inputs | batch.packed_targets
    inputs |= {name: x.to(device) for name, x in inputs.items() if isinstance(x, Tensor)}
    if path == "triton, tiled":
        inputs["max_sequence_length"] = 150
    results = []
    for options in (ModelOptions(), FAST[path]):
        model = RapidBertForMaskedLM(config, options)
        randomise(model)
        model.to(device, dtype).train()
        loss = model(**inputs, sequence_keys=torch.arange(len(LENGTHS), device=device))
        loss.backward()
        results.append((loss.item(), gradients(model)))
    (loss, grads), (fast_loss, fast_grads) = results
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert fast_loss == pytest.approx(loss, rel=tolerance)
    for name, gradient in grads.items():
        error = (fast_grads[name].double() - gradient.double()).norm()
        assert error <= 3 * tolerance * gradient.double().norm() + 1e-6, name


def test_padded_logits_are_the_packed_ones_put_back(model):
    batch = PaddedBatch.random(LENGTHS, 128)
    found = model.logits(**batch.padded_inputs)
    assert torch.equal(batch.pack(found), model.logits(**batch.packed_inputs))
    assert not found[batch.attention_mask == 0].any()
    with pytest.raises(ValueError, match="rows are of a packed batch"):
        model.logits(**batch.padded_inputs, rows=torch.tensor([1]))


def test_omitted_token_types_are_zeros(model):
    inputs = PaddedBatch.random(LENGTHS, 128).packed_inputs
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    explicit = model.logits(**inputs)
    del inputs["token_type_ids"]
    torch.testing.assert_close(model.logits(**inputs), explicit, rtol=0, atol=1e-6)


def test_a_changed_neighbour_changes_nothing(model):
    inputs = PaddedBatch.random(LENGTHS, 128).packed_inputs
    before = model.logits(**inputs)
    third = slice(8, 20)
    inputs["input_ids"][third] = inputs["input_ids"][third].flip(0)
    after = model.logits(**inputs)
    assert torch.equal(after[:8], before[:8])
    assert torch.equal(after[20:], before[20:])
    assert not torch.allclose(after[third], before[third], atol=1e-3)


def test_a_removed_neighbour_changes_nothing(model):
    batch = PaddedBatch.random(LENGTHS, 128)
    together = model.logits(**batch.packed_inputs)
    for sequence, length in enumerate(LENGTHS):
        here = slice(sequence, sequence + 1)
        alone = PaddedBatch(
            batch.input_ids[here, :length],
            batch.token_type_ids[here, :length],
            batch.attention_mask[here, :length],
            batch.labels[here, :length],
        )
        start = int(batch.offsets[sequence])
        torch.testing.assert_close(
            model.logits(**alone.packed_inputs),
            together[start : start + length],
            rtol=0,
            atol=2e-6,
        )


def test_rows_behind_the_last_sequence_and_empty_sequences_change_nothing(model):
    batch = PaddedBatch.random(LENGTHS, 128)
    inputs, targets = batch.packed_inputs, batch.packed_targets
    model.zero_grad()
    expected_logits = model.logits(**inputs)
    expected_loss = model(**inputs, **targets)
    expected_loss.backward()
    expected = gradients(model)

    tokens = expected_logits.shape[0]
    # Two empty sequences in the middle and two at the end, and 40 rows that belong to none: more
    # than there are positions, so that a position counted on into the tail would be out of range.
    inputs["sequence_offsets"] = torch.tensor([0, 7, 7, 8, 8, 20, 24, 24, 24], dtype=torch.int32)
    for key in ("input_ids", "token_type_ids"):
        inputs[key] = torch.cat([inputs[key], torch.ones(40, dtype=torch.int64)])
    targets["masked_positions"] = F.pad(targets["masked_positions"], (0, 3), value=tokens + 30)
    targets["labels"] = F.pad(targets["labels"], (0, 3), value=IGNORED_LABEL)

    model.zero_grad()
    logits = model.logits(**inputs)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:tokens], expected_logits, rtol=0, atol=2e-6)
    loss = model(**inputs, **targets)
    loss.backward()
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert_same(gradients(model), expected, atol=5e-5)  # of a sum over ten rows, not of a mean

    inputs["input_ids"][tokens:] = 2
    other = model.logits(**inputs)
    assert torch.equal(other[:tokens], logits[:tokens])


def test_kept_rows_are_the_rows_picked_afterwards(model):
    inputs = PaddedBatch.random(LENGTHS, 128).packed_inputs
    rows = torch.tensor([22, 0, 5, 19])
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    results = []
    for logits in (lambda: model.logits(**inputs, rows=rows), lambda: model.logits(**inputs)[rows]):
        model.zero_grad()
        values = logits()
        (values * weight).sum().div(128).backward()
        results.append({"logits": values.detach()} | gradients(model))
    assert_same(results[0], results[1])


def test_the_loss_is_a_sum_over_the_labelled_rows(model):
    batch = PaddedBatch.random(LENGTHS, 128)
    inputs = batch.packed_inputs
    rows, labels = torch.tensor([3, 9, 9, 21]), torch.tensor([5, 127, 0, IGNORED_LABEL])
    scores = model.logits(**inputs).log_softmax(-1)
    expected = -(scores[3, 5] + scores[9, 127] + scores[9, 0])
    loss = model(**inputs, masked_positions=rows, labels=labels)
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_ignored_rows_get_no_gradient(model):
    inputs = PaddedBatch.random(LENGTHS, 128).packed_inputs
    model.zero_grad()
    labels = torch.full((3,), IGNORED_LABEL)
    loss = model(**inputs, masked_positions=torch.tensor([1, 2, 3]), labels=labels)
    loss.backward()
    assert loss.item() == 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_bf16_weights_stay_near_fp32(model):
    batch = PaddedBatch.random(LENGTHS, 128)
    expected = model.logits(**batch.packed_inputs)
    half = build(model.config).bfloat16()
    logits = half.logits(**batch.packed_inputs)
    assert logits.dtype == torch.bfloat16
    # bf16 keeps 8 bits; the logits are of size one, and a few dozen roundings lie behind each.
    error = (logits.float() - expected).square().mean().sqrt() / expected.std()
    assert error < 0.03
    loss = mean_loss(half, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, mean_loss(model, batch), rtol=0.01, atol=0)


def test_executed_flops_are_what_training_flops_says():
    for config in (rapidbert(), rapidbert(feed_forward="glu"), bert()):
        model = build(config)
        # Sequences of one length: the padded reference attention then computes no padding.
        batch = PaddedBatch.random([8] * 4, 128)
        inputs, targets = batch.packed_inputs, batch.packed_targets
        with FlopCounterMode(display=False) as counter:
            model(**inputs, **targets).backward()
        assert counter.get_total_flops() == training_flops(
            config, tokens=32, masked_tokens=len(targets["labels"]), token_pairs=4 * 8 * 8
        )


def test_a_step_downhill_lowers_the_loss(model):
    batch = PaddedBatch.random(LENGTHS, 128)
    trained = build(model.config)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.01)
    before = mean_loss(trained, batch)
    before.backward()
    optimizer.step()
    assert mean_loss(trained, batch) < before


@pytest.mark.parametrize("feed_forward", ["standard", "glu", "fused_glu"])
def test_initial_weights(feed_forward):
    torch.manual_seed(0)
    config = rapidbert(feed_forward=feed_forward, ffn_dropout=0.0)
    for name, parameter in RapidBertForMaskedLM(config).named_parameters():
        if parameter.dim() > 1:
            # Five standard deviations of the estimate from so many draws.
            error = 5 * 0.02 / (2 * parameter.numel()) ** 0.5
            assert parameter.std().item() == pytest.approx(0.02, abs=error), name
        else:
            expected = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert (parameter == expected).all(), name
