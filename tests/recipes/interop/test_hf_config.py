"""Exports as transformers takes them: by its Auto classes, without a line of configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from plain_bert import PaddedBatch, PlainRapidBERT, randomise
from safetensors.torch import load_file
from torch import Tensor, nn

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelConfig, preset
from model.encoder import RapidBert
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from model.pretrained import read_export
from model.span_classifier import RapidBertForQuestionAnswering
from model.weights import NEVER_PREDICTED, Head
from recipes.interop.hf_config import SENTENCE_TOKENS, hf_config, hf_files
from recipes.training.export import write_export

SIZES: dict[str, Any] = dict(
    num_layers=2, hidden_size=48, num_heads=3, ffn_size=64, vocab_size=300, hidden_dropout=0.1
)
RAPIDBERT = preset("rapidbert-tiny", **SIZES)
BERT = preset("bert-tiny", **SIZES, max_positions=40)
LABELS = ("down", "up", "sideways")
LENGTHS = [5, 0, 17, 1]


@pytest.fixture(scope="module", autouse=True)
def one_process() -> None:
    initialize_parallel()


@pytest.fixture(scope="module")
def write(finetune_place, tmp_path_factory):
    """Writes a model as a run does, and returns the export's directory."""

    def write(model: nn.Module, config: ModelConfig, head: Head = "masked_lm", **facts) -> Path:
        export = tmp_path_factory.mktemp("run") / "export"
        state = {name: tensor.detach() for name, tensor in model.named_parameters()}
        write_export(export, state, config, finetune_place / "data", facts, head)
        return export

    return write


def trained(kind: type[nn.Module], *arguments: Any) -> Any:
    model = kind(*arguments)
    randomise(model)
    return model.eval()


@pytest.fixture(scope="module")
def masked_lm(write) -> tuple[RapidBertForMaskedLM, Path]:
    model = trained(RapidBertForMaskedLM, RAPIDBERT)
    return model, write(model, RAPIDBERT, sequence_length=128)


@pytest.fixture(scope="module")
def bert(write) -> tuple[RapidBertForMaskedLM, Path]:
    model = trained(RapidBertForMaskedLM, BERT)
    return model, write(model, BERT, sequence_length=128)


@pytest.fixture(params=["masked_lm", "bert"])
def either(request) -> tuple[RapidBertForMaskedLM, Path]:
    return request.getfixturevalue(request.param)


