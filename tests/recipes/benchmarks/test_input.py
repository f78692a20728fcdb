import json
import sys

import numpy as np
import pytest

from recipes import benchmark
from recipes.benchmarks import input as benchmark_input
from recipes.corpus.mlm_batches import MlmBatches
from recipes.corpus.sentencepiece_training import train_tokenizer
from recipes.corpus.token_shards import open_shards
from recipes.corpus.tokenizer import open_tokenizer

PNG = b"\x89PNG"


@pytest.fixture
def text_data(tmp_path, write_token_data):
    """A prepared directory with a tokenizer, of text that its tokenizer gives back."""
    words = [f"{a}{b}{c}" for a in "bdfgkl" for b in "aeiou" for c in "mnprst"]
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, 200)) for _ in range(40)]
    train_tokenizer(texts, tmp_path / "tokenizer.model", vocab_size=320)
    tokenizer = open_tokenizer(tmp_path)
    documents = [np.array(tokenizer.encode(text)) for text in texts]
    data_dir = write_token_data({"train": [documents]}, tokenizer.vocab_size)
    (tmp_path / "tokenizer.model").rename(data_dir / "tokenizer.model")
    manifest = json.loads((data_dir / "manifest.json").read_text())
    manifest["tokenizer"]["fingerprint"] = tokenizer.fingerprint
    (data_dir / "manifest.json").write_text(json.dumps(manifest))
    return data_dir, texts


def input_benchmark(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(benchmark_input, "PASS_SEQUENCES", 64)
    monkeypatch.setattr(benchmark_input, "REPEATS", 2)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "input", *arguments])
    benchmark.main()
    return capsys.readouterr().out


def test_input_record_of_text(monkeypatch, capsys, tmp_path, text_data):
    data_dir, _ = text_data
    arguments = ["--data", str(data_dir), "--micro_batch", "8", "--output", str(tmp_path / "out")]
    out = input_benchmark(monkeypatch, capsys, *arguments)
    record = json.loads((tmp_path / "out" / "input.json").read_text())
    assert (tmp_path / "out" / "input.png").read_bytes().startswith(PNG)
    assert str(tmp_path / "out" / "input.json") in out and "MB/s" in out

    points = {point["micro_batch"]: point for point in record["batches"]}
    assert list(points) == sorted([8, *benchmark_input.SWEPT_MICRO_BATCHES])
    batches = MlmBatches(open_shards(data_dir, "train"), seed=0, micro_batch=8)
    made = [batches[item] for item in range(64 // 8)]
    rows = np.array([[len(b.input_ids), len(b.labels)] for b in made])
    used = np.array([[b.real_tokens, b.masked_tokens] for b in made])
    padding = 1 - used.sum(axis=0) / rows.sum(axis=0)
    assert points[8]["padding_share"] == pytest.approx(padding[0])
    assert points[8]["masked_padding_share"] == pytest.approx(padding[1])
    assert points[8]["shapes"] == len(np.unique(rows, axis=0))
    assert points[8]["tokens_per_sequence"] == pytest.approx(used[:, 0].sum() / 64)
    for rate in (points[8]["tokens_per_second"], record["tokenizer_mb_per_second"]):
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]


def test_tokenisation_is_measured_on_the_text_itself(monkeypatch, text_data):
    data_dir, texts = text_data
    tokenizer = open_tokenizer(data_dir)
    seen = []
    monkeypatch.setattr(
        benchmark_input, "encode_documents", lambda _, given: seen.append(list(given))
    )
    monkeypatch.setattr(benchmark_input, "rates", lambda work, repeats: work())
    megabytes = benchmark_input.measure_tokenizer(open_shards(data_dir, "train"), tokenizer)
    assert seen == [texts]
    assert megabytes == pytest.approx(sum(map(len, texts)) / 1e6)


def test_input_record_without_data(monkeypatch, capsys, tmp_path):
    write = benchmark_input.write_synthetic_data
    monkeypatch.setattr(
        benchmark_input, "write_synthetic_data", lambda directory: write(directory, 100)
    )
    out = input_benchmark(monkeypatch, capsys, "--output", str(tmp_path))
    record = json.loads((tmp_path / "input.json").read_text())
    assert record["settings"]["documents"] == 100
    assert record["tokenizer_mb_per_second"] is None
    assert "not measured: synthetic data have no text" in out


def test_a_tokenizer_of_other_data_is_refused(monkeypatch, capsys, text_data, tmp_path):
    data_dir, _ = text_data
    manifest = json.loads((data_dir / "manifest.json").read_text())
    manifest["tokenizer"]["fingerprint"] = "other"
    (data_dir / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="tokenizer does not match the data"):
        input_benchmark(monkeypatch, capsys, "--data", str(data_dir), "--output", str(tmp_path))
