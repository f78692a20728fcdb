import hashlib
import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizer_scenarios import sample_texts

from recipes.common.errors import UserError
from recipes.corpus.sentencepiece_tokenizer import IDENTITY, NORMALIZERS
from recipes.corpus.sentencepiece_training import train_tokenizer
from recipes.corpus.tokenizer import encode_documents, open_tokenizer, why_not_of_weights
from recipes.corpus.tokenizer_interface import SPECIAL_PIECES


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer(sample_texts(), path, vocab_size=400)


def test_special_pieces_have_the_ids_zero_to_four(tokenizer):
    assert tokenizer.pieces[:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    ids = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id]
    assert [*ids, tokenizer.mask_id] == [0, 1, 2, 3, 4]
    assert tokenizer.vocab_size == len(tokenizer.pieces) == 400


def test_text_cannot_inject_special_ids(tokenizer):
    attacks = [
        *SPECIAL_PIECES,
        "".join(SPECIAL_PIECES),
        " ".join(SPECIAL_PIECES).lower(),
        "▁[MASK]▁[CLS]",
        "［MASK］",  # full width: the normalisation turns it into [MASK]
        "<0x00><0x04><pad><s></s><mask>",
        "\x00\x02\x03\x04",
        "".join(map(chr, range(1, 0x3000))),
    ]
    for text in attacks:
        assert min(tokenizer.encode(text), default=5) > 4, text


def test_every_text_survives_encoding(tokenizer):
    assert tokenizer.decode(tokenizer.encode("Kalo RENSU\n  tavo")) == "kalo rensu tavo"
    assert tokenizer.decode(tokenizer.encode("😀 Größe 語")) == "😀 größe 語"  # by bytes


def test_cased_keeps_case(tmp_path, tokenizer):
    texts = [text.title() for text in sample_texts()]
    cased = train_tokenizer(texts, tmp_path / "c.model", 400, normalizer="nmt_nfkc")
    assert cased.decode(cased.encode("Kalo RENSU")) == "Kalo RENSU"
    assert not cased.lower_case and tokenizer.lower_case
    assert cased.fingerprint != tokenizer.fingerprint


def test_batches_equal_single_texts(tokenizer):
    texts = [*sample_texts(5), "", "x"]
    single = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == single
    arrays = encode_documents(tokenizer, texts)
    assert [array.tolist() for array in arrays] == single
    assert all(array.dtype == np.int32 for array in arrays)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    code = ["def f(x):", "    if x:", "        return x  # twice", "\treturn\tx"] * 30
    path = tmp_path_factory.mktemp("exact") / "tokenizer.model"
    return train_tokenizer(["\n".join(code)], path, 282, normalizer=IDENTITY)


ODD = st.sampled_from(
    [" ", "  ", "\t", "\n", "\r\n", "\u200c", "\u200d", "\u2581", "\ufeff", "\x00"]
)
TEXTS = st.lists(st.one_of(ODD, st.text(max_size=5), st.sampled_from("ab👩‍👩‍👧é語"))).map("".join)


@settings(deadline=None)
@given(TEXTS)
def test_identity_gives_back_every_text(exact, text):
    assert exact.keeps_text and not exact.lower_case
    assert exact.decode(exact.encode(text)) == text
    assert exact.encode_batch([text, text]) == [exact.encode(text)] * 2
    assert min(exact.encode(text), default=5) > 4


@settings(deadline=None)
@given(TEXTS)
def test_offsets_cover_the_text_in_its_order(exact, text):
    """With the tokenizer that changes nothing, where every character is in a piece."""
    ids, spans = exact.encode_with_offsets(text)
    assert ids == exact.encode(text)
    begins, ends = [b for b, _ in spans], [e for _, e in spans]
    assert begins == sorted(begins) and ends == sorted(ends)
    assert all(begin < end for begin, end in spans)
    assert {c for begin, end in spans for c in range(begin, end)} == set(range(len(text)))


def test_offsets_are_of_the_text_as_it_was_given(tokenizer):
    text = "  Kalo  R\ufb01 語"
    ids, spans = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    at = text.index("語")
    assert spans[-3:] == [(at, at + 1)] * 3, "the bytes of a character"
    ligature = text.index("\ufb01")
    assert spans.count((ligature, ligature + 1)) == 2, "which is made of two letters"
    assert text[spans[0][0] : spans[0][1]].strip().lower() == tokenizer.pieces[ids[0]].strip("▁")
    assert tokenizer.encode_with_offsets("") == ([], [])


def test_indentation_becomes_pieces_of_several_spaces(exact):
    assert "\u2581" * 4 in exact.pieces
    assert len(exact.encode("        ")) <= 2


@pytest.mark.parametrize("name", [name for name in NORMALIZERS if name != IDENTITY])
def test_every_normalizer_is_sentencepieces_own(tmp_path, name):
    trained = train_tokenizer(sample_texts(50), tmp_path / "t.model", 300, normalizer=name)
    text = "Kalo  RENSU\tta\u200cvo ﬁ"
    expected = sentencepiece.SentencePieceNormalizer(
        rule_name=name, remove_extra_whitespaces=True, add_dummy_prefix=False
    ).normalize(text)
    expected = expected.replace("\u2581", " ")
    assert trained.decode(trained.encode(text)) == expected
    assert ("\u200c" in expected) == ("\t" in expected) == (not name.startswith("nmt"))
    assert trained.normalizer == name and not trained.keeps_text
    assert trained.lower_case == name.endswith("_cf")