def load(kind: str, directory: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """By an Auto class; and what was missing and what was too much."""
    code = (directory / "modeling_rapidbert.py").is_file()  # BERT comes without any
    auto = getattr(transformers, f"AutoModel{kind}")
    return auto.from_pretrained(
        directory, trust_remote_code=code, output_loading_info=True, **options
    )


def inputs(batch: PaddedBatch) -> dict[str, Tensor]:
    return batch.padded_inputs


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_all_auto_classes_load_an_encoder_and_make_only_their_heads(either):
    _, export = either
    bert = either[0].config.positions == "learned"
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    classifier = {"classifier.weight", "classifier.bias"}
    # transformers' own BERT has a pooler wherever it can, RapidBERT where one was trained.
    expected: dict[str, set[str]] = {
        "": {name.removeprefix("bert.") for name in pooler} if bert else set(),
        "ForMaskedLM": set(),
        "ForSequenceClassification": pooler | classifier,
        "ForTokenClassification": classifier,
        "ForQuestionAnswering": {"qa_outputs.weight", "qa_outputs.bias"},
    }
    for kind, missing in expected.items():
        model, info = load(kind, export)
        assert type(model).__name__ == f"{'Bert' if bert else 'RapidBert'}{kind or 'Model'}"
        assert set(info["missing_keys"]) == missing
        if not bert or kind == "ForMaskedLM":
            assert not [name for name in info["unexpected_keys"] if not name.startswith("cls.")]


@torch.no_grad()
def test_logits_are_the_training_models_and_padding_of_the_vocabulary_is_never_predicted(either):
    model, export = either
    loaded, _ = load("ForMaskedLM", export)
    batch = PaddedBatch.random(LENGTHS, RAPIDBERT.vocab_size)
    real = batch.attention_mask.bool()
    found = loaded.eval()(**inputs(batch)).logits[real]
    same(found[:, :300], model.logits(**inputs(batch))[real][:, :300])
    assert found.shape[-1] == 320 and not found.softmax(-1)[:, 300:].any()
    file = load_file(export / "model.safetensors")
    (bias,) = (
        tensor for name, tensor in file.items() if name.startswith("cls.") and len(tensor) == 320
    )
    assert (bias[300:] == NEVER_PREDICTED).all()
    same(found, RapidBertForMaskedLM.from_pretrained(export).logits(**inputs(batch))[real])


@torch.no_grad()
def test_the_published_layout_read_by_name_into_the_formulas_written_by_hand(masked_lm):
    _, export = masked_lm
    plain = PlainRapidBERT(layers=2, hidden=48, heads=3, ffn=64, vocab=320)
    missing, unexpected = plain.load_state_dict(load_file(export / "model.safetensors"), False)
    assert missing == ["cls.predictions.decoder.weight"] and not unexpected  # tied
    batch = PaddedBatch.random([5, 17, 1], RAPIDBERT.vocab_size)
    real = batch.attention_mask.bool()
    loaded, _ = load("ForMaskedLM", export)
    same(loaded.eval()(**inputs(batch)).logits[real], plain(**inputs(batch))[real])


@torch.no_grad()
def test_what_transformers_has_saved_again_is_still_our_export(either, tmp_path):
    model, export = either
    load("ForMaskedLM", export)[0].save_pretrained(tmp_path)
    again, first = read_export(tmp_path), read_export(export)
    assert again.config == first.config == model.config
    assert again.description == first.description
    state = first.state("masked_lm")
    assert all(torch.equal(x, state[name]) for name, x in again.state("masked_lm").items())
    if model.config is RAPIDBERT:  # its code travels along
        assert load("ForMaskedLM", tmp_path)[1]["missing_keys"] == set()


@pytest.mark.parametrize("config", [RAPIDBERT, BERT], ids=["rapidbert", "bert"])
@torch.no_grad()
def test_a_finetuned_classifier_has_the_names_of_its_labels(config, write):
    model = trained(RapidBertForSequenceClassification, config, len(LABELS))
    export = write(model, config, "classifier", task={"name": "mood", "labels": LABELS})
    loaded, info = load("ForSequenceClassification", export)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.id2label == dict(enumerate(LABELS))
    assert loaded.config.label2id == {"down": 0, "up": 1, "sideways": 2}
    assert loaded.config.problem_type == "single_label_classification"
    batch = PaddedBatch.random([5, 17, 1], config.vocab_size)
    same(loaded.eval()(**inputs(batch)).logits, model.logits(**inputs(batch)))
    assert not (export / "modules.json").exists(), "its vectors know one task"


@torch.no_grad()
def test_a_regression_is_one_value(write):
    model = trained(RapidBertForSequenceClassification, RAPIDBERT, 1)
    export = write(model, RAPIDBERT, "classifier", task={"name": "warmth", "labels": None})
    loaded, info = load("ForSequenceClassification", export)
    assert not info["missing_keys"] and loaded.config.id2label == {0: "warmth"}
    batch = PaddedBatch.random([5, 17], RAPIDBERT.vocab_size)
    labels = torch.tensor([20.0, 30.0])
    output = loaded.eval()(**inputs(batch), labels=labels)
    same(output.logits, model.logits(**inputs(batch)))
    same(output.loss, (output.logits[:, 0] - labels).square().mean())


@torch.no_grad()
def test_a_finetuned_span_classifier_answers(write):
    model = trained(RapidBertForQuestionAnswering, RAPIDBERT)
    loaded, info = load("ForQuestionAnswering", write(model, RAPIDBERT, "span_classifier"))
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = PaddedBatch.random([5, 17], RAPIDBERT.vocab_size)
    output = loaded.eval()(**inputs(batch))
    found = torch.stack([output.start_logits, output.end_logits], -1)
    real = batch.attention_mask != 0
    same(found[real], model.logits(**inputs(batch))[real])


class TokenClassifier(nn.Module):
    """The encoder and a matrix, under the names that the weights of such a model have."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.encoder = RapidBert(config)
        self.classifier = nn.Linear(config.hidden_size, len(LABELS))


@pytest.mark.parametrize("config", [RAPIDBERT, BERT], ids=["rapidbert", "bert"])
@torch.no_grad()
def test_a_finetuned_token_classifier_names_its_tags(config, write):
    model = trained(TokenClassifier, config)
    export = write(model, config, "token_classifier", task={"name": "tags", "labels": LABELS})
    loaded, info = load("ForTokenClassification", export)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.id2label == dict(enumerate(LABELS))
    batch = PaddedBatch.random([5, 17, 1], config.vocab_size)
    real = batch.attention_mask.bool()
    expected = model.classifier(model.encoder(**inputs(batch)))
    same(loaded.eval()(**inputs(batch)).logits[real], expected[real])


@torch.no_grad()
def test_a_text_may_have_several_labels(write):
    model = trained(RapidBertForSequenceClassification, RAPIDBERT, len(LABELS))
    kind = "multi_label_classification"
    task = {"name": "topics", "labels": LABELS, "problem_type": kind}
    loaded, _ = load("ForSequenceClassification", write(model, RAPIDBERT, "classifier", task=task))
    assert loaded.config.problem_type == kind
    batch = PaddedBatch.random([5, 17], RAPIDBERT.vocab_size)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    output = loaded.eval()(**inputs(batch), labels=labels)
    chances = model.logits(**inputs(batch)).sigmoid()
    right = torch.where(labels == 1, chances, 1 - chances)
    torch.testing.assert_close(output.loss, -right.log().mean())


def test_what_is_ours_stands_under_one_key_and_code_only_where_it_is_needed(masked_lm, bert):
    for (model, export), code in ((masked_lm, True), (bert, False)):
        config = json.loads((export / "config.json").read_bytes())
        ours = config["rapidbert"]
        assert ours == {"model": model.config.to_dict(), "sequence_length": 128}
        assert ("auto_map" in config) == (export / "modeling_rapidbert.py").is_file() == code
        assert config["vocab_size"] == 320 and config["architectures"][0].endswith("ForMaskedLM")


@pytest.mark.parametrize(
    ("config", "trained_at", "tokens"),
    [(RAPIDBERT, 128, SENTENCE_TOKENS), (RAPIDBERT, 2048, 2048), (BERT, 128, 40)],
)
def test_sentence_transformers_cuts_where_the_model_can_still_read(config, trained_at, tokens):
    files = hf_files(config, "masked_lm", {"sequence_length": trained_at})
    assert json.loads(files["sentence_bert_config.json"])["max_seq_length"] == tokens


def test_a_model_without_a_class_in_transformers_is_refused():
    odd = replace(RAPIDBERT, positions="learned")
    with pytest.raises(ValueError, match="learned positions with the feed-forward fused_glu"):
        hf_config(odd, "masked_lm", {})
