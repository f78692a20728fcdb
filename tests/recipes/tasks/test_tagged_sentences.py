"""Files of tagged sentences: both forms, IOB1, and all that can be wrong with them."""

from __future__ import annotations

import gzip
import json

import pytest

from recipes.common.errors import UserError
from recipes.tasks.tagged_sentences import Sentence, load_sentences, read_sentences

COLUMNS = ("words", "tags")
CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP I-ORG
rejects VBZ B-VP O
German JJ B-NP I-MISC
call NN I-NP O

Peter NNP B-NP I-PER
Blackburn NNP I-NP I-PER
"""
WORDS = [
    Sentence(("EU", "rejects", "German", "call"), ("I-ORG", "O", "I-MISC", "O")),
    Sentence(("Peter", "Blackburn"), ("I-PER", "I-PER")),
]


def faults(call, *arguments) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return caught.value.faults


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def good(count):
    return [{"words": ["at", "Rome"], "tags": ["O", "B-LOC"]} for _ in range(count)]


def test_every_form_gives_the_same_sentences(tmp_path):
    notes: list[str] = []
    spaced = tmp_path / "a.conll"
    spaced.write_text(CONLL)
    tabbed = tmp_path / "a.txt.gz"
    tabbed.write_bytes(
        gzip.compress(("\ufeff" + CONLL.replace(" ", "\t")).replace("\n", "\r\n").encode())
    )
    records = [{"tokens": each.words, "ner": each.tags} for each in WORDS]
    objects = lines(tmp_path / "a.jsonl", records)
    for path, columns in ((spaced, COLUMNS), (tabbed, COLUMNS), (objects, ("tokens", "ner"))):
        assert read_sentences(path, columns, notes) == WORDS
    assert not notes


def test_words_may_have_blanks_between_tabs(tmp_path):
    (tmp_path / "a.tsv").write_text("New York\tB-LOC\n\u3000x\tO\n")
    (only,) = read_sentences(tmp_path / "a.tsv", COLUMNS, [])
    assert only == Sentence(("New York", "\u3000x"), ("B-LOC", "O"))


def test_iob1_is_learnt_as_iob2_and_said(tmp_path):
    (tmp_path / "a.conll").write_text(CONLL)
    (tmp_path / "b.conll").write_text("Ann I-PER\nBob B-PER\nLee I-PER\n")
    data = load_sentences(tmp_path / "a.conll", tmp_path / "b.conll")
    assert data.labels == ("O", "B-MISC", "B-ORG", "B-PER", "I-MISC", "I-ORG", "I-PER")
    assert data.train.all[1].tags == ("B-PER", "I-PER")
    assert data.dev["dev"].all[0].tags == ("B-PER", "B-PER", "I-PER")
    train, dev = data.notes
    assert "a.conll: 3 of 3 entities begin with I-, as in IOB1" in train
    assert "b.conll: 1 of 2 entities begin with I-, as in IOB1" in dev


def test_longer_entities_than_in_the_training_set_can_be_predicted(tmp_path):
    train = lines(
        tmp_path / "a.jsonl",
        [{"words": ["Ann", "New", "York"], "tags": ["B-PER", "B-LOC", "I-LOC"]}],
    )
    dev = lines(tmp_path / "b.jsonl", [{"words": ["Ann", "Lee"], "tags": ["B-PER", "I-PER"]}])
    assert load_sentences(train, dev).labels == ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")


def test_sentences_that_cannot_be_used_are_counted(tmp_path):
    bad = [
        ({"words": ["a", "b"], "tags": ["O"]}, "2 words and 1 tags"),
        ({"words": [], "tags": []}, "no words"),
        ({"words": "a b", "tags": ["O"]}, "words are 'a b', no list"),
        ({"words": ["a", " "], "tags": ["O", "O"]}, "' ' is no word"),
        ({"words": ["a", None], "tags": ["O", "O"]}, "None is no word"),
        ({"words": ["a"], "tags": [None]}, "None is no tag"),
        ({"words": ["a", "b"], "tags": ["O", ["O"]]}, r"\['O'\] is no tag"),
        ({"words": ["\ud800"], "tags": ["O"]}, "surrogates not allowed"),
        ({"words": ["a"]}, "no column 'tags'"),
    ]
    for record, reason in bad:
        notes: list[str] = []
        path = lines(tmp_path / "a.jsonl", [*good(100), record])
        assert len(read_sentences(path, COLUMNS, notes)) == 100
        (note,) = notes
        assert note.startswith(f"{path}:101: ") and "1 of 101 records cannot be used" in note
        with pytest.raises(UserError, match=f"{reason}.*1 of 100 records.*|{reason}.*more than 1%"):
            read_sentences(lines(path, [*good(20), record]), COLUMNS, [])


def test_columns_that_cannot_be_used_are_counted(tmp_path):
    path = tmp_path / "a.conll"
    fine = "at O\nRome B-LOC\n\n" * 100
    for wrong in (b"a b O\n", b"a\n", b"\xff O\n"):
        path.write_bytes(fine.encode() + b"x O\n" + wrong + b"y O\n")
        notes: list[str] = []
        assert len(read_sentences(path, COLUMNS, notes)) == 100
        assert f"{path}:301: line 302 " in notes[0] and "1 of 101 records" in notes[0]
    path.write_text("Rome\nis\n")
    (only,) = faults(read_sentences, path, COLUMNS, [])
    assert only.startswith(f"{path}:1: one column; a word and its tag")
    path.write_text("\n-DOCSTART- -X- O\n\n")
    assert faults(read_sentences, path, COLUMNS, []) == (f"{path}: no examples in it",)
    (only,) = faults(read_sentences, tmp_path / "a.train", COLUMNS, [])
    assert ".conll, .txt" in only and ".jsonl" in only


def test_unknown_tags_of_the_development_set(tmp_path):
    train = lines(tmp_path / "a.jsonl", good(5))
    unknown = {"words": ["Ann"], "tags": ["B-PER"]}
    dev = lines(tmp_path / "b.jsonl", [*good(100), unknown])
    data = load_sentences(train, dev)
    assert len(data.dev["dev"]) == 100
    assert "b.jsonl:101: tag 'B-PER' is not in the training set" in data.notes[0]
    (only,) = faults(load_sentences, train, lines(dev, [*good(3), unknown]))
    assert "tag 'B-PER' is not in the training set; 1 of 4 records" in only


def test_all_faults_are_named_at_once(tmp_path):
    wrong = lines(tmp_path / "a.jsonl", [{"words": ["a"], "tags": []}])
    one, two = faults(load_sentences, wrong, tmp_path / "missing.conll")
    assert "1 words and 0 tags" in one and "missing.conll: cannot be read" in two
    same = lines(tmp_path / "b.jsonl", [{"words": ["a", "b"], "tags": ["O", "O"]}])
    one, two = faults(load_sentences, same, tmp_path / "missing.conll")
    assert "every word's tag is 'O', nothing to learn" in one and "missing.conll" in two


def test_what_a_reader_of_the_scores_should_know_is_said(tmp_path):
    mixed = {"words": ["at", "Rome", "x"], "tags": ["O", "B-LOC", "NN"]}
    train, dev = lines(tmp_path / "a.jsonl", [mixed] * 2), lines(tmp_path / "b.jsonl", [mixed])
    first, second = load_sentences(train, dev).notes
    assert "'B-LOC' look like entities, 'NN' do not: words are scored one by one" in first
    assert "1 of 1 sentences are in the training set" in second
    nothing = lines(tmp_path / "c.jsonl", [{"words": ["on"], "tags": ["O"]}])
    (only,) = load_sentences(lines(train, good(3)), nothing).notes
    assert only.endswith("there is no entity in it, so that F1 is 0")


def test_prefixes_of_two_schemes_are_refused(tmp_path):
    def file(name: str, *tags: str):
        words = [f"w{number}" for number in range(len(tags))]
        return lines(tmp_path / name, [{"words": words, "tags": list(tags)}])

    good = file("dev.jsonl", "O", "B-X")
    mixed = file("mixed.jsonl", "B-X", "E-X", "U-X", "O")
    (fault,) = faults(load_sentences, mixed, good)
    assert "mixed.jsonl: mixed schemes: tags begin with E-, U-; entities end with E-" in fault
    for tags in (("B-X", "E-X", "S-X"), ("B-X", "L-X", "U-X")):
        load_sentences(file("one.jsonl", *tags), good)
    (fault,) = faults(load_sentences, file("one.jsonl", "B-X", "E-X"), file("two.jsonl", "U-X"))
    assert "two.jsonl:1: tag 'U-X' is not in the training set" in fault
