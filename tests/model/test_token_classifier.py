"""Token classification against Hugging Face's BertForTokenClassification, and its dropout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.config import ModelConfig, ModelOptions
from model.padding import unpad
from model.token_classifier import RapidBertForTokenClassification
from model.weights import from_public, scatter_state, to_public

SIZES = dict(num_layers=2, hidden_size=32, num_heads=2, ffn_size=64, vocab_size=128)
BERT = ModelConfig("bert", **SIZES, feed_forward="standard", positions="learned", ffn_dropout=0.0)
CLASSES = 5


@pytest.fixture(scope="module")
def models():
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    theirs = BertForTokenClassification(
        BertConfig(
            vocab_size=128,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.3,  # scores that differ from token to token
            num_labels=CLASSES,
            attn_implementation="eager",
        )
    ).eval()
    ours = RapidBertForTokenClassification(BERT, CLASSES).eval()
    scatter_state(ours, from_public(theirs.state_dict(), BERT, "token_classifier"))
    return ours, theirs


def batch(lengths):
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    ids = torch.randint(5, 128, mask.shape, generator=generator) * mask
    labels = torch.randint(CLASSES, mask.shape, generator=generator)
    labels[(torch.rand(mask.shape, generator=generator) < 0.4) | (mask == 0)] = -100
    rows, offsets = unpad(mask)
    packed = (ids.flatten()[rows], offsets, mask.shape[1], labels.flatten()[rows])
    return mask, ids, labels, packed


def test_loss_and_its_gradient_equal_transformers(models):
    ours, theirs = models
    mask, ids, labels, packed = batch([5, 9, 1])
    expected = theirs(ids, mask, labels=labels).loss * (labels >= 0).sum()
    loss = ours(*packed)
    torch.testing.assert_close(loss, expected)
    for model, value in ((ours, loss), (theirs, expected)):
        model.zero_grad()
        value.backward()
    torch.testing.assert_close(
        ours.classifier.weight.grad, theirs.classifier.weight.grad, atol=1e-5, rtol=1e-5
    )


def test_padding_is_computed_as_zeros(models):
    ours, theirs = models
    mask, ids, *_ = batch([5, 9, 1])
    found = ours.logits(ids, attention_mask=mask)
    real = mask.bool()
    torch.testing.assert_close(found[real], theirs(ids, mask).logits[real], atol=1e-5, rtol=1e-5)
    assert found.dtype == torch.float32 and not found[~real].any()


def test_empty_sequences_and_a_rank_without_examples_have_no_loss(models):
    ours, _ = models
    *_, (ids, offsets, length, labels) = batch([5, 9, 2])
    whole = ours(ids, offsets, length, labels)
    more = F.pad(offsets, (0, 2), value=int(offsets[-1]))
    torch.testing.assert_close(ours(ids, more, length, labels), whole)
    ours.zero_grad()
    nothing = ours(
        torch.zeros(1, dtype=torch.long),
        torch.zeros(3, dtype=torch.int32),
        64,
        torch.full((1,), -100),
    )
    assert nothing.item() == 0.0
    nothing.backward()
    assert all(p.grad is None or not p.grad.any() for p in ours.parameters())


def test_dropout_before_the_head_is_a_function_of_place():
    """A sequence's masks are the same wherever it stands in a batch; units are really dropped."""
    config = ModelConfig("plain", **SIZES, hidden_dropout=0.0, ffn_dropout=0.0)
    torch.manual_seed(0)
    model = RapidBertForTokenClassification(config, CLASSES, dropout=0.5).train()
    _, _, _, (ids, offsets, length, _) = batch([6, 6])
    keys = torch.tensor([11, 22])
    both = model.logits(ids, offsets, length, sequence_keys=keys)
    second = model.logits(ids[6:], offsets[:2], length, sequence_keys=keys[1:])
    torch.testing.assert_close(both[6:], second)
    other = model.logits(ids, offsets, length, sequence_keys=keys + 1)
    calm = model.eval().logits(ids, offsets, length)
    assert not torch.allclose(both, calm) and not torch.allclose(both, other)
    model.train()
    many = torch.arange(4000)
    mean = torch.zeros_like(calm[:6])
    for start in range(0, 4000, 500):
        some = many[start : start + 500]
        begins = torch.arange(501, dtype=torch.int32) * 6
        scores = model.logits(ids[:6].repeat(500), begins, 6, sequence_keys=some * 7919)
        mean += scores.view(500, 6, -1).mean(0) / 8
    torch.testing.assert_close(mean, calm[:6], atol=0.02, rtol=0.05)
    with pytest.raises(ValueError, match="needs sequence_keys"):
        model.logits(ids, offsets, length)


def test_the_public_layout_comes_back():
    config = ModelConfig("rapidbert", **SIZES)
    model = RapidBertForTokenClassification(config, CLASSES, ModelOptions())
    state = {name: value.detach() for name, value in model.named_parameters()}
    public = to_public(state, config, "token_classifier")
    assert public["classifier.weight"].shape == (CLASSES, 32)
    again = from_public(public, config, "token_classifier")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
