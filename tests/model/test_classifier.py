"""The classifier against Hugging Face's BertForSequenceClassification, and its loss by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelConfig
from model.padding import unpad
from model.weights import from_public, scatter_state, to_public

SIZES = dict(num_layers=2, hidden_size=32, num_heads=2, ffn_size=64, vocab_size=128)
BERT = ModelConfig("bert", **SIZES, feed_forward="standard", positions="learned", ffn_dropout=0.0)


def batch(lengths=(5, 9, 1)):
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    ids = torch.randint(5, 128, mask.shape) * mask
    types = (torch.arange(mask.shape[1]) >= 3).long().expand_as(mask) * mask
    rows, offsets = unpad(mask)
    return mask, ids, types, rows, offsets


def test_equals_transformers():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    theirs = BertForSequenceClassification(
        BertConfig(
            vocab_size=128,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            num_labels=3,
            attn_implementation="eager",
        )
    ).eval()
    ours = RapidBertForSequenceClassification(BERT, 3).eval()
    scatter_state(ours, from_public(theirs.state_dict(), BERT, "classifier"))
    mask, ids, types, rows, offsets = batch()
    expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    packed = (ids.flatten()[rows], offsets, 9)
    found = ours.logits(*packed, types.flatten()[rows])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    labels = torch.tensor([2, 0, 1])
    loss = ours(*packed, labels, types.flatten()[rows])
    torch.testing.assert_close(loss, F.cross_entropy(expected, labels, reduction="sum"))


def test_the_public_layout_comes_back():
    config = ModelConfig("rapidbert", **SIZES)
    state = {
        name: value.detach()
        for name, value in RapidBertForSequenceClassification(config, 2).named_parameters()
    }
    again = from_public(to_public(state, config, "classifier"), config, "classifier")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    encoder = from_public(to_public(state, config, "classifier"), config, "none")
    assert encoder.keys() == {name for name in state if name.startswith("encoder.")}


@pytest.mark.parametrize("outputs", [1, 3])
def test_empty_and_unlabelled_sequences_do_not_count(outputs):
    torch.manual_seed(1)
    model = RapidBertForSequenceClassification(ModelConfig("rapidbert", **SIZES), outputs).eval()
    _, ids, types, rows, offsets = batch()
    tokens, kinds = ids.flatten()[rows], types.flatten()[rows]
    if outputs == 1:
        labels, ignored = torch.tensor([0.5, 4.0, 2.0]), torch.nan
    else:
        labels, ignored = torch.tensor([0, 2, 1]), -100
    whole = model(tokens, offsets, 9, labels, kinds)
    padded_offsets = F.pad(offsets, (0, 2), value=int(offsets[-1]))
    padded_labels = F.pad(labels, (0, 2), value=ignored)
    padded = model(tokens, padded_offsets, 9, padded_labels, kinds)
    torch.testing.assert_close(padded, whole)
    padded.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if outputs == 1:
        values = model.logits(tokens, offsets, 9, kinds).squeeze(-1)
        torch.testing.assert_close(whole, ((values - labels) ** 2).sum())


def test_padded_logits_are_the_packed_ones():
    model = RapidBertForSequenceClassification(ModelConfig("rapidbert", **SIZES), 3).eval()
    mask, ids, types, rows, offsets = batch()
    packed = model.logits(ids.flatten()[rows], offsets, 9, types.flatten()[rows])
    padded = model.logits(ids, token_type_ids=types, attention_mask=mask)
    assert torch.equal(padded, packed)
    # Padding in front: the first token is the first one that is real.
    flipped = (x.flip(1) for x in (ids, types, mask))
    ids, types, mask = (x[:, x.shape[1] - 5 :] for x in flipped)
    behind, types_behind = torch.zeros(3, 5).long(), torch.zeros(3, 5).long()
    lengths = mask.sum(1)
    for row, length in enumerate(lengths.tolist()):
        behind[row, :length], types_behind[row, :length] = ids[row, -length:], types[row, -length:]
    front = model.logits(ids, token_type_ids=types, attention_mask=mask)
    after = torch.arange(5) < lengths[:, None]
    assert torch.equal(front, model.logits(behind, None, None, types_behind, attention_mask=after))
