"""What people do with an export: pipelines of transformers, and sentence-transformers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from plain_bert import randomise
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelConfig, preset
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from model.weights import Head
from recipes.training.export import write_export

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the weather was fine cold and report said so".split()
TEXTS = ["the weather was fine", "cold", "the report said so and so and the weather was cold " * 4]
SIZES: dict[str, Any] = dict(num_layers=2, hidden_size=48, num_heads=3, ffn_size=64)
RAPIDBERT = preset("rapidbert-tiny", **SIZES, vocab_size=len(WORDS))
BERT = preset("bert-tiny", **SIZES, vocab_size=len(WORDS))


def ids(text: str) -> Tensor:
    """int64 [1, L], by hand."""
    return torch.tensor([[2, *(WORDS.index(word) for word in text.split()), 3]])


def word_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Every word is a piece: what the texts' ids are is plain to see."""
    words = Tokenizer(models.WordLevel(dict(zip(WORDS, range(99), strict=False)), "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {
        f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")
    }
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, model_input_names=inputs, **special
    )


@pytest.fixture(scope="module")
def write(finetune_place, tmp_path_factory):
    """Writes a random model as a run does; its tokenizer gives way to the one of words."""
    initialize_parallel()

    def write(model: Any, config: ModelConfig, head: Head = "masked_lm", **facts) -> Path:
        randomise(model)
        export = tmp_path_factory.mktemp("run") / "export"
        state = {name: tensor.detach() for name, tensor in model.eval().named_parameters()}
        write_export(export, state, config, finetune_place / "data", facts, head)
        for path in export.glob("*token*"):
            path.unlink()
        word_tokenizer().save_pretrained(export)
        return export

    return write


@pytest.fixture(scope="module", params=[RAPIDBERT, BERT], ids=["rapidbert", "bert"])
def masked_lm(request, write) -> tuple[RapidBertForMaskedLM, Path]:
    model = RapidBertForMaskedLM(request.param)
    return model, write(model, request.param, sequence_length=128)


def pipeline(task: str, export: Path) -> Any:
    code = (export / "modeling_rapidbert.py").is_file()
    return transformers.pipeline(task, model=str(export), trust_remote_code=code)


@torch.no_grad()
def test_masks_are_filled_with_the_models_own_softmax(masked_lm):
    model, export = masked_lm
    fill = pipeline("fill-mask", export)
    text = "the weather was [MASK]"
    expected = model.logits(ids(text))[0, 4, : len(WORDS)].softmax(-1)
    found = fill(text, top_k=model.config.padded_vocab_size)
    scores = {guess["token"]: guess["score"] for guess in found}
    for word, share in enumerate(expected.tolist()):
        assert scores[word] == pytest.approx(share, abs=1e-5)
    assert not any(score for word, score in scores.items() if word >= len(WORDS))


@torch.no_grad()
def test_features_are_the_encoders_hidden_states(masked_lm):
    model, export = masked_lm
    for text, found in zip(TEXTS, pipeline("feature-extraction", export)(TEXTS), strict=True):
        torch.testing.assert_close(torch.tensor(found), model.encoder(ids(text)), atol=1e-5, rtol=0)


@torch.no_grad()
def test_sentence_vectors_are_means_over_the_tokens(masked_lm):
    model, export = masked_lm
    code = (export / "modeling_rapidbert.py").is_file()
    sentences = SentenceTransformer(str(export), trust_remote_code=code, device="cpu")
    assert sentences.max_seq_length == 512
    found = sentences.encode(TEXTS, convert_to_tensor=True)  # one batch, padded
    for text, vector in zip(TEXTS, found, strict=True):
        expected = model.encoder(ids(text))[0].mean(0)
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [RAPIDBERT, BERT], ids=["rapidbert", "bert"])
@torch.no_grad()
def test_texts_get_the_names_of_their_labels(config, write):
    model, names = RapidBertForSequenceClassification(config, 3), ("down", "up", "sideways")
    export = write(model, config, "classifier", task={"name": "mood", "labels": names})
    found = pipeline("text-classification", export)(TEXTS, top_k=None)
    for text, answers in zip(TEXTS, found, strict=True):
        shares = model.logits(ids(text))[0].softmax(-1)
        expected = dict(zip(names, shares.tolist(), strict=True))
        assert {a["label"]: a["score"] for a in answers} == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_a_regression_gives_its_value_as_it_is(write):
    model = RapidBertForSequenceClassification(RAPIDBERT, 1)
    export = write(model, RAPIDBERT, "classifier", task={"name": "warmth", "labels": None})
    for text, (answer,) in zip(
        TEXTS, pipeline("text-classification", export)(TEXTS, top_k=None), strict=True
    ):
        assert answer["label"] == "warmth"
        assert answer["score"] == pytest.approx(model.logits(ids(text)).item(), abs=1e-5)


def test_an_export_that_was_only_copied_works_from_anywhere(masked_lm, tmp_path):
    """It needs nothing beside itself."""
    _, export = masked_lm
    moved = tmp_path / "elsewhere"
    shutil.copytree(export, moved)
    assert len(pipeline("feature-extraction", moved)("cold")[0]) == 3
