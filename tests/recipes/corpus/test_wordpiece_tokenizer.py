import json
import re
import shutil
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_scenarios import ODD_TEXTS, SPECIAL_LINES, sample_texts, write_vocabulary
from transformers import AutoTokenizer, BertTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from recipes.common.errors import UserError
from recipes.corpus.tokenizer import open_tokenizer


@pytest.fixture(scope="module", params=["uncased", "cased"])
def directory(request, tmp_path_factory):
    """A vocabulary with pieces of the odd texts, so that they are not all unknown."""
    path = tmp_path_factory.mktemp(request.param)
    texts = [*sample_texts(50), *ODD_TEXTS, "Kalo RENSU Tavo " * 9]
    write_vocabulary(path / "vocab.txt", texts, 900, cased=request.param == "cased")
    rules = {"do_lower_case": request.param == "uncased"}
    (path / "tokenizer_config.json").write_text(json.dumps(rules))
    return path


@pytest.fixture(scope="module")
def tokenizer(directory):
    return open_tokenizer(directory)


def test_ids_are_those_of_the_lines(tokenizer, directory):
    lines = (directory / "vocab.txt").read_text().split("\n")[:-1]
    assert tokenizer.pieces == tuple(lines) and tokenizer.vocab_size == len(lines)
    assert list(tokenizer.special_ids.values()) == list(SPECIAL_LINES.values())
    assert all(lines[index] == piece for piece, index in SPECIAL_LINES.items())
    assert tokenizer.lower_case == (directory.name.startswith("uncased"))


@pytest.fixture(scope="module")
def others(directory, tokenizer):
    """Transformers' own: in Rust, and the algorithm in Python. Neither may look for [MASK]."""
    given = {"do_lower_case": tokenizer.lower_case}
    file = str(directory / "vocab.txt")
    slow = BertTokenizerLegacy(file, **given)
    return (
        BertTokenizerFast(vocab=file, **given),
        lambda text: [
            slow._convert_token_to_id(piece)
            for word in slow.basic_tokenizer.tokenize(text)
            for piece in slow.wordpiece_tokenizer.tokenize(word)
        ],
    )


def is_old(text: str) -> bool:
    """Whether both have the same tables: Python's and Rust's are of other versions of Unicode, and
    the algorithm in Python composes characters, which BERT's own did not.
    """
    assigned = all(unicodedata.ucd_3_2_0.category(character) != "Cn" for character in text)
    return assigned and unicodedata.is_normalized("NFC", text)


def assert_equal_ids(tokenizer, others, text):
    fast, slow = others
    found = tokenizer.encode(text)
    encoded = fast(text, add_special_tokens=False, split_special_tokens=True)
    assert found == encoded["input_ids"], text
    if is_old(text):
        assert found == slow(text), text
    assert tokenizer.encode_with_offsets(text)[0] == found
    assert tokenizer.encode_batch([text, text]) == [found, found]
    assert not {0, 101, 102, 103} & {*found}, "text cannot inject special ids"


def test_odd_texts_have_the_ids_of_transformers(tokenizer, others):
    for text in ODD_TEXTS:
        assert_equal_ids(tokenizer, others, text)
    assert sum(map(is_old, ODD_TEXTS)) > 25


@settings(deadline=None, max_examples=200)
@given(text=st.lists(st.one_of(st.text(max_size=6), st.sampled_from(ODD_TEXTS))).map(" ".join))
def test_any_text_has_the_ids_of_transformers(tokenizer, others, text):
    assert_equal_ids(tokenizer, others, text)


def test_offsets_are_of_the_text_as_it_was_given(tmp_path):
    path = write_vocabulary(tmp_path / "vocab.txt", ["kalo resume ab a b 語"], 200)
    tokenizer = open_tokenizer(path)
    text = "  KALO\tre\u0301sumé, \u00adab\x00語x"
    ids, spans = tokenizer.encode_with_offsets(text)
    words = {
        text[begin:end] for index, (begin, end) in zip(ids, spans, strict=True) if index != 100
    }
    assert {"KALO", "re\u0301sumé", "語"} <= words
    assert spans == sorted(spans) and spans[-1][1] == len(text)


