"""embed.py against hidden states averaged by hand, text by text."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
from inference_scenarios import texts

from model.encoder import RapidBert
from recipes.common.errors import UserError
from recipes.corpus.tokenizer import open_tokenizer
from recipes.embed import main
from recipes.inference import computing
from recipes.tasks import finetune_memory


def by_hand(export, given, max_length=512) -> np.ndarray:
    model, tokenizer = RapidBert.from_pretrained(export), open_tokenizer(export)
    vectors = []
    for text in given:
        ids = [tokenizer.cls_id, *tokenizer.encode(text)[: max_length - 2], tokenizer.sep_id]
        with torch.no_grad():
            vectors.append(model(torch.tensor([ids]))[0].mean(0).numpy())
    return np.stack(vectors)


@pytest.fixture
def embed(models, tmp_path):
    """Runs embed.py on a model and an input; returns its status and what it wrote."""

    def run(model: str, source: str, *more: str, output: str = "out.npy"):
        status = main(
            ["--checkpoint", str(models / model), "--input", str(tmp_path / source)]
            + ["--output", str(tmp_path / output), *more]
        )
        assert not list(tmp_path.glob("*.partial"))
        read = np.load if output.endswith(".npy") else pyarrow.parquet.read_table
        return status, read(tmp_path / output)

    return run


@pytest.mark.parametrize("model", ["pretrained", "single"])
def test_vectors_are_means_over_real_tokens_in_the_order_of_the_input(
    models, embed, tmp_path, monkeypatch, model
):
    monkeypatch.setattr(computing, "CHUNK_RECORDS", 7)
    monkeypatch.setitem(computing.PLACES, "cpu", 100)
    given = [*texts(30), "", " ".join(texts(60))]  # the last one is longer than 512 tokens
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in given))
    status, found = embed(model, "in.txt")
    expected = by_hand(models / model / "export", given)
    assert status == 0 and found.dtype == np.float32 and found.shape == (32, 64)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    _, units = embed(model, "in.txt", "--normalize")
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(units, expected / lengths, atol=1e-6)


def test_vectors_are_those_of_sentence_transformers(models, embed, tmp_path):
    """Its model and its pooling, on a padded batch; the token ids are ours."""
    from sentence_transformers import SentenceTransformer

    export = models / "pretrained" / "export"
    given = [*texts(10), "", " ".join(texts(60))]
    (tmp_path / "in.txt").write_text("\n".join(given))
    _, found = embed("pretrained", "in.txt")
    theirs = SentenceTransformer(str(export), trust_remote_code=True, device="cpu")
    tokenizer, longest = open_tokenizer(export), theirs.max_seq_length
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    rows = [[cls, *tokenizer.encode(text)[: longest - 2], sep] for text in given]
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    with torch.no_grad():
        features = theirs({"input_ids": ids, "attention_mask": (ids != 0).long()})
    np.testing.assert_allclose(found, features["sentence_embedding"].numpy(), atol=5e-6)


def test_parquet_has_the_columns_of_the_records(models, embed, tmp_path):
    given = texts(4)
    rows = [{"nr": nr, "body": text, "tags": ["x"]} for nr, text in enumerate(given)]
    rows[2] = {"nr": 2, "body": None, "tags": []}
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = ["--text-columns", "body"]
    status, table = embed("pretrained", "in.jsonl", *columns, output="out.parquet")
    assert status == 1 and table.column_names == ["nr", "body", "tags", "embedding", "error"]
    assert table["nr"].to_pylist() == ["0", "1", "2", "3"]
    assert table["tags"].to_pylist() == ['["x"]', '["x"]', "[]", '["x"]']
    assert table["body"].to_pylist() == [given[0], given[1], None, given[3]]
    error = f"{tmp_path / 'in.jsonl'}:3: None is no text"
    assert table["error"].to_pylist() == [None, None, error, None]
    vectors = table["embedding"].to_pylist()
    assert vectors.pop(2) is None
    expected = by_hand(models / "pretrained" / "export", [given[0], given[1], given[3]])
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_a_record_that_cannot_be_used_is_a_row_of_nan(embed, tmp_path, capsys):
    (tmp_path / "in.txt").write_bytes(b"a\n\xff\nb\n")
    status, found = embed("pretrained", "in.txt")
    assert status == 1 and np.isnan(found).all(1).tolist() == [False, True, False]
    assert "1 of 3 records could not be used; their rows are NaN" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
def test_an_empty_input_gives_an_empty_output(embed, tmp_path, output):
    (tmp_path / "in.txt").write_bytes(b"")
    status, found = embed("pretrained", "in.txt", output=output)
    assert status == 0 and len(found) == 0
    if output == "out.npy":
        assert found.shape == (0, 64)
    else:
        assert found.column_names == ["embedding", "error"]


def test_faults_come_all_at_once(models, tmp_path):
    call = ["--checkpoint", str(tmp_path), "--input", "none.txt", "--output", "out.csv"]
    with pytest.raises(UserError) as found:
        main([*call, "--text-columns", "a", "b"])
    said = "\n".join(found.value.faults)
    for fault in ("no export there", "none.txt: no such file", "written are .npy", "a single text"):
        assert fault in said


def test_other_numbers_than_numbers_are_an_error(models, embed, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "model.sentence_encoder.mean_pool",
        lambda hidden, offsets: torch.full((len(offsets) - 1, 64), torch.nan),
    )
    (tmp_path / "in.txt").write_text("a\n")
    with pytest.raises(UserError, match="for 1 of 1 texts the model computes something else"):
        embed("pretrained", "in.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_a_text_that_attention_has_no_memory_for_is_refused_with_the_length_that_fits(
    models, embed, tmp_path, monkeypatch
):
    """2 heads of ALiBi's bias in fp32 and distances: 20 bytes for each pair of 40 tokens."""
    monkeypatch.setattr(finetune_memory, "host_bytes", lambda: 20 * 30**2)
    (tmp_path / "in.txt").write_text("fine\n" + "fine " * 100)
    with pytest.raises(UserError, match="a text of 40 tokens: .*; --max-length 30 fits"):
        embed("pretrained", "in.txt", "--max-length", "40")
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
    assert embed("pretrained", "in.txt", "--max-length", "30")[0] == 0
    monkeypatch.setattr(finetune_memory, "host_bytes", lambda: 20 * 7**2)
    with pytest.raises(UserError, match="are free; no text fits"):  # not a length that is refused
        embed("pretrained", "in.txt", "--max-length", "40")
