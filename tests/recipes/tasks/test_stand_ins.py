from __future__ import annotations

import fcntl
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recipes.common.errors import UserError
from recipes.tasks.classification_data import Examples, TaskData, load_task
from recipes.tasks.glue_tasks import TASKS
from recipes.tasks.stand_in_text import read_sentences, split
from recipes.tasks.stand_ins import STAND_INS, write_tasks

VOWELS, CONSONANTS = "aeiou", "bcdfghklmnprstvz"


def invented(documents: int = 60, seed: int = 5) -> list[str]:
    """Documents of paragraphs of sentences of random words: nothing but form to learn from."""
    generator = np.random.default_rng(seed)

    def word() -> str:
        letters = [generator.choice(list(kind)) for kind in (CONSONANTS, VOWELS) * 3]
        return "".join(letters[: generator.integers(3, 7)])

    vocabulary = sorted({word() for _ in range(3000)})

    def sentence() -> str:
        words = generator.choice(vocabulary, generator.integers(8, 15))
        return " ".join(words).capitalize() + "."

    def paragraph() -> str:
        return " ".join(sentence() for _ in range(generator.integers(1, 4)))

    return ["\n".join(paragraph() for _ in range(15)) for _ in range(documents)]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return invented()


@pytest.fixture(scope="module")
def tasks(documents, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("tasks") / "glue"
    write_tasks(output, documents, train=240, dev=60, seed=3)
    return output


@pytest.fixture(scope="module")
def data(tasks) -> dict[str, TaskData]:
    return {name: load_task(task, tasks) for name, task in TASKS.items()}


def words(examples: Examples, index: int) -> tuple[list[str], list[str]]:
    second = examples.second[index] if examples.second else ""
    return examples.first[index].split(), second.split()


def test_the_readers_of_glue_read_all_eight(data):
    assert {task.folder for task in TASKS.values()} == set(STAND_INS)
    for name, found in data.items():
        assert found.stand_in
        assert len(found.train.first) == 240
        assert [len(dev.first) for dev in found.dev.values()] == [60] * len(found.dev)
        assert not [note for note in found.notes if "skipped" in note], found.notes
        assert (found.train.second is not None) == (len(TASKS[name].text_columns) == 2)
    assert list(data["mnli"].dev) == ["matched", "mismatched"]


@pytest.mark.parametrize("name", TASKS)
def test_classes_are_balanced(data, name):
    counts = Counter(data[name].train.labels.tolist())
    assert len(counts) == (6 if name == "stsb" else TASKS[name].outputs)
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize("name", [task.name for task in TASKS.values() if task.text_columns[1:]])
def test_both_texts_have_the_same_number_of_words(data, name):
    train = data[name].train
    pairs = [words(train, index) for index in range(len(train.first))]
    marks = 3 if name == "qnli" else 0  # "what says ... ?"
    assert {len(first) - len(second) for first, second in pairs} == {marks}


def test_opening_and_later_sentences_have_the_same_lengths(data):
    train = data["sst2"].train
    lengths = np.array([len(text.split()) for text in train.first])
    later, opening = (Counter(lengths[train.labels == label].tolist()) for label in (0, 1))
    assert later == opening


def test_labels_mean_what_they_say(data):
    def pairs(name: str, label: int):
        train = data[name].train
        return [words(train, i) for i in np.flatnonzero(train.labels == label)]

    assert all(a == b for a, b in pairs("mnli", 0))
    assert all(a != b for a, b in pairs("mnli", 1))
    assert all(a != b and sorted(a) == sorted(b) for a, b in pairs("mnli", 2))
    assert all(a == b for a, b in pairs("rte", 0))
    assert all(a != b for a, b in pairs("rte", 1))
    assert all(question[2:-1] == phrase for question, phrase in pairs("qnli", 0))
    assert all(question[2:-1] != phrase for question, phrase in pairs("qnli", 1))
    assert all(a[1:] == b[1:] for a, b in pairs("qqp", 1))
    assert all(a[1:] != b[1:] for a, b in pairs("qqp", 0))


def test_graded_similarity_is_the_share_of_words_kept(data):
    train = data["stsb"].train
    for index, score in enumerate(train.labels):
        first, second = words(train, index)
        kept = sum(a == b for a, b in zip(first, second, strict=True))
        # The replacement may be the same word by chance.
        assert kept >= round(len(first) * score / 5) - 1
        assert kept <= round(len(first) * score / 5) + 1


def test_scrambled_sentences_keep_ends_and_words(data, documents):
    written = {" ".join(sentence.words) for sentence in read_sentences(documents)}
    by_words = {(s.split()[0], s.split()[-1], *sorted(s.split())) for s in written}
    train = data["cola"].train
    for text, label in zip(train.first, train.labels, strict=True):
        assert (text in written) == bool(label)
        parts = text.split()
        assert (parts[0], parts[-1], *sorted(parts)) in by_words


def test_no_document_is_in_two_splits(documents):
    parts = split(read_sentences(documents), seed=3)
    numbers = {name: {sentence.document for sentence in part} for name, part in parts.items()}
    assert not numbers["train"] & numbers["dev"]
    assert not numbers["mismatched"] & (numbers["train"] | numbers["dev"])
    assert numbers["mismatched"] == set(range(50, 60))
    assert len(numbers["dev"]) == 10


def test_same_seed_same_files_and_other_seed_others(documents, tasks, tmp_path):
    write_tasks(tmp_path / "same", documents, train=240, dev=60, seed=3)
    write_tasks(tmp_path / "other", documents, train=240, dev=60, seed=4)
    files = [path.relative_to(tasks) for path in tasks.rglob("*.tsv")]
    assert len(files) == 17
    for file in files:
        assert (tasks / file).read_bytes() == (tmp_path / "same" / file).read_bytes()
        assert (tasks / file).read_bytes() != (tmp_path / "other" / file).read_bytes()


def test_every_folder_says_what_it_is(tasks):
    for folder in (tasks, *(tasks / name for name in STAND_INS)):
        text = (folder / "STAND_IN").read_text()
        assert text.startswith("STAND-IN, not GLUE")
        assert ("pretrained on this same text" in text) == (folder != tasks)


def test_other_data_is_never_overwritten(tmp_path, documents):
    glue = tmp_path / "glue"
    (glue / "RTE").mkdir(parents=True)
    (glue / "RTE" / "train.tsv").write_text("the real one")
    with pytest.raises(UserError, match="in use by something else"):
        write_tasks(glue, documents, train=60, dev=12, seed=0)
    assert (glue / "RTE" / "train.tsv").read_text() == "the real one"


def test_two_processes_do_not_write_into_one_directory(tmp_path, documents):
    glue = tmp_path / "glue"
    glue.mkdir()
    with (glue / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing stand-in tasks into it"):
            write_tasks(glue, documents, train=60, dev=12, seed=0)
    assert [path.name for path in glue.iterdir()] == [".lock"]
    write_tasks(glue, documents, train=60, dev=12, seed=0)  # what a refused one leaves is no task
    assert (glue / "RTE" / "train.tsv").is_file()


def test_an_output_that_cannot_be_a_directory_is_refused(tmp_path, documents):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "glue"):
        with pytest.raises(UserError, match="is a file"):
            write_tasks(output, documents, train=60, dev=12, seed=0)


def test_too_little_text_is_said(tmp_path):
    with pytest.raises(UserError, match="too little text"):
        write_tasks(tmp_path / "glue", invented(documents=2), train=60, dev=12, seed=0)
    with pytest.raises(UserError, match="too little text"):
        write_tasks(tmp_path / "glue", ["No sentence"], train=60, dev=12, seed=0)
