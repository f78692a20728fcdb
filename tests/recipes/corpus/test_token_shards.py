import errno
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from recipes.common.errors import UserError
from recipes.corpus import token_shards
from recipes.corpus.token_shards import ShardWriter, open_shards, token_dtype


def random_documents(vocab_size, count=50):
    generator = np.random.default_rng(vocab_size)
    return [generator.integers(0, vocab_size, n) for n in generator.integers(1, 200, count)]


def write_shard(prefix, documents, vocab_size):
    with ShardWriter(prefix, vocab_size) as writer:
        for document in documents:
            writer.add(document)
    return writer.info


def write_shard_with_megatron(prefix, documents, vocab_size):
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    for document in documents:
        builder.add_document(torch.from_numpy(document), [len(document)])
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("vocab_size", [30522, 65499, 65500, 70000])
def test_token_type_is_megatrons(vocab_size):
    assert token_dtype(vocab_size) == DType.optimal_dtype(vocab_size)


@pytest.mark.parametrize("vocab_size", [1000, 70000])
def test_megatron_reads_what_we_write(tmp_path, vocab_size):
    documents = random_documents(vocab_size)
    info = write_shard(tmp_path / "train-00000", documents, vocab_size)
    dataset = IndexedDataset(str(tmp_path / "train-00000"))
    assert info["documents"] == len(dataset) == len(documents)
    assert info["tokens"] == sum(map(len, documents))
    np.testing.assert_array_equal(dataset.document_indices, np.arange(len(documents) + 1))
    for found, expected in zip(dataset, documents, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("vocab_size", [1000, 70000])
@pytest.mark.parametrize("index_chunk", [7, 1 << 20])
def test_files_are_megatrons_to_the_byte(tmp_path, monkeypatch, vocab_size, index_chunk):
    monkeypatch.setattr(token_shards, "_INDEX_CHUNK", index_chunk)
    documents = random_documents(vocab_size)
    info = write_shard(tmp_path / "ours", documents, vocab_size)
    write_shard_with_megatron(tmp_path / "theirs", documents, vocab_size)
    for suffix in ("bin", "idx"):
        ours = (tmp_path / f"ours.{suffix}").read_bytes()
        assert ours == (tmp_path / f"theirs.{suffix}").read_bytes()
        assert len(ours) == info[f"{suffix}_bytes"]
        assert hashlib.sha256(ours).hexdigest() == info[f"{suffix}_sha256"]


@pytest.mark.parametrize("vocab_size", [1000, 70000])
def test_we_read_what_megatron_writes(write_token_data, vocab_size):
    documents = random_documents(vocab_size)
    data_dir = write_token_data({"train": [documents]}, vocab_size)
    write_shard_with_megatron(data_dir / "train-00000", documents, vocab_size)
    opened = open_shards(data_dir, "train")
    (shard,) = opened.shards
    assert opened.documents == len(documents)
    assert opened.tokens == len(shard.tokens)
    starts = shard.pointers // shard.tokens.itemsize
    for start, length, expected in zip(starts, shard.lengths, documents, strict=True):
        np.testing.assert_array_equal(shard.tokens[start : start + length], expected)


def test_an_interrupted_shard_leaves_nothing_and_an_earlier_one_alone(tmp_path):
    earlier = write_shard(tmp_path / "train-00000", random_documents(1000), 1000)
    for prefix in ("train-00000", "train-00001"):
        with pytest.raises(RuntimeError), ShardWriter(tmp_path / prefix, 1000) as writer:
            writer.add(np.arange(5))
            raise RuntimeError
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {
        "train-00000.bin": earlier["bin_bytes"],
        "train-00000.idx": earlier["idx_bytes"],
    }


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "train-00000", random_documents(1000), 1000)
    assert not list(tmp_path.iterdir())


def test_documents_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="document 1 .* is empty"):
        write_shard(tmp_path / "a", [np.arange(3), np.arange(0)], 1000)
    with pytest.raises(ValueError, match="ids 0 to 1000; a vocabulary of 1000 pieces has 0 to 999"):
        write_shard(tmp_path / "a", [np.arange(1001)], 1000)
    with pytest.raises(ValueError, match="ids -1 to -1"):
        write_shard(tmp_path / "a", [np.array([-1])], 1000)
    with pytest.raises(ValueError, match="at least one document"):
        write_shard(tmp_path / "a", [], 1000)
    assert not list(tmp_path.iterdir())


def faults_of(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        open_shards(*args, **kwargs)
    return caught.value.faults


def test_all_faults_are_named_at_once(token_data):
    (token_data / "train-00000.bin").unlink()
    idx = token_data / "train-00001.idx"
    size = idx.stat().st_size
    os.truncate(idx, size - 1)
    (token_data / "train-00002.idx").write_bytes(
        b"garbage".ljust((token_data / "train-00002.idx").stat().st_size)
    )
    faults = faults_of(token_data, "train", tokenizer_fingerprint="other")
    assert len(faults) == 4
    assert "other" in faults[0] and "0123abcd" in faults[0]
    assert "train-00000.bin: missing" in faults[1]
    assert f"train-00001.idx: {size - 1:,} bytes, the manifest says {size:,}" in faults[2]
    assert "train-00002.idx: not a Megatron index" in faults[3]


def test_counts_that_contradict_the_manifest(token_data):
    path = token_data / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"]["shards"][0]["documents"] += 1
    manifest["splits"]["train"]["shards"][1]["tokens"] += 1
    path.write_text(json.dumps(manifest))
    documents, tokens = faults_of(token_data, "train")
    assert "97 documents, the manifest says 98" in documents
    assert "tokens of 2 bytes are not" in tokens


def test_a_manifest_that_was_changed_by_hand_is_damaged(token_data):
    path = token_data / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["splits"]["train"]["documents"]
    manifest["splits"]["train"]["shards"][0]["prefix"] = None
    manifest["tokenizer"]["vocab_size"] = "many"
    path.write_text(json.dumps(manifest))
    (fault,) = faults_of(token_data, "train")
    for said in ("train.documents is missing", "shards[0].prefix is None", "vocab_size is 'many'"):
        assert said in fault
    assert "prepare again: python recipes/prepare_data.py" in fault


def test_an_index_of_another_version_says_which_ones_are_read(token_data):
    path = token_data / "train-00001.idx"
    content = bytearray(path.read_bytes())
    content[17] = 5  # the token type, behind 9 bytes of magic and 8 of version
    path.write_bytes(content)
    (fault,) = faults_of(token_data, "train")
    assert f"{path}: version 1 and token type 5 of a Megatron index; RapidBERT reads" in fault


def test_unprepared_directories_say_how_to_prepare_them(token_data, tmp_path):
    assert open_shards(token_data, "validation", tokenizer_fingerprint="0123abcd").split
    (fault,) = faults_of(token_data, "test")
    assert "no split 'test'; it has train, validation" in fault
    manifest = token_data / "manifest.json"
    for content, expected in (('{"format": 9}', "format 9"), ("[]", "format None"), ("{", "JSON")):
        manifest.write_text(content)
        (fault,) = faults_of(token_data, "train")
        assert expected in fault and "prepare_data.py" in fault
    manifest.unlink()
    (fault,) = faults_of(token_data, "train")
    assert "did not finish" in fault and f"--output {token_data}" in fault
    (fault,) = faults_of(tmp_path / "nowhere", "train")
    assert "no such directory" in fault


def test_encoders_start_without_torch():
    command = "import recipes.corpus.token_shards, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0
