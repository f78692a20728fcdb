"""ONNX graphs, computed by ONNX Runtime at shapes that the exporter never saw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from export_scenarios import BERT, LABELS, RAPIDBERT, make_export
from torch import Tensor

from model.classifier import RapidBertForSequenceClassification
from model.encoder import RapidBert
from model.masked_lm import RapidBertForMaskedLM
from model.span_classifier import RapidBertForQuestionAnswering
from recipes.common.errors import UserError
from recipes.convert_hf import main
from recipes.interop import onnx_graph

LENGTHS = [(9, 0, 61), (1,), (30, 30)]
"""Tokens of each row of a batch; a row may be all padding, and one is longer than the example."""


def export(place, output) -> None:
    words = ["export", "--input", str(place), "--output", str(output)]
    assert main([*words, "--format", "onnx"]) == 0


def batches(longest: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids, mask and token types, int64 [S, L], padded further than the longest row."""
    made = []
    for number, lengths in enumerate(LENGTHS):
        draw = torch.Generator().manual_seed(number)
        width = min(longest, max(lengths) + 3)
        mask = torch.tensor([[int(k < n) for k in range(width)] for n in lengths])
        ids, types = (
            torch.randint(low, high, mask.shape, generator=draw) for low, high in ((5, 300), (0, 2))
        )
        made.append((ids, mask, types))
    return made


@pytest.mark.parametrize(
    ("config", "head", "kind", "names"),
    [
        (RAPIDBERT, "masked_lm", RapidBertForMaskedLM, ["logits"]),
        (RAPIDBERT, "classifier", RapidBertForSequenceClassification, ["logits"]),
        (
            *(RAPIDBERT, "span_classifier", RapidBertForQuestionAnswering),
            ["start_logits", "end_logits"],
        ),
        (BERT, "none", RapidBert, ["last_hidden_state"]),
    ],
)
def test_every_shape_is_the_training_models(finetune_place, tmp_path, config, head, kind, names):
    config = replace(config, num_layers=1)
    place = make_export(tmp_path / "run", finetune_place / "data", config, head)
    export(place, tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    assert [each.name for each in session.get_outputs()] == names
    model = kind.from_pretrained(place / "export")
    compute = model if head == "none" else model.logits
    for ids, mask, types in batches(40 if config.positions == "learned" else 100):
        with torch.no_grad():
            expected = compute(ids, attention_mask=mask, token_type_ids=types)
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        found = session.run(names, {name: each.numpy() for name, each in feed.items()})
        values = torch.from_numpy(np.stack(found, -1) if len(found) > 1 else found[0])
        real = mask.sum(1) > 0 if head == "classifier" else mask.bool()
        width = 300 if head == "masked_lm" else None  # rows that pad the vocabulary are at -10,000
        torch.testing.assert_close(
            values[real][..., :width], expected[real][..., :width], rtol=0, atol=1e-4
        )
        assert values.isfinite().all()
        if head == "classifier":
            assert values.shape == (len(ids), len(LABELS))


def test_a_graph_that_takes_padding_for_text_is_refused(finetune_place, tmp_path, monkeypatch):
    place = make_export(tmp_path / "run", finetune_place / "data", replace(RAPIDBERT, num_layers=1))

    class Blind(onnx_graph._Graph):
        def forward(self, input_ids, attention_mask, token_type_ids):
            return super().forward(input_ids, attention_mask * 0 + 1, token_type_ids)

    monkeypatch.setattr(onnx_graph, "_Graph", Blind)
    with pytest.raises(UserError, match="computes something else: logits in ONNX Runtime"):
        export(place, tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
