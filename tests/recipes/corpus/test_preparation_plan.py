"""What a preparation is recognised by must not change: older data would be refused."""

import json

import pytest
from preparation_scenarios import documents

from recipes.common.errors import UserError
from recipes.common.settings import help_of, parse
from recipes.corpus.preparation_plan import make_plan
from recipes.corpus.preparation_settings import DEFAULT_VOCAB_SIZE, Settings, Vocabulary
from recipes.corpus.sentencepiece_tokenizer import NORMALIZERS
from recipes.corpus.sentencepiece_training import MIN_VOCAB_SIZE


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    texts = documents(400)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "corpus" / "a.jsonl").write_text(lines)
    (tmp_path / "corpus" / "b.txt").write_text("\n\n".join(texts[:50]))


def plan(*words):
    return make_plan(parse(Settings, ["--input", "corpus", "--output", "data", *words]))


def test_options_and_digest_are_those_of_older_preparations(corpus):
    """Recorded with `prepare_data.py` as it was before its settings were a dataclass."""
    made = plan(
        *("--validation-input", "corpus/b.txt", "--vocab-size", "320", "--workers", "1"),
        *("--shards", "3", "--max-documents", "300"),
    )
    assert json.dumps(made.options) == (
        '{"input": ["corpus"], "config": null, "text_key": "text", "format": null, '
        '"documents_per": "paragraph", "validation_input": ["corpus/b.txt"], '
        '"validation_fraction": 0.01, "tokenizer": null, "vocab_size": 320, "cased": false, '
        '"normalizer": "nmt_nfkc_cf", "tokenizer_sample_mb": 64, "shards": 3, '
        '"max_documents": 300}'
    )
    digest = "e8bd2b7802dc68072d19f840a687734f2d33833e501517b31038612351e76274"
    assert made.input_digest == digest


def test_what_is_not_given_follows_from_the_rest(corpus):
    assert plan().options["vocab_size"] == DEFAULT_VOCAB_SIZE
    assert plan().options["normalizer"] == "nmt_nfkc_cf" and not plan().options["cased"]
    assert plan("--cased").options["normalizer"] == "nmt_nfkc" and plan("--cased").options["cased"]
    assert plan("--normalizer", "nfkc").options["cased"]


@pytest.mark.parametrize("words", [["--input"], ["--validation-input"]])
def test_a_list_of_no_inputs_is_what_an_unset_variable_leaves(words):
    with pytest.raises(UserError, match=f"{words[0]}: is empty"):
        parse(Settings, ["--output", "data", *words])


def test_the_help_names_the_numbers_and_normalizers_there_are():
    said = help_of(Vocabulary)
    assert f"at least\n{MIN_VOCAB_SIZE}." in said["vocab_size"]
    assert f"Unless given: {DEFAULT_VOCAB_SIZE}" in said["vocab_size"]
    assert all(f"{name} " in said["normalizer"] for name in NORMALIZERS)
