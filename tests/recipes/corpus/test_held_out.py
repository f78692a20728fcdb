import bz2
import gzip
import json

import numpy as np
import pytest
from preparation_scenarios import documents, stored

from recipes import prepare_data
from recipes.common.errors import UserError
from recipes.corpus.held_out import HeldOut, document_hash, find_held_out, hash_below
from recipes.corpus.text_records import Span
from recipes.corpus.text_sources import Portion
from recipes.corpus.tokenizer import open_tokenizer


def jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def portion(path, texts):
    path.write_bytes(jsonl(texts))
    return Portion((Span("jsonl", str(path), size=path.stat().st_size),))


def former_hash_below(texts, fraction):
    """As it was before sorted input was thought of: the first 10 / fraction documents decide."""
    hashes = [document_hash(text) for text in texts[: int(10 / fraction)]]
    return max(int(fraction * 2**64), min(hashes) + 1)


@pytest.mark.parametrize("count, fraction", [(5000, 0.01), (5000, 0.3), (20, 0.01), (2, 0.01)])
@pytest.mark.parametrize("seed", range(5))
def test_ordinary_input_is_split_as_ever(tmp_path, count, fraction, seed):
    texts = documents(count, seed)
    found = hash_below([portion(tmp_path / "a.jsonl", texts)], fraction, "text", 0.01)
    former = former_hash_below(texts, fraction)
    held = [[text for text in texts if document_hash(text) < below] for below in (found, former)]
    if len(held[1]) < count:  # then nothing was left to train on
        assert held[0] == held[1]
    assert 0 < len(held[0]) < count


@pytest.mark.parametrize("front", [1000, 3000])
def test_a_front_of_equal_documents_decides_nothing(tmp_path, capsys, front):
    texts = ["the same"] * front + documents(5000)
    first = portion(tmp_path / "a.jsonl", texts[:2000])
    found = hash_below([first, portion(tmp_path / "b.jsonl", texts[2000:])], 0.01, "text", 0.01)
    assert found == int(0.01 * 2**64)
    assert "1 different among the first 1,000 documents: reading on" in capsys.readouterr().out


def test_a_front_of_two_documents_does_not_hold_out_half(tmp_path):
    texts = ["one", "another"] * 700 + documents(5000)
    assert hash_below([portion(tmp_path / "a", texts)], 0.01, "text", 0.01) == int(0.01 * 2**64)


def test_something_is_left_to_train_on(tmp_path):
    for seed in range(20):
        texts = documents(3, seed)
        below = hash_below([portion(tmp_path / "a", texts)], 0.9, "text", 0.01)
        assert 0 < sum(document_hash(text) < below for text in texts) < 3


def test_a_large_input_of_equal_documents_is_refused(tmp_path):
    with pytest.raises(UserError, match="3,000 usable documents in the input; they are all alike"):
        hash_below([portion(tmp_path / "a", ["same"] * 3000)], 0.01, "text", 0.01)


def test_documents_of_the_validation_input_are_known_by_hash(tmp_path):
    texts = documents(300)
    training = [portion(tmp_path / "b", texts)]
    held_out = find_held_out(training, [portion(tmp_path / "a", texts[::3])], 0.0, "text", 0.01)
    assert [text in held_out for text in texts] == [n % 3 == 0 for n in range(300)]
    assert not HeldOut().is_left_out(0)
    ends = HeldOut(documents=np.array([0, 2**64 - 1], np.uint64))
    assert [ends.is_left_out(key) for key in (0, 1, 2**64 - 1)] == [True, False, True]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_bytes(jsonl(documents(500)))
    (tmp_path / "corpus" / "val.jsonl").write_bytes(jsonl(documents(560)[500:]))
    return tmp_path / "corpus"


def absolute(path):
    return str(path)


def relative(path):
    return "corpus/../corpus/val.jsonl"


def dotted(path):
    return "./corpus/val.jsonl"


def linked(path):
    (path.parents[1] / "link.jsonl").symlink_to(path)
    return "link.jsonl"


def hard_linked(path):
    (path.parents[1] / "hard.jsonl").hardlink_to(path)
    return "hard.jsonl"


def copied(path):
    (path.parents[1] / "copy.json").write_bytes(path.read_bytes())
    return "copy.json"


def compressed(path):
    (path.parents[1] / "val.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    return "val.jsonl.gz"


def compressed_twice(path):
    """Compressed in the input, compressed otherwise outside of it."""
    path.with_name("val.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    (path.parents[1] / "val.jsonl.bz2").write_bytes(bz2.compress(path.read_bytes()))
    path.unlink()
    return "val.jsonl.bz2"


def as_an_array(path):
    texts = [json.loads(line) for line in path.read_text().splitlines()]
    (path.parents[1] / "val.json").write_text(json.dumps(texts, indent=1))
    return "val.json"


@pytest.mark.parametrize(
    "called",
    [absolute, relative, dotted, linked, hard_linked]
    + [copied, compressed, compressed_twice, as_an_array],
)
def test_held_out_text_is_not_trained_on_whatever_its_file_is_called(corpus, tmp_path, called):
    options = ["--input", "corpus", "--validation-input", called(corpus / "val.jsonl")]
    more = ["--output", "data", "--vocab-size", "320", "--workers", "1"]
    assert prepare_data.main([*options, *more]) == 0
    tokenizer = open_tokenizer(tmp_path / "data")
    expected = [tokenizer.encode(text) for text in documents(560)]
    assert stored(tmp_path / "data", "train") == expected[:500]
    assert stored(tmp_path / "data", "validation") == expected[500:]
    skipped = json.loads((tmp_path / "data" / "manifest.json").read_text())["source"]["skipped"]
    by_text = called in (copied, compressed, compressed_twice, as_an_array)
    assert skipped == ({"in the validation input": 60} if by_text else {})


def test_a_copy_of_all_of_the_input_leaves_nothing_to_train_on(corpus, tmp_path):
    (tmp_path / "copy.jsonl.gz").write_bytes(gzip.compress(jsonl(documents(560))))
    options = ["--input", "corpus", "--validation-input", "copy.jsonl.gz", "--output", "data"]
    with pytest.raises(UserError, match=r"nothing is left to train on: .* \(560 records\)"):
        prepare_data.main(options)
