import errno
import gzip
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import preparation_scenarios as scenarios
import pytest
from preparation_scenarios import documents, stored
from sentencepiece import sentencepiece_model_pb2

from recipes.common.errors import UserError
from recipes.corpus.preparation_progress import Progress
from recipes.corpus.sentencepiece_training import train_tokenizer
from recipes.corpus.token_shards import ShardWriter, open_shards
from recipes.corpus.tokenizer import open_tokenizer
from recipes.prepare_data import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Four files, more than four portions: an uncompressed one is cut, a compressed one shared."""
    monkeypatch.setattr("recipes.corpus.text_sources.MIN_PORTION_BYTES", 4096)
    directory = tmp_path / "corpus"
    directory.mkdir()
    texts = documents(3000)
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (directory / "a.jsonl").write_text("".join(lines[:1500]))
    (directory / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[1500:2900]).encode()))
    (directory / "c.txt").write_text("\n\n".join(texts[2900:]))
    return directory


def prepare(corpus, output, *more):
    return scenarios.prepare(corpus, output, "--shards", "6", *more)


def snapshot(output):
    return {path.name: path.read_bytes() for path in output.iterdir()}


def test_every_document_is_stored_whole_once_and_the_books_agree(corpus, tmp_path, capsys):
    output = tmp_path / "data"
    assert prepare(corpus, output) == 0
    tokenizer = open_tokenizer(output)
    train, validation = stored(output, "train"), stored(output, "validation")
    expected = [tuple(tokenizer.encode(text)) for text in documents(3000)]
    assert Counter(map(tuple, train + validation)) == Counter(expected)
    assert 10 <= len(validation) <= 60  # 1% of 3000, by hash
    manifest = json.loads((output / "manifest.json").read_text())
    assert len(manifest["splits"]["train"]["shards"]) > 4
    assert manifest["source"]["documents"] == 3000
    assert manifest["source"]["text_bytes"] == sum(len(text.encode()) for text in documents(3000))
    assert manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    special_ids = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert manifest["tokenizer"]["special_ids"] == special_ids
    counts = Counter(index for document in train for index in document)
    total = counts.total()
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    assert manifest["splits"]["train"]["unigram_entropy_nats"] == pytest.approx(entropy)
    assert not (output / "progress.json").exists()
    assert f"{total:,}" in capsys.readouterr().out


def test_the_result_does_not_depend_on_the_number_of_workers(corpus, tmp_path):
    prepare(corpus, tmp_path / "one")
    prepare(corpus, tmp_path / "two", "--workers", "2")
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_a_stopped_preparation_continues_and_ends_the_same(corpus, tmp_path, monkeypatch):
    prepare(corpus, tmp_path / "straight")
    output = tmp_path / "stopped"
    encoded = []
    save = Progress.save

    def save_twice_then_fail(self, directory):
        save(self, directory)
        encoded.append(len(self.finished))
        if len(self.finished) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "save", save_twice_then_fail)
    assert prepare(corpus, output) == 130
    assert not (output / "manifest.json").exists()
    (output / "train-00002.bin.partial").write_bytes(b"torn")  # as a kill would leave it
    before = (output / "train-00000.bin").stat().st_mtime_ns
    with pytest.raises(UserError, match="vocab_size = 320, now it is 330"):
        prepare(corpus, output, "--vocab-size", "330")
    assert prepare(corpus, output) == 0
    assert encoded[3] == 3  # 0, 1, 2, then on from there
    assert (output / "train-00000.bin").stat().st_mtime_ns == before
    assert snapshot(output) == snapshot(tmp_path / "straight")


def test_a_full_disk_is_told_and_nothing_half_written_stays(corpus, tmp_path, monkeypatch):
    output = tmp_path / "data"
    add = ShardWriter.add

    def add_until_full(self, tokens):
        if self.prefix.name == "train-00001" and self.documents == 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, tokens)

    with monkeypatch.context() as full:
        full.setattr(ShardWriter, "add", add_until_full)
        with pytest.raises(UserError, match="no space left"):
            prepare(corpus, output)
    names = set(snapshot(output))
    assert "manifest.json" not in names and "train-00001.bin" not in names
    assert not any(name.endswith(".partial") for name in names)
    with pytest.raises(UserError, match="did not finish"):
        open_shards(output, "train")
    assert prepare(corpus, output) == 0


def test_a_prepared_directory_is_left_alone(corpus, tmp_path, capsys):
    output = tmp_path / "data"
    prepare(corpus, output)
    before = snapshot(output)
    capsys.readouterr()
    assert prepare(corpus, output, "--workers", "2") == 0
    assert "already prepared" in capsys.readouterr().out
    assert snapshot(output) == before
    with pytest.raises(UserError, match="max_documents = None, now it is 10"):
        prepare(corpus, output, "--max-documents", "10")
    (output / "train-00001.idx").write_bytes(b"")
    with pytest.raises(UserError, match=r"train-00001\.idx: 0 bytes, \d+ were written"):
        prepare(corpus, output)
    assert prepare(corpus, output, "--overwrite") == 0
    assert snapshot(output) == before
    with open(corpus / "c.txt", "a") as file:
        file.write("\n\none more document")
    with pytest.raises(UserError, match="the input files have changed"):
        prepare(corpus, output)


def test_foreign_shards_are_not_overwritten_unasked(corpus, tmp_path):
    output = tmp_path / "data"
    output.mkdir()
    (output / "train-00000.bin").write_bytes(b"precious")
    (output / "notes.txt").write_text("kept")
    with pytest.raises(UserError, match="holds train-00000.bin but neither"):
        prepare(corpus, output)
    assert (output / "train-00000.bin").read_bytes() == b"precious"
    assert prepare(corpus, output, "--overwrite") == 0
    assert (output / "notes.txt").read_text() == "kept"


def test_an_existing_tokenizer_is_used_as_it_is(corpus, tmp_path):
    prepare(corpus, tmp_path / "first")
    model = tmp_path / "first" / "tokenizer.model"
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(documents(50, seed=1)))
    options = ["--input", str(other), "--output", str(tmp_path / "second"), "--workers", "1"]
    assert main([*options, "--tokenizer", str(model)]) == 0
    assert (tmp_path / "second" / "tokenizer.model").read_bytes() == model.read_bytes()
    # The tokenizer may be the one in the directory that is started again.
    again = tmp_path / "second" / "tokenizer.model"
    assert main([*options, "--tokenizer", str(again), "--overwrite"]) == 0
    assert again.read_bytes() == model.read_bytes()
    with pytest.raises(UserError, match="brings its own vocabulary"):
        main([*options, "--tokenizer", str(model), "--vocab-size", "320"])


def test_a_validation_input_is_kept_out_of_training(corpus, tmp_path, capsys):
    output = tmp_path / "data"
    assert prepare(corpus, output, "--validation-input", str(corpus / "c.txt")) == 0
    tokenizer = open_tokenizer(output)
    assert stored(output, "validation") == [tokenizer.encode(t) for t in documents(3000)[2900:]]
    assert len(stored(output, "train")) == 2900
    assert f"validation only: {corpus / 'c.txt'}" in capsys.readouterr().out


@pytest.mark.parametrize("count", [2, 3, 10, 100])
def test_even_a_few_documents_give_a_validation_split(tmp_path, count):
    few = tmp_path / "few.txt"
    few.write_text("\n\n".join(documents(count)))
    model = train_tokenizer(documents(300), tmp_path / "tokenizer.model", 320).path
    options = ["--input", str(few), "--output", str(tmp_path / "data"), "--tokenizer", str(model)]
    assert main(options) == 0
    train, validation = (stored(tmp_path / "data", split) for split in ("train", "validation"))
    assert len(train) + len(validation) == count
    assert 1 <= len(validation) <= max(1, count // 20)


@pytest.mark.parametrize(
    "text, message",
    [
        ("the only document", "1 usable document in"),
        ("alike\n\nalike\n\nalike\n", "3 usable documents .* all alike"),
        ("\n\n \n", "0 usable documents"),
    ],
)
def test_a_single_document_cannot_be_split(tmp_path, text, message):
    path = tmp_path / "one.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        prepare(path, tmp_path / "data")


def test_a_failed_preparation_leaves_no_empty_directory(tmp_path):
    (tmp_path / "one.txt").write_text("only one document\n")
    with pytest.raises(UserError, match="at least two different ones"):
        main(["--input", str(tmp_path / "one.txt"), "--output", str(tmp_path / "data")])
    assert not (tmp_path / "data").exists()


def test_bad_records_are_reported_up_to_a_limit(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}) for text in documents(200)]
    lines[7] = "{"
    lines[11] = '{"body": 1}'
    path.write_text("\n".join(lines))
    assert prepare(path, tmp_path / "data") == 0
    out = capsys.readouterr().out
    assert f"1 not valid JSON (first: {path}:8); 1 without 'text' (first: {path}:12)" in out
    lines[20] = "{"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"3 of 200 records are unusable \(1\.5%\)"):
        prepare(path, tmp_path / "strict")
    assert not (tmp_path / "strict" / "manifest.json").exists()
    assert prepare(path, tmp_path / "strict", "--max-bad-fraction", "0.02") == 0


def test_a_truncated_file_stops_the_preparation(corpus, tmp_path):
    path = corpus / "b.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"b\.jsonl\.gz: truncated"):
        prepare(corpus, tmp_path / "data")
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_limit_of_documents(corpus, tmp_path):
    assert prepare(corpus, tmp_path / "data", "--max-documents", "700") == 0
    tokenizer = open_tokenizer(tmp_path / "data")
    found = stored(tmp_path / "data", "train") + stored(tmp_path / "data", "validation")
    assert sorted(found) == sorted(tokenizer.encode(text) for text in documents(700))


def test_all_faults_are_told_at_once_before_anything_is_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        main(
            ["--input", str(tmp_path / "missing.jsonl"), "--output", str(tmp_path / "file")]
            + ["--vocab-size", "100", "--workers", "0", "--validation-fraction", "1"]
            + ["--config", "en"]
        )
    assert len(caught.value.faults) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_dry_run_writes_nothing(corpus, tmp_path, capsys):
    assert prepare(corpus, tmp_path / "data", "--dry-run") == 0
    assert not (tmp_path / "data").exists()
    out = capsys.readouterr().out
    assert "vocab_size = 320" in out
    planned = int(re.search(r"train : (\d+) shards", out)[1])
    prepare(corpus, tmp_path / "data")
    assert len(list((tmp_path / "data").glob("train-*.bin"))) == planned > 4
    with pytest.raises(UserError, match="was started with max_documents = None, now it is 9"):
        prepare(corpus, tmp_path / "data", "--max-documents", "9", "--dry-run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    with pytest.raises(UserError, match=r"holds a run or a model \(config.json\)"):
        prepare(corpus, tmp_path / "run", "--dry-run")


def test_text_is_kept_exactly_where_the_normalizer_says_so(tmp_path):
    code = [f"def f{n}(x):\n    if x:\n\t\treturn  x\u200c  # \u2581\n  " for n in range(300)]
    path = tmp_path / "code.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in code))
    output = tmp_path / "data"
    assert prepare(path, output, "--normalizer", "identity", "--vocab-size", "300") == 0
    tokenizer = open_tokenizer(output)
    found = stored(output, "train") + stored(output, "validation")
    assert sorted(map(tokenizer.decode, found)) == sorted(code)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["tokenizer"]["normalizer"] == "identity"
    assert manifest["tokenizer"]["keeps_text"] and not manifest["tokenizer"]["lower_case"]
    with pytest.raises(UserError, match="normalizer = 'identity', now it is 'nmt_nfkc'"):
        prepare(path, output, "--cased", "--vocab-size", "300")


def test_normalizers_that_contradict_other_options_are_refused(corpus, tmp_path):
    output, model = tmp_path / "data", tmp_path / "tokenizer.model"
    train_tokenizer(documents(300), model, 320)
    with pytest.raises(UserError, match="--cased keeps case, --normalizer nfkc_cf folds it; nfkc"):
        prepare(corpus, output, "--cased", "--normalizer", "nfkc_cf")
    with pytest.raises(UserError, match="--tokenizer brings its own normaliser"):
        main(
            ["--input", str(corpus), "--output", str(output)]
            + ["--tokenizer", str(model), "--normalizer", "nfkc"]
        )
    assert not output.exists()


def test_another_tokenizer_with_the_same_pieces_is_noticed(corpus, tmp_path):
    model, other = tmp_path / "tokenizer.model", tmp_path / "other.model"
    tokenizer = train_tokenizer(documents(300), model, 320)
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.proto)
    proto.normalizer_spec.add_dummy_prefix = False
    other.write_bytes(proto.SerializeToString())
    command = ["--input", str(corpus), "--output", str(tmp_path / "data"), "--workers", "1"]
    assert main([*command, "--tokenizer", str(model)]) == 0
    with pytest.raises(UserError, match="was started with tokenizer = "):
        main([*command, "--tokenizer", str(other)])


def test_inputs_changed_in_place_are_noticed(corpus, tmp_path, capsys):
    output = tmp_path / "data"
    prepare(corpus, output)
    before = (corpus / "c.txt").stat()
    text = (corpus / "c.txt").read_text()
    (corpus / "c.txt").write_text(text.replace("river", "rifle"))
    os.utime(corpus / "c.txt", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(UserError, match="written again since, with the same sizes"):
        prepare(corpus, output)
    os.utime(corpus / "c.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert prepare(corpus, output) == 0
    assert "already prepared" in capsys.readouterr().out


def test_what_an_older_version_prepared_is_recognised(corpus, tmp_path, capsys):
    """Its books name neither the normaliser nor the times of the inputs."""
    output = tmp_path / "data"
    prepare(corpus, output, "--cased")
    path = output / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["options"]["normalizer"], manifest["source"]["input_times"]
    path.write_text(json.dumps(manifest))
    assert prepare(corpus, output, "--cased") == 0
    assert "already prepared" in capsys.readouterr().out
    with pytest.raises(UserError, match="normalizer = 'nmt_nfkc', now it is 'identity'"):
        prepare(corpus, output, "--normalizer", "identity")


def test_a_second_preparation_into_one_directory_is_refused(corpus, tmp_path, monkeypatch):
    output = tmp_path / "data"
    command = [sys.executable, "recipes/prepare_data.py", "--input", str(corpus)]
    command += ["--output", str(output), "--vocab-size", "320", "--workers", "1", "--shards", "6"]
    second = []
    save = Progress.save

    def start_another(self, directory):
        save(self, directory)
        if not second:  # in the middle of the first one
            for more in ([], ["--overwrite"]):
                second.append(
                    subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)
                )

    monkeypatch.setattr(Progress, "save", start_another)
    assert prepare(corpus, output) == 0
    for refused in second:
        assert refused.returncode == 2
        assert "another process is preparing data into it right now (pid" in refused.stderr
    manifest = json.loads((output / "manifest.json").read_text())
    for info in manifest["splits"]["train"]["shards"]:
        for suffix in ("bin", "idx"):
            written = (output / f"{info['prefix']}.{suffix}").read_bytes()
            assert hashlib.sha256(written).hexdigest() == info[f"{suffix}_sha256"]
    assert prepare(corpus, output, "--overwrite") == 0
    assert (output / ".lock").read_text().startswith(f"pid {os.getpid()} on ")
    # Looking needs no lock. (The input's portions are other ones in another process.)
    look = [*command, "--overwrite", "--dry-run"]
    after = subprocess.run(look, cwd=ROOT, capture_output=True, text=True)
    assert after.returncode == 0, after.stderr


@pytest.mark.parametrize("command", [["recipes/prepare_data.py"], ["-m", "recipes.prepare_data"]])
def test_both_ways_to_start_it(tmp_path, command):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(documents(100)))
    options = ["--input", str(path), "--output", str(tmp_path / "data"), "--vocab_size"]
    full = [sys.executable, *command, *options]
    done = subprocess.run([*full, "300"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no bar where nobody looks
    failed = subprocess.run([*full, "30522"], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "vocab_size = 300, now it is 30522" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_an_input_given_twice_does_not_lose_the_first(tmp_path, capsys):
    words = ["--input", "a.txt", "--input=b.txt", "--output", str(tmp_path / "out"), "--dry-run"]
    with pytest.raises((SystemExit, UserError)) as caught:
        main(words)
    said = str(caught.value) + capsys.readouterr().err
    assert "--input: is there 2 times and the last would win" in said
