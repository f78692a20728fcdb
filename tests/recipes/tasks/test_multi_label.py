"""Files of texts with several labels, their loss against PyTorch's, their F1 by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelConfig
from model.parallel import initialize_parallel
from recipes.common.errors import UserError
from recipes.tasks.classification_batches import EncodedExamples
from recipes.tasks.multi_label import METRICS, label_metrics, load_label_sets


def faults(*arguments, **options) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        load_label_sets(*arguments, **options)
    return caught.value.faults


def lines(path, labels):
    rows = [{"text": f"text {n}", "labels": each} for n, each in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


LISTED = dict(text_columns=("text",), label_columns=("labels",))
GOOD = [["b"], [], ["a", "b"], ["a"]]


def test_lists_and_columns_give_the_same_examples(tmp_path):
    listed = lines(tmp_path / "a.jsonl", GOOD)
    table = tmp_path / "a.csv"
    table.write_text("a,text,b\n0,text 0,1\nfalse,text 1,0.0\n1,text 2,TRUE\n1.0,text 3, 0\n")
    one = load_label_sets(listed, listed, **LISTED)
    two = load_label_sets(table, table, text_columns=("text",), label_columns=("a", "b"))
    for data in (one, two):
        assert data.labels == ("a", "b") and data.train.first == [f"text {n}" for n in range(4)]
        assert data.train.labels.dtype == np.float32
        assert data.train.labels.tolist() == [[0, 1], [0, 0], [1, 1], [1, 0]]
        assert "of 4 examples have 'a' 2, 'b' 2, none 1" in data.notes[0]
        assert "4 of 4 examples have texts of the training set" in data.notes[-1]
    turned = load_label_sets(table, table, text_columns=("text",), label_columns=("b", "a"))
    assert turned.labels == ("b", "a") and turned.train.labels[0].tolist() == [1, 0]


def test_examples_that_cannot_be_used_are_counted(tmp_path):
    many = GOOD * 25
    for label, reason in (
        ("a", "no list of names"),
        (["a", "a"], "label 'a' is there twice"),
        (["a", ""], "no label"),
        ([["a"]], "is a list, not one name or number"),
        (None, "labels are None, no list"),
    ):
        path = lines(tmp_path / "a.jsonl", [*many, label])
        data = load_label_sets(path, lines(tmp_path / "b.jsonl", GOOD), **LISTED)
        assert len(data.train) == 100 and reason in data.notes[0]
        assert "1 of 101 records cannot be used and were skipped" in data.notes[0]
    train = lines(tmp_path / "a.jsonl", GOOD)
    dev = lines(tmp_path / "b.jsonl", [*many, ["c"]])
    notes = load_label_sets(train, dev, **LISTED).notes
    assert any("b.jsonl:101: label 'c' is not in the training set" in note for note in notes)
    table = tmp_path / "a.csv"
    table.write_text("text,a,b\nx,1,0\ny,0,2\n")
    (only, *_) = faults(table, table, text_columns=("text",), label_columns=("a", "b"))
    assert "a.csv:3: 'b' is '2', neither 0 nor 1; 1 of 2 records" in only


def test_what_cannot_be_learnt_is_refused(tmp_path):
    dev = lines(tmp_path / "b.jsonl", GOOD)
    one, two = faults(lines(tmp_path / "a.jsonl", [["a"], ["a"]]), tmp_path / "no.jsonl", **LISTED)[
        :2
    ]
    assert "the only label is 'a'; two are needed" in one
    assert "all 2 examples have the label 'a'" in two
    assert (
        "no example has a label" in faults(lines(tmp_path / "c.jsonl", [[], []]), dev, **LISTED)[0]
    )
    table = tmp_path / "a.csv"
    table.write_text("text,a,b\nx,1,0\ny,0,0\n")
    (only,) = faults(table, table, text_columns=("text",), label_columns=("a", "b"))
    assert only.endswith("no example has the label 'b', nothing to learn")
    (only,) = faults(table, table, text_columns=("text",), label_columns=("a", "text"))
    assert only == "column 'text' is named twice among texts and labels"
    (first, *_) = faults(table, table, text_columns=("text",), label_columns=("a",))
    assert "of a table, --label-column names a column of 0 and 1 for each label" in first


class Letters:
    """Every character is a token."""

    cls_id, sep_id = 1, 2

    def encode_batch(self, texts):
        return [[3 + ord(c) % 50 for c in text] for text in texts]


def test_loss_equals_transformers_on_the_padded_batch():
    """BCEWithLogitsLoss over all examples and labels, as BertForSequenceClassification has it."""
    initialize_parallel()
    torch.manual_seed(0)
    config = ModelConfig("tiny", 1, 32, 2, 64, vocab_size=64, initializer_range=0.3)
    model = RapidBertForSequenceClassification(config, 3).eval()
    labels = np.array([[0, 1, 1], [0, 0, 0], [1, 1, 0]], np.float32)
    examples = EncodedExamples(Letters(), ["abc", "a longer one", "b"], None, labels, max_length=64)
    (batch,) = examples.evaluation_batches(8)
    assert batch.labels.shape == (3, 3) and batch.global_losses == 3
    arguments = (batch.input_ids, batch.sequence_offsets, batch.max_sequence_length)
    loss = model(*arguments, batch.labels)
    longest = max(map(len, examples.ids))
    ids = torch.zeros(3, longest, dtype=torch.long)
    for row, each in enumerate(examples.ids):
        ids[row, : len(each)] = torch.from_numpy(each)
    logits = model.logits(ids, attention_mask=(ids > 0).long())
    expected = torch.nn.BCEWithLogitsLoss()(logits, torch.from_numpy(labels))
    torch.testing.assert_close(loss, 3 * expected)
    more = F.pad(batch.sequence_offsets, (0, 2), value=int(batch.sequence_offsets[-1]))
    padded = model(
        *(batch.input_ids, more, batch.max_sequence_length),
        F.pad(batch.labels, (0, 0, 0, 2), value=torch.nan),
    )
    torch.testing.assert_close(padded, loss)
    padded.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_f1_of_all_labels_and_of_each():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    logits = np.array([[2, -1, -1], [-1, 3, -1], [-2, 1, -1], [1, -1, -1]], np.float32)
    # First label: 1 of 2 found, 1 of 2 right; second: both; third: never there, never predicted.
    found = label_metrics(logits, labels)
    assert found["macro_f1"] == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert found["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert found["exact_match"] == 2 / 4, "the first and the third"
    assert tuple(found) == METRICS
