import random

import pytest
from tokenizer_scenarios import sample_texts

import recipes.corpus.sentencepiece_training
from recipes.common.errors import UserError
from recipes.corpus.sentencepiece_training import train_tokenizer


def test_text_without_spaces_is_thinned_evenly_and_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("recipes.corpus.sentencepiece_training._UNBROKEN_BYTES_PER_PIECE", 100)
    draw = random.Random(0)
    dna = "".join(draw.choices("acgt", k=120_000))
    words = sample_texts(20)
    sentences = list(recipes.corpus.sentencepiece_training._sentences([*words, dna], 10**9))
    thinned = recipes.corpus.sentencepiece_training._thinned(sentences, 300)
    assert f"{len(dna):,} bytes of text almost without spaces" in capsys.readouterr().out
    assert thinned[:20] == words  # words are no matter of it
    kept = [sentences.index(text) - 20 for text in thinned[20:]]
    assert kept == list(range(0, 120, 4))  # 30,000 bytes of 120,000
    assert recipes.corpus.sentencepiece_training._thinned(sentences[:49], 300) == sentences[:49]
    assert train_tokenizer([dna], tmp_path / "dna.model", 280).encode("acgtacgt")


def test_training_says_that_it_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("recipes.corpus.sentencepiece_training._SIGN_OF_LIFE_SECONDS", 0.01)
    train_tokenizer(sample_texts(), tmp_path / "t.model", 400)
    assert "training the tokenizer: at it for 0 s" in capsys.readouterr().out


def test_only_the_sample_is_read_and_long_lines_are_cut_not_lost(tmp_path):
    read = []

    def texts():
        for n in range(1000):
            read.append(n)
            yield "kalo " * 2000  # 10,000 characters, in one line

    train_tokenizer(texts(), tmp_path / "t.model", 267, sample_bytes=30_000)
    assert len(read) <= 5
    sentences = list(
        recipes.corpus.sentencepiece_training._sentences(["kalo " * 2000, "x" * 2500], 10**9)
    )
    assert max(map(len, sentences)) <= 1000
    assert " ".join(sentences[:-3]) == ("kalo " * 2000).strip()
    assert "".join(sentences[-3:]) == "x" * 2500


def test_a_vocabulary_that_cannot_be_is_told_with_the_nearest_that_can(tmp_path):
    with pytest.raises(UserError, match=r"at most --vocab-size (\d+)") as caught:
        train_tokenizer(sample_texts(20), tmp_path / "t.model", 30522)
    largest = int(str(caught.value).rsplit(" ", 1)[1])
    assert train_tokenizer(sample_texts(20), tmp_path / "t.model", largest).vocab_size == largest
    with pytest.raises(UserError, match=r"at least --vocab-size 27\d"):
        train_tokenizer(sample_texts(20), tmp_path / "u.model", 262)
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(["", " \n "], tmp_path / "u.model", 300)
    assert [path.name for path in tmp_path.iterdir()] == ["t.model"]
