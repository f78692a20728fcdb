import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from recipes.common.errors import UserError
from recipes.corpus.encode_shards import (
    Encoding,
    ShardPlan,
    encode_portion,
    encode_portions,
)
from recipes.corpus.held_out import HeldOut, document_hash
from recipes.corpus.sentencepiece_training import train_tokenizer
from recipes.corpus.text_records import Span
from recipes.corpus.text_sources import Portion

DOCUMENTS = [f"the document number {n} holds {n * 37 % 1009} words" for n in range(600)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(DOCUMENTS, tmp_path_factory.mktemp("t") / "tokenizer.model", 290)


def make_encoding(tmp_path, tokenizer, held_out_below=0, max_bad_fraction=0.01):
    output = tmp_path / "shards"
    output.mkdir()
    return Encoding(output, tokenizer.path, "text", HeldOut(held_out_below), max_bad_fraction)


def write(path, documents):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return Portion((Span("jsonl", str(path), size=path.stat().st_size),))


def stored(output, prefix, tokenizer):
    """Documents of a shard as megatron-core reads them."""
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    dataset = indexed_dataset.IndexedDataset(str(output / prefix))
    return [dataset[n].tolist() for n in range(len(dataset))]


def test_megatron_reads_what_was_encoded(tmp_path, tokenizer):
    encoding = make_encoding(tmp_path, tokenizer)
    portion = write(tmp_path / "a.jsonl", [*DOCUMENTS, " ", "\u200b"])
    result = encode_portion(ShardPlan("train", 3, portion), encoding, tokenizer)
    expected = [tokenizer.encode(text) for text in DOCUMENTS]
    assert stored(encoding.output, "train-00003", tokenizer) == expected
    assert result.shards["train"]["documents"] == len(DOCUMENTS)
    assert result.skipped.counts == {"empty": 2}  # the second holds only what is normalised away
    flat = np.concatenate(expected)
    assert (result.token_counts["train"] == np.bincount(flat, minlength=290)).all()
    assert result.text_bytes == sum(len(text.encode()) for text in DOCUMENTS)


def test_documents_are_held_out_by_hash(tmp_path, tokenizer):
    below = 2**64 // 10
    encoding = make_encoding(tmp_path, tokenizer, held_out_below=below)
    portion = write(tmp_path / "a.jsonl", DOCUMENTS + DOCUMENTS[:50])
    result = encode_portion(ShardPlan("train", 0, portion), encoding, tokenizer)
    held_out = [text for text in DOCUMENTS + DOCUMENTS[:50] if document_hash(text) < below]
    assert 30 < len(held_out) < 100
    assert result.shards["validation"]["documents"] == len(held_out)
    validation = stored(encoding.output, "validation-00000", tokenizer)
    assert validation == [tokenizer.encode(text) for text in held_out]
    train = stored(encoding.output, "train-00000", tokenizer)
    assert not {tuple(ids) for ids in train} & {tuple(ids) for ids in validation}
    # The validation input is never held out from itself.
    result = encode_portion(ShardPlan("validation", 7, portion), encoding, tokenizer)
    assert list(result.shards) == ["validation"]
    assert result.shards["validation"]["documents"] == len(DOCUMENTS) + 50


def test_a_failing_portion_stops_the_others_and_leaves_only_whole_shards(tmp_path, tokenizer):
    encoding = make_encoding(tmp_path, tokenizer)
    (tmp_path / "broken.jsonl").write_text("{\n" * 5000)
    broken = Portion((Span("jsonl", str(tmp_path / "broken.jsonl")),))
    good = [write(tmp_path / f"{n}.jsonl", DOCUMENTS * 5) for n in range(4)]
    shards = [ShardPlan("train", number, p) for number, p in enumerate([broken, *good])]
    with pytest.raises(UserError, match=r"unusable.*not valid JSON \(first: .*broken\.jsonl:1\)"):
        list(encode_portions(shards, encoding, workers=2))
    left = {path.name for path in encoding.output.iterdir()}
    assert not any(name.endswith(".partial") for name in left)
    assert {n[:-4] for n in left if n.endswith(".bin")} == {n[:-4] for n in left if ".idx" in n}


def test_a_killed_worker_is_an_error_not_a_hang(tmp_path, tokenizer):
    encoding = make_encoding(tmp_path, tokenizer)
    os.mkfifo(tmp_path / "pipe.jsonl")  # its reader waits for ever
    portion = Portion((Span("jsonl", str(tmp_path / "pipe.jsonl")),))
    shards = [ShardPlan("train", number, portion) for number in range(2)]

    def kill_one_child():
        with open(tmp_path / "pipe.jsonl", "wb"):  # opens when a worker reads
            pid = multiprocessing.active_children()[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            killed.wait()

    killed = threading.Event()
    thread = threading.Thread(target=kill_one_child)
    thread.start()
    with pytest.raises(UserError, match="a worker process was killed"):
        list(encode_portions(shards, encoding, workers=2))
    killed.set()
    thread.join()


def test_workers_end_with_their_parent(tmp_path, tokenizer):
    encoding = make_encoding(tmp_path, tokenizer)
    os.mkfifo(tmp_path / "pipe.jsonl")
    code = f"""
from pathlib import Path
from recipes.corpus.encode_shards import *
from recipes.corpus.text_records import Span
if __name__ == "__main__":
    portion = Portion((Span("jsonl", {str(tmp_path / "pipe.jsonl")!r}),))
    paths = Path({str(encoding.output)!r}), Path({str(encoding.tokenizer)!r})
    shards = [ShardPlan("train", number, portion) for number in range(2)]
    list(encode_portions(shards, Encoding(*paths, "text", HeldOut(), 0.0), 2))
"""
    (tmp_path / "parent.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")], env=environment, stdout=subprocess.PIPE
    )
    with open(tmp_path / "pipe.jsonl", "wb"):  # opens when a worker reads
        parent.kill()
        # Every worker holds the other end of the parent's output: it ends when all have.
        assert parent.stdout is not None
        assert parent.stdout.read() == b""
    parent.wait()


def test_an_encoder_process_imports_nothing_heavy():
    code = "import recipes.corpus.encode_shards, sys; print({'torch', 'datasets'} & {*sys.modules})"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
