"""Question answering against Hugging Face's BertForQuestionAnswering, and its loss by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.config import ModelConfig
from model.padding import unpad
from model.span_classifier import RapidBertForQuestionAnswering
from model.weights import from_public, scatter_state, to_public

SIZES = dict(num_layers=2, hidden_size=32, num_heads=2, ffn_size=64, vocab_size=128)
BERT = ModelConfig("bert", **SIZES, feed_forward="standard", positions="learned", ffn_dropout=0.0)


@pytest.fixture(scope="module")
def models():
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    theirs = BertForQuestionAnswering(
        BertConfig(
            vocab_size=128,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.3,  # scores that differ from token to token
            attn_implementation="eager",
        )
    ).eval()
    ours = RapidBertForQuestionAnswering(BERT).eval()
    scatter_state(ours, from_public(theirs.state_dict(), BERT, "span_classifier"))
    return ours, theirs


def batch(lengths):
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    ids = torch.randint(5, 128, mask.shape) * mask
    types = (torch.arange(mask.shape[1]) >= 3).long().expand_as(mask) * mask
    rows, offsets = unpad(mask)
    packed = (ids.flatten()[rows], offsets, mask.shape[1])
    return mask, ids, types, packed, types.flatten()[rows]


def test_loss_equals_transformers(models):
    """Of sequences of one length: theirs counts padding as places where an answer may be."""
    ours, theirs = models
    mask, ids, types, packed, packed_types = batch([7, 7, 7])
    labels = torch.tensor([[3, 5], [0, 0], [6, 6]])
    expected = theirs(
        *(ids, mask, types), start_positions=labels[:, 0], end_positions=labels[:, 1]
    ).loss
    torch.testing.assert_close(ours(*packed, labels, packed_types), 3 * expected)


def test_padding_is_no_place_for_an_answer(models):
    ours, theirs = models
    mask, ids, types, packed, packed_types = batch([5, 9, 1])
    answers = theirs(ids, mask, types)
    scores = torch.stack([answers.start_logits, answers.end_logits], dim=-1)
    found = ours.logits(ids, token_type_ids=types, attention_mask=mask)
    real = mask.bool()
    torch.testing.assert_close(found[real], scores[real], atol=1e-5, rtol=1e-5)
    assert not found[~real].any()
    labels = torch.tensor([[2, 4], [8, 8], [0, 0]])
    expected = torch.zeros(())
    for row, length in enumerate((5, 9, 1)):
        for kind in range(2):
            of = scores[row, :length, kind].unsqueeze(0)
            expected = expected + F.cross_entropy(of, labels[row, kind].unsqueeze(0)) / 2
    torch.testing.assert_close(ours(*packed, labels, packed_types), expected)


def test_empty_and_unlabelled_sequences_do_not_count(models):
    ours, _ = models
    *_, (ids, offsets, length), types = batch([5, 9, 2])
    labels = torch.tensor([[2, 4], [8, 8], [0, 1]])
    whole = ours(ids, offsets, length, labels, types)
    more = F.pad(offsets, (0, 2), value=int(offsets[-1]))
    padded = ours(ids, more, length, F.pad(labels, (0, 0, 0, 2), value=-100), types)
    torch.testing.assert_close(padded, whole)
    padded.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())
    unlabelled = ours(ids, offsets, length, torch.full((3, 2), -1), types)
    assert unlabelled.item() == 0.0


def test_the_public_layout_comes_back():
    config = ModelConfig("rapidbert", **SIZES)
    model = RapidBertForQuestionAnswering(config)
    state = {name: value.detach() for name, value in model.named_parameters()}
    public = to_public(state, config, "span_classifier")
    assert public["qa_outputs.weight"].shape == (2, 32)
    again = from_public(public, config, "span_classifier")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
