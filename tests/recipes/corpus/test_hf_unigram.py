"""The ids of the exported `tokenizer.json` in transformers, held against SentencePiece's."""

import functools
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizer_scenarios import ODD_TEXTS, sample_texts
from transformers import AutoTokenizer

from recipes.common.errors import UserError
from recipes.corpus.python_docs import python_documents
from recipes.corpus.sentencepiece_tokenizer import NORMALIZERS
from recipes.corpus.sentencepiece_training import train_tokenizer
from recipes.corpus.tokenizer import open_tokenizer

RESERVED = "\ufdd0\ufdd1\ufdd2\ufdd3"
DOCUMENTS = 300

# Marks, bases that take them, parts of Korean syllables, half-width forms, joiners, spaces.
CLINGING = st.sampled_from(
    "aeoAEOİıωΩſqx\u0300\u0301\u0302\u0304\u0307\u0308\u0316\u031b\u0323\u0345\u0651\u064e"
    "\u1100\u1161\u11a8\u3131\u314f\uff76\uff9e\uffa1\uffc2\u3099\u093c\u0915\u0e33\u200c\u200d"
    "\ufe0f\u2122 \t\r\n\u2581\u00a0\u200b\x01\u0600"
)
TEXTS = st.lists(
    st.one_of(CLINGING, st.text(max_size=4), st.sampled_from(["[MASK]", "<0x41>", "[UNK]"]))
).map("".join)


class Both:
    """A tokenizer and what transformers makes of its files."""

    def __init__(self, directory, normalizer):
        texts = [*python_documents()[:DOCUMENTS], *ODD_TEXTS * 3]
        self.ours = train_tokenizer(
            texts, directory / "tokenizer.model", 2000, normalizer=normalizer
        )
        for name, content in self.ours.files(512).items():
            (directory / name).write_bytes(content)
        self.theirs = AutoTokenizer.from_pretrained(directory)

    def check(self, text):
        """The same ids, or other cuts of the same letters that are as good in 32 bits.

        Returns:
            Whether the ids are the same.
        """
        ours = self.ours.encode(text)
        found = self.theirs(text, split_special_tokens=True)["input_ids"]
        assert [found[0], found[-1]] == [self.ours.cls_id, self.ours.sep_id]
        found = found[1:-1]
        assert min(found, default=5) > 4, "text cannot inject special ids"
        if found == ours:
            return True
        mine, others = self._cuts(ours), self._cuts(found)
        assert mine.keys() >= {max(others)}, ascii(text)
        for letters in mine.keys() & others.keys():
            rounding = float(np.spacing(np.float32(abs(mine[letters]))))
            places = sum(other <= letters for other in mine.keys() - others.keys())
            assert abs(mine[letters] - others[letters]) <= 4 * places * rounding, ascii(text)
        return False

    def _cuts(self, ids):
        """The sum of the scores by the number of letters before each cut."""
        letters, total, sums = 0, 0.0, {}
        for index in ids:
            letters += 1 if self.ours._processor.is_byte(index) else len(self.ours.pieces[index])
            total += self.ours._processor.get_score(index)
            sums[letters] = total
        return sums


@pytest.fixture(scope="module", params=NORMALIZERS)
def both(request, tmp_path_factory):
    return Both(tmp_path_factory.mktemp(request.param), request.param)


def test_odd_texts(both):
    same = [both.check(text) for text in ODD_TEXTS if not set(RESERVED) & set(text)]
    assert same.count(False) <= 2, "one letter, or one space, hundreds of times"
    assert len(same) == len(ODD_TEXTS) - 1


def known(text):
    """Without what tokenizers' tables do not compose, and the three reserved characters."""
    late = any(
        unicodedata.category(c) == "Cn" or (c >= "\U00010000" and unicodedata.combining(c))
        for c in text
    )
    return not late and not set(RESERVED) & set(text)


@settings(deadline=None, max_examples=150)
@given(text=TEXTS.filter(known))
def test_any_text(both, text):
    both.check(text)


def test_the_demos_corpus(both):
    """In paragraphs, as no model reads more at a time; whole documents with the first."""
    documents = python_documents()[:DOCUMENTS]
    paragraphs = [line for text in documents for line in text.split("\n")]
    same = [both.check(text) for text in (*paragraphs, *documents)]
    assert same.count(False) <= 1 and len(same) > 3000


def test_transformers_knows_the_special_pieces(both):
    ours, theirs = both.ours, both.theirs
    for role, index in ours.special_ids.items():
        assert getattr(theirs, f"{role}_token_id") == index
    assert len(theirs) == ours.vocab_size and theirs.model_max_length == 512
    assert theirs.convert_ids_to_tokens(4) == "[MASK]"
    pair = theirs("some words", "others")
    second = [*ours.encode("others"), 3]
    first = [2, *ours.encode("some words"), 3]
    assert pair["input_ids"] == first + second
    assert pair["token_type_ids"] == [0] * len(first) + [1] * len(second)


def test_the_mask_piece_is_found_as_fill_mask_needs_it(both):
    """As our fill_mask.py puts it: the space before it belongs to it."""
    ours, theirs = both.ours, both.theirs
    found = theirs("some words [MASK] others [MASK].")["input_ids"]
    parts = [ours.encode(text) for text in ("some words", " others", ".")]
    assert found == [2, *parts[0], 4, *parts[1], 4, *parts[2], 3]


def test_text_comes_back(both):
    for text in ("some words, others", "Straße 語 😀"):
        ids = both.ours.encode(text)
        assert both.theirs.decode(ids) == both.ours.decode(ids)


def test_offsets_are_of_the_text_as_it_was_given(both):
    text = "some  words e\u0301 語 \ufb01x"
    found = both.theirs(text, return_offsets_mapping=True, add_special_tokens=False)
    _, own = both.ours.encode_with_offsets(text)

    def starts(spans):
        """Where pieces begin, behind the white space before them."""
        return [end - len(text[begin:end].lstrip()) for begin, end in spans]

    assert starts(found["offset_mapping"])[:3] == starts(own)[:3]
    assert len(own) == len(found["offset_mapping"]) > 8
    if not both.ours.keeps_text:  # composed, \u0301 is counted to no piece
        assert [text[b:e].strip() for b, e in found["offset_mapping"]][-2:] == ["\ufb01", "x"]


def change(spec, field, value, proto):
    setattr(getattr(proto, spec), field, value)


def without_bytes(proto):
    proto.trainer_spec.byte_fallback = False
    for piece in proto.pieces[5:261]:
        piece.type = piece.UNUSED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (functools.partial(change, "trainer_spec", "model_type", 2), "no unigram model"),
        (without_bytes, "unknown characters"),
        (functools.partial(change, "normalizer_spec", "escape_whitespaces", False), "no mark"),
        (lambda proto: setattr(proto.pieces[290], "type", 4), "user-defined pieces"),
    ],
)
def test_models_without_a_counterpart_are_named(tmp_path, changes, reason):
    plain = train_tokenizer(sample_texts(50), tmp_path / "t.model", 300)
    proto = sentencepiece_model_pb2.ModelProto.FromString(plain.proto)
    changes(proto)
    (tmp_path / "other.model").write_bytes(proto.SerializeToString())
    other = open_tokenizer(tmp_path / "other.model")
    with pytest.raises(UserError, match=f"no tokenizer.json can be made of it: .*{reason}"):
        other.hf_files()
    assert set(other.files()) == {"tokenizer.model", "tokenizer.vocab"}