def changed(tokenizer, tmp_path, change):
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.proto)
    change(proto)
    path = tmp_path / "changed.model"
    path.write_bytes(proto.SerializeToString())
    return open_tokenizer(path)


def of_normalizer(field, value):
    return lambda proto: setattr(proto.normalizer_spec, field, value)


def of_training(field, value):
    return lambda proto: setattr(proto.trainer_spec, field, value)


@pytest.mark.parametrize(
    "change",
    [
        of_normalizer("add_dummy_prefix", False),
        of_normalizer("remove_extra_whitespaces", False),
        of_normalizer("escape_whitespaces", False),
        of_normalizer("precompiled_charsmap", b""),
        of_normalizer("name", "user_defined"),
        of_training("treat_whitespace_as_suffix", True),
        of_training("unk_surface", "?"),
        of_training("model_type", 4),  # characters
        lambda proto: setattr(proto.pieces[300], "type", proto.pieces[300].USER_DEFINED),
        lambda proto: setattr(proto.pieces[300], "type", proto.pieces[300].UNUSED),
        lambda proto: setattr(proto.pieces[300], "score", -1.0),
        lambda proto: setattr(proto.pieces[300], "piece", "zzz"),
        lambda proto: proto.denormalizer_spec.MergeFrom(
            sentencepiece_model_pb2.NormalizerSpec(
                precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap
            )
        ),
    ],
)
def test_whatever_decides_ids_or_their_text_is_in_the_fingerprint(tmp_path, tokenizer, change):
    assert changed(tokenizer, tmp_path, change).fingerprint != tokenizer.fingerprint


def test_case_folding_is_seen_whatever_the_normalizer_is_called(tmp_path, tokenizer):
    assert changed(tokenizer, tmp_path, of_normalizer("name", "mine")).lower_case


@pytest.mark.parametrize("name", ["nmt_nfkc_cf", "nmt_nfkc"])
def test_tokenizers_of_earlier_preparations_keep_their_fingerprint(tmp_path, name):
    """Data and exports made when it was of the name and the pieces alone are still recognised."""
    trained = train_tokenizer(sample_texts(50), tmp_path / "t.model", 300, normalizer=name)
    digest = hashlib.sha256(name.encode())
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.proto)
    for index, piece in enumerate(trained.pieces):
        kind = (index in (0, 2, 3, 4), index == 1, 5 <= index < 261, False)
        digest.update(repr((piece, kind, processor.get_score(index))).encode())
    assert trained.fingerprint == digest.hexdigest()


def test_the_fingerprint_is_of_the_vocabulary_not_of_the_file(tmp_path, tokenizer):
    again = train_tokenizer(iter(sample_texts()), tmp_path / "again.model", 400)
    assert again.fingerprint == tokenizer.fingerprint
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.proto)
    proto.trainer_spec.num_threads += 1
    (tmp_path / "threads.model").write_bytes(proto.SerializeToString())
    assert open_tokenizer(tmp_path / "threads.model").fingerprint == tokenizer.fingerprint
    proto.pieces[300].score -= 0.5
    (tmp_path / "score.model").write_bytes(proto.SerializeToString())
    assert open_tokenizer(tmp_path / "score.model").fingerprint != tokenizer.fingerprint


def test_the_vocabulary_file_is_the_one_sentencepiece_writes(tmp_path):
    texts = sample_texts(50)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(tmp_path / "m"),
        vocab_size=300,
        byte_fallback=True,
        pad_id=0,
        pad_piece="[PAD]",
        unk_id=1,
        unk_piece="[UNK]",
        bos_id=2,
        bos_piece="[CLS]",
        eos_id=3,
        eos_piece="[SEP]",
        control_symbols=["[MASK]"],
        minloglevel=2,
    )
    assert open_tokenizer(tmp_path / "m.model").vocabulary() == (tmp_path / "m.vocab").read_text()


def test_foreign_models_are_refused_with_every_reason(tmp_path):
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        open_tokenizer(tmp_path / "missing.model")
    (tmp_path / "garbage.model").write_bytes(b"garbage")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        open_tokenizer(tmp_path / "garbage.model")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample_texts(50)),
        model_writer=model,
        vocab_size=60,
        unk_id=1,
        unk_piece="[UNK]",
        pad_id=0,
        pad_piece="[PAD]",
        bos_id=-1,
        eos_id=-1,
        user_defined_symbols=["[CLS]", "[SEP]"],
        minloglevel=2,
    )
    (tmp_path / "foreign.model").write_bytes(model.getvalue())
    with pytest.raises(UserError) as caught:
        open_tokenizer(tmp_path / "foreign.model")
    assert len(caught.value.faults) == 3
    assert "[CLS] must be a control symbol" in caught.value.faults[0]
    assert "it must be [MASK]" in caught.value.faults[2]


def test_what_shows_that_weights_are_of_another_tokenizer(tokenizer):
    """Too many pieces, far too few, or another fingerprint than the weights' record says."""
    pieces = tokenizer.vocab_size
    fitting = {"fingerprint": tokenizer.fingerprint}
    for rows in (pieces, pieces + 127):
        assert not list(why_not_of_weights(tokenizer, rows, fitting))
        assert not list(why_not_of_weights(tokenizer, rows, {}))
    for rows in (pieces - 1, pieces + 128):
        (fault,) = why_not_of_weights(tokenizer, rows, fitting)
        assert f"{pieces:,} pieces, and the embeddings have {rows:,} rows" in fault
    (fault,) = why_not_of_weights(tokenizer, pieces, {"fingerprint": "another"})
    assert "the weights were trained with another" in fault