def test_decode_joins_pieces_and_leaves_special_ones_out(tokenizer):
    text = "kalo rensumikalolo , tavo"
    ids = tokenizer.encode(text)
    assert len(ids) > 4, "pieces within words"
    assert tokenizer.decode([101, *ids, 103, 102, 0]) == text
    assert tokenizer.decode([]) == ""
    begins = [tokenizer.begins_word(index) for index in ids]
    assert sum(begins) == 4 and not all(begins)
    assert tokenizer.shown(ids[0]) == tokenizer.pieces[ids[0]]


def test_transformers_reads_the_files(tokenizer, others, tmp_path):
    for name, content in tokenizer.files(512).items():
        (tmp_path / name).write_bytes(content)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    assert auto.model_max_length == 512 and auto.mask_token_id == 103
    for text in ODD_TEXTS:
        ids = auto(text, split_special_tokens=True)["input_ids"]
        assert ids == [101, *tokenizer.encode(text), 102], text
    pair = auto("kalo", "rensu")
    second = len(tokenizer.encode("rensu")) + 1
    assert pair["token_type_ids"] == [0] * (len(pair["input_ids"]) - second) + [1] * second
    assert auto("a [MASK] b")["input_ids"].count(103) == 1, "as fill-mask needs it"
    assert auto.decode(tokenizer.encode("kalo , rensu")) == "kalo , rensu"
    again = open_tokenizer(tmp_path)
    assert again.path.name == "tokenizer.json"
    assert again.fingerprint == tokenizer.fingerprint == open_tokenizer(again.path).fingerprint
    assert again.files(512) == tokenizer.files(512)
    (tmp_path / "tokenizer.json").unlink()
    assert open_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_a_tokenizer_that_transformers_wrote_is_read(directory, tokenizer, tmp_path):
    BertTokenizerFast(
        vocab=str(directory / "vocab.txt"), do_lower_case=tokenizer.lower_case
    ).save_pretrained(tmp_path)
    assert open_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_without_rules_capitals_in_the_vocabulary_tell(directory, tokenizer, tmp_path):
    shutil.copy(directory / "vocab.txt", tmp_path)
    assert open_tokenizer(tmp_path / "vocab.txt").fingerprint == tokenizer.fingerprint


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]


def content(**changes):
    """A tokenizer.json of BERT's kind, with other values by their dotted names."""
    value = {
        "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "lowercase": True, "clean_text": True}
        | {"handle_chinese_chars": True, "strip_accents": None},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
        | {"max_input_chars_per_word": 100, "vocab": {p: i for i, p in enumerate(VOCABULARY)}},
    }
    for name, change in changes.items():
        *parents, last = name.split("__")
        at = value
        for parent in parents:
            at = at[parent]
        at[last] = change
    return value


def written(path, value):
    path.write_text(json.dumps(value))
    return open_tokenizer(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer__lowercase": False},
        {"normalizer__strip_accents": False},
        {"normalizer__handle_chinese_chars": False},
        {"normalizer__clean_text": False},
        {"model__max_input_chars_per_word": 50},
        {"model__vocab": {p: i for i, p in enumerate([*VOCABULARY, "c"])}},
        {"model__vocab": {p: i for i, p in enumerate(reversed(VOCABULARY))}},
    ],
)
def test_whatever_decides_ids_is_in_the_fingerprint(tmp_path, changes):
    plain = written(tmp_path / "tokenizer.json", content())
    assert plain.fingerprint == written(tmp_path / "tokenizer.json", content()).fingerprint
    assert written(tmp_path / "tokenizer.json", content(**changes)).fingerprint != plain.fingerprint


def refusal(path):
    with pytest.raises(UserError) as caught:
        open_tokenizer(path)
    return "\n".join(caught.value.faults)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([*VOCABULARY, "c", "a"], "line 9 is 'a', as line 6 is"),
        ([*VOCABULARY, "[MASK]"], r"line 8 is '\[MASK\]', as line 5 is"),
        ([*VOCABULARY[:5], "", "a", "", "b"], "blank line 6, 8; the pieces behind it would move"),
        (["[PAD]", "a"], r"no piece \[UNK\]\n.*no piece \[CLS\]\n.*no piece \[SEP\]\n.*no piece"),
    ],
)
def test_a_vocabulary_with_faults_is_refused(tmp_path, lines, said):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(lines) + "\n")
    assert re.search(said, refusal(path))


