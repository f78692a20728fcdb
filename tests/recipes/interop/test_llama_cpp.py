"""GGUF, computed with by llama.cpp itself."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from export_scenarios import BERT, RAPIDBERT, make_export
from gguf import GGUFReader

from recipes.common.errors import UserError
from recipes.convert_hf import main
from recipes.interop import llama_cpp, llama_tokenizer
from recipes.interop.llama_server import Server


def export(place, output) -> None:
    words = ["export", "--input", str(place), "--output", str(output)]
    assert main([*words, "--format", "gguf"]) == 0


@pytest.fixture(scope="module")
def place(finetune_place, tmp_path_factory):
    return make_export(tmp_path_factory.mktemp("run"), finetune_place / "data", RAPIDBERT)


def test_rapidbert_is_jina_bert_v2_there(place, tmp_path, capsys):
    export(place, tmp_path / "out")
    said = capsys.readouterr().out
    assert "ids are equal, with [UNK] for bytes; 1 - cosine of the embeddings of 10 texts: " in said
    assert "left out: the masked-token head" in said
    file = GGUFReader(tmp_path / "out" / "model.gguf")
    assert file.fields["general.architecture"].contents() == "jina-bert-v2"
    assert len(file.fields["tokenizer.ggml.tokens"].data) == 300
    rows = {tensor.name: list(tensor.shape) for tensor in file.tensors}
    assert rows["token_embd.weight"] == [48, 300] and rows["blk.1.ffn_gate.weight"] == [48, 64]


def wordpieces(folder: Path, *, lower_case: bool = True) -> Path:
    """Write a WordPiece vocabulary of 300 pieces: letters, some words, and rows of no use."""
    letters = sorted({*string.ascii_lowercase, *string.punctuation, *"0123456789äß東京ελάд"})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    pieces += "the committee met water it was best of worst times mask typed ##ed ##ism".split()
    pieces += [f"[unused{number}]" for number in range(300 - len(pieces))]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    configured = {"do_lower_case": lower_case}
    (folder / "tokenizer_config.json").write_text(json.dumps(configured))
    return folder


def test_bert_and_its_wordpiece_are_bert_there(tmp_path, capsys):
    place = make_export(tmp_path / "run", wordpieces(tmp_path / "data"), BERT)
    export(place, tmp_path / "out")
    file = GGUFReader(tmp_path / "out" / "model.gguf")
    assert file.fields["general.architecture"].contents() == "bert"
    assert file.fields["tokenizer.ggml.model"].contents() == "bert"
    assert "ids are equal; 1 - cosine" in capsys.readouterr().out


def test_a_vocabulary_that_keeps_case_has_no_place_there(tmp_path):
    place = make_export(tmp_path / "run", wordpieces(tmp_path / "data", lower_case=False), BERT)
    with pytest.raises(UserError, match="keeps case, and llama.cpp's WordPiece always folds it"):
        export(place, tmp_path / "out")


def test_a_gate_in_the_values_place_is_refused(place, tmp_path, monkeypatch):
    tensors = llama_cpp.tensors

    def swapped(source):
        found = tensors(source)
        gate, value = "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"
        return {**found, gate: found[value], value: found[gate]}

    monkeypatch.setattr(llama_cpp, "tensors", swapped)
    with pytest.raises(UserError, match="computes something else: ids are equal.*; 1 - cosine"):
        export(place, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_other_ids_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_tokenizer, "as_there", lambda _, ids: [*ids, 3])
    with pytest.raises(UserError, match="llama.cpp cuts The committee met .* into the pieces"):
        export(place, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", ["classifier", "span_classifier"])
def test_a_finetuned_head_has_no_place_there(finetune_place, tmp_path, head):
    place = make_export(tmp_path / "run", finetune_place / "data", RAPIDBERT, head)
    with pytest.raises(UserError, match="a finetuned head, which llama.cpp has no place for"):
        export(place, tmp_path / "out")


def test_what_is_no_gguf_is_said(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(UserError, match="llama.cpp cannot load it"):
        Server(tmp_path / "model.gguf", 64)
