"""Embeddings for a new vocabulary, against sums written out piece by piece."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from model.config import ModelConfig
from model.weights import DECODER_BIAS, NEVER_PREDICTED, WORD_EMBEDDINGS
from recipes.corpus.sentencepiece_training import train_tokenizer
from recipes.corpus.tokenizer import Tokenizer, open_tokenizer
from recipes.training.carry_over import carry_over

OLD_WORDS = (
    "the patient was seen in the clinic and the nurse saw the patient again after treatment by the "
    "doctor of medicine with the heart monitor during surgery"
).split()
NEW_WORDS = (
    "The patients were treated in the outpatient clinics and nurses treated them again while "
    "doctors monitored hearts in surgeries and the treatment continued"
).split()
WIDTH = 6


@pytest.fixture(scope="module")
def folded(tmp_path_factory) -> Tokenizer:
    return trained(tmp_path_factory.mktemp("old"), OLD_WORDS, 303, "nmt_nfkc_cf")


@pytest.fixture(scope="module")
def cased(tmp_path_factory) -> Tokenizer:
    return trained(tmp_path_factory.mktemp("new"), NEW_WORDS, 296, "nmt_nfkc")


def trained(directory: Path, words: list[str], pieces: int, normalizer: str) -> Tokenizer:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=20)) for _ in range(300)]
    return train_tokenizer(texts, directory / "tokenizer.model", pieces, normalizer=normalizer)


def without_prefix(tokenizer: Tokenizer) -> SentencePieceProcessor:
    """SentencePiece's own reading of a text as the middle of a word."""
    model = ModelProto.FromString(Path(tokenizer.path).read_bytes())
    model.normalizer_spec.add_dummy_prefix = False
    return SentencePieceProcessor(model_proto=model.SerializeToString())


def test_every_row_is_the_mean_of_its_parts(folded, cased):
    carried = carry_over(folded, cased)
    config = ModelConfig("x", 1, WIDTH, 1, 4, vocab_size=cased.vocab_size)
    torch.manual_seed(0)
    tensors = {
        WORD_EMBEDDINGS: torch.randn(320, WIDTH),
        DECODER_BIAS: torch.randn(320),
        "other": torch.ones(2),
    }
    changed = carried.apply(tensors, config, seed=1)
    words, bias = changed[WORD_EMBEDDINGS], changed[DECODER_BIAS]
    assert words.shape == (320, WIDTH) and bias.shape == (320,)
    assert changed["other"] is tensors["other"]
    old_rows = {piece: index for index, piece in enumerate(folded.pieces)}
    within = without_prefix(folded)
    shared = continued = 0
    for index, piece in enumerate(cased.pieces):
        if piece in old_rows:
            shared += 1
            assert torch.equal(words[index], tensors[WORD_EMBEDDINGS][old_rows[piece]]), piece
            assert torch.equal(bias[index], tensors[DECODER_BIAS][old_rows[piece]]), piece
            continue
        begins = piece.startswith("\u2581")
        parts = (folded.encode if begins else within.encode)(piece.replace("\u2581", " "))
        assert parts, piece
        continued += not begins and parts != folded.encode(piece)
        row = sum(tensors[WORD_EMBEDDINGS][part] for part in parts) / len(parts)
        torch.testing.assert_close(words[index], row, rtol=0, atol=1e-6)
        own = sum(tensors[DECODER_BIAS][part] for part in parts) / len(parts)
        torch.testing.assert_close(bias[index], own, rtol=0, atol=1e-6)
    assert continued, "a piece that would have other parts as a word of its own"
    assert 5 + 256 < shared < cased.vocab_size
    assert carried.shared == shared and carried.drawn == 0
    assert (bias[cased.vocab_size :] == NEVER_PREDICTED).all()
    said = f"{shared:,} of 296 pieces keep their rows, {296 - shared} begin as the mean of their"
    assert str(carried).startswith(said)


def test_the_parts_of_a_piece_within_a_word_are_within_words(tmp_path):
    """`a` joins `io` to a piece of its own, so `b` is what the text is cut behind."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ours = ["a", "b", "aio", "io", "##io", "##logy", "me"]
    theirs = ["##iology", "iology", "##me"]
    tokenizers = []
    for name, pieces in (("old", ours), ("new", theirs)):
        path = tmp_path / name / "vocab.txt"
        path.parent.mkdir()
        path.write_text("\n".join([*special, *pieces]) + "\n")
        tokenizers.append(open_tokenizer(path))
    old = [*special, *ours].index
    assert carry_over(*tokenizers).parts[len(special) :] == (
        (old("##io"), old("##logy")),
        (old("io"), old("##logy")),
        (old("me"),),  # no part within a word is known
    )


def test_a_capital_begins_as_its_small_letter_did(folded, cased):
    capital = cased.pieces.index("\u2581The")
    assert carry_over(folded, cased).parts[capital] == (folded.pieces.index("\u2581the"),)


class Words:
    """A vocabulary of WordPiece's kind, with special pieces elsewhere and no bytes."""

    pad_id, unk_id, cls_id, sep_id, mask_id = 3, 4, 5, 6, 7
    pieces = ("the", "##s", "Ω", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "clinic", "##clinic")
    vocab_size = len(pieces)

    def begins_word(self, index: int) -> bool:
        return not self.pieces[index].startswith("##")

    def encode(self, text: str) -> list[int]:
        return [index for word in text.split() for index in [self._find(word)]]

    def _find(self, word: str) -> int:
        return self.pieces.index(word) if word in self.pieces else self.unk_id


def test_between_kinds_the_place_in_the_word_counts_and_special_pieces_go_by_role(folded):
    carried = carry_over(folded, Words())  # type: ignore[arg-type]
    old = folded.pieces.index
    assert carried.parts[0] == (old("\u2581the"),) and carried.parts[1] == (old("s"),)
    assert carried.parts[3:8] == ((0,), (1,), (2,), (3,), (4,))
    spelt = tuple(folded.encode("Ω"))
    assert len(spelt) > 1 and carried.parts[2] == spelt  # in bytes


def test_what_the_old_tokenizer_does_not_know_is_drawn(folded):
    old = Words()
    carried = carry_over(old, folded)  # type: ignore[arg-type]
    assert carried.drawn > 250  # bytes, which are no text
    assert carried.parts[folded.pieces.index("\u2581the")] == (0,)
    config = ModelConfig("x", 1, WIDTH, 1, 4, vocab_size=folded.vocab_size)
    torch.manual_seed(0)
    rows = torch.randn(64, WIDTH) * 3 + 5
    tensors = {WORD_EMBEDDINGS: rows, DECODER_BIAS: torch.arange(64.0)}
    words = carried.apply(tensors, config, seed=1)[WORD_EMBEDDINGS]
    drawn = torch.tensor([not parts for parts in carried.parts])
    new = words[: folded.vocab_size][drawn]
    std, mean = torch.std_mean(rows[: old.vocab_size], dim=0)
    torch.testing.assert_close(new.mean(0), mean, rtol=0, atol=float(std.max()) / 4)
    torch.testing.assert_close(new.std(0), std, rtol=0.2, atol=0)
    assert torch.equal(words, carried.apply(tensors, config, seed=1)[WORD_EMBEDDINGS])
    assert not torch.equal(words, carried.apply(tensors, config, seed=2)[WORD_EMBEDDINGS])
    bias = carried.apply(tensors, config, seed=1)[DECODER_BIAS][: folded.vocab_size]
    assert (bias[drawn] == 4.5).all()  # the mean of 0 to 9