def test_what_is_no_vocabulary_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("[PAD]\nStraße\n".encode("latin-1"))
    assert "not UTF-8 (byte 10)" in refusal(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_bytes("[PAD]\n".encode("utf-16"))
    assert "not UTF-8 (byte 0)" in refusal(tmp_path / "vocab.txt")
    assert "cannot read the tokenizer: No such file" in refusal(tmp_path / "other.txt")
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    assert "damaged: not JSON" in refusal(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("[]")
    assert "not an object of JSON" in refusal(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no tokenizer there: tokenizer.model, tokenizer.json or vocab.txt" in refusal(empty)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__type": "BPE"}, "its model is BPE; read is WordPiece\nBPE|BPE is not supported"),
        ({"model__type": "Unigram"}, "SentencePiece model is read from its tokenizer.model"),
        ({"normalizer": None}, "its normalizer is missing; read is BertNormalizer"),
        ({"pre_tokenizer__type": "Whitespace"}, "its pre_tokenizer is Whitespace; read is Bert"),
        ({"model__continuing_subword_prefix": "@@"}, "must begin with ##"),
        ({"model__vocab": {"[PAD]": 0, "a": 2}}, "the ids of its pieces are not 0 to 1, each once"),
        (
            {"added_tokens": [{"id": 7, "content": "<new>"}]},
            "added token '<new>': only the special",
        ),
        ({"added_tokens": [{"id": 9, "content": "[SEP]"}]}, r"\[SEP\] has the ids 9 and 3"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(tmp_path, changes, said):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content(**changes)))
    assert re.search(said, refusal(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__vocab": None}, "model.vocab is missing; an object of pieces and their ids"),
        ({"model__vocab": VOCABULARY}, 'model.vocab is ["[PAD]", "[UNK]"'),
        ({"model__vocab__a": "5"}, "model.vocab: the id of 'a' is \"5\"; a number"),
        ({"model__vocab__a": -1}, "model.vocab: the id of 'a' is -1; a number"),
        ({"model": []}, "model is []; an object"),
        ({"normalizer": ["BertNormalizer"]}, 'normalizer is ["BertNormalizer"]; an object'),
        (
            {"normalizer": {"type": "BertNormalizer"}},
            "normalizer.lowercase is missing; true or false",
        ),
        ({"normalizer__clean_text": 1}, "normalizer.clean_text is 1; true or false"),
        ({"model__max_input_chars_per_word": "9"}, 'model.max_input_chars_per_word is "9"; a'),
        ({"added_tokens": {"[SEP]": 3}}, 'added_tokens is {"[SEP]": 3}; a list'),
        (
            {"added_tokens": [{"id": 3, "content": "[SEP]"}, {"content": "[SEP]"}]},
            'added_tokens[1] is {"content": "[SEP]"}; an object with a number `id`',
        ),
        ({"added_tokens": ["[SEP]"]}, 'added_tokens[0] is "[SEP]"; an object with a number `id`'),
    ],
)
def test_a_damaged_file_is_refused_by_the_name_of_its_key(tmp_path, changes, said):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content(**changes)))
    assert f"{path}: {said}" in refusal(tmp_path)


def test_all_damages_are_named_at_once(tmp_path):
    value = content(model__max_input_chars_per_word="9", added_tokens=[{}])
    del value["model"]["vocab"], value["normalizer"]["lowercase"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    assert len(refusal(tmp_path).splitlines()) == 4


def test_files_that_contradict_each_other_are_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content()))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY, "c"]))
    said = refusal(tmp_path)
    assert "do_lower_case is False, in tokenizer.json it is True" in said
    assert "vocab.txt: its pieces are not those of tokenizer.json" in said
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": "no"}))
    (tmp_path / "tokenizer.json").unlink()
    assert "do_lower_case is 'no'; true or false" in refusal(tmp_path)
