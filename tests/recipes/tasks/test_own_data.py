"""Own data: which labels are classes, which are scores, and on which scale scores are learnt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recipes.common.errors import UserError
from recipes.tasks.own_data import LabelScale, label_scale, load_files


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def faults(call, *args, **kwargs) -> list[str]:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    return list(error.value.faults)


def load_text(train: Path, dev: Path, **options):
    return load_files(train, dev, text_columns=["text"], label_column="label", **options)


def test_labels_are_found_in_the_training_file(tmp_path):
    train = write(tmp_path / "t.tsv", "text\tlabel", "a\tpos", "b\tneg", "c\tpos")
    dev = write(tmp_path / "d.tsv", "label\ttext", "pos\tx")  # columns go by name
    data = load_text(train, dev)
    assert data.labels == ("neg", "pos")
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.dev["dev"].labels.tolist() == [1]
    assert data.notes == []
    assert not data.stand_in


def test_whole_numbers_are_ordered_as_numbers(tmp_path):
    file = write(tmp_path / "t.csv", "text,label", "a,10", "b,9", "c,-1")
    data = load_text(file, file)
    assert data.labels == ("-1", "9", "10")
    assert data.train.labels.tolist() == [2, 1, 0]


def test_scores_are_read_as_numbers(tmp_path):
    file = write(tmp_path / "t.csv", "text,label", "a,1e-1", "b,2")
    data = load_text(file, file, regression=True)
    assert data.labels is None
    np.testing.assert_array_equal(data.dev["dev"].labels, [0.1, 2.0])


def test_faults_of_both_files_come_at_once(tmp_path):
    train = write(tmp_path / "t.csv", "txt,label", "a,1")
    dev = tmp_path / "nowhere.jsonl"
    assert faults(load_text, train, dev) == [
        f"{train}: no column 'text'; there are 'txt', 'label'",
        f"{dev}: cannot be read: No such file or directory",
    ]


@pytest.mark.parametrize("score", ["high", "nan", "inf", ""])
def test_scores_that_are_no_numbers_are_refused(tmp_path, score):
    file = write(tmp_path / "t.tsv", "text\tlabel", "a\t1", f"b\t{score}")
    fault, _ = faults(load_text, file, file, regression=True)
    assert fault.startswith(f"{file}:3: label {score!r} is not a number; 1 of 2 records")


def test_a_dev_label_that_training_has_not_is_refused(tmp_path):
    train = write(tmp_path / "t.tsv", "text\tlabel", "a\t0", "b\t1")
    dev = write(tmp_path / "d.tsv", "text\tlabel", "a\t2")
    (fault,) = faults(load_text, train, dev)
    assert fault.startswith(f"{dev}:2: label '2' is none of '0', '1'")


def labelled(tmp_path: Path, labels) -> Path:
    """A file with a text of its own for each label."""
    return write(
        tmp_path / "t.tsv", "text\tlabel", *(f"t{i}\t{label}" for i, label in enumerate(labels))
    )


def noted(tmp_path: Path, labels) -> list[str]:
    dev = write(tmp_path / "d.tsv", "text\tlabel", f"d\t{labels[0]}")
    return load_text(labelled(tmp_path, labels), dev).notes


def test_one_value_is_nothing_to_learn(tmp_path):
    one = labelled(tmp_path, ["yes"] * 3)
    assert faults(load_text, one, one) == [f"{one}: every 'label' is 'yes', nothing to learn"]


@pytest.mark.parametrize(
    "labels",
    [
        [i / 10 for i in range(26)] * 8,  # 26 of them in 208 examples
        [*(i / 10 for i in range(26)), "n/a"] * 8,
        [i % 101 for i in range(150)],
    ],
)
def test_numbers_that_cannot_be_classes_are_scores(tmp_path, labels):
    (fault,) = faults(load_text, *[labelled(tmp_path, labels)] * 2)
    assert f"{len(set(labels))} distinct values of 'label' in {len(labels)} examples" in fault
    assert fault.endswith("numbers; they are scores, learnt with --regression")


def test_words_are_no_scores_however_many(tmp_path):
    """As intent data look: 150 classes in 200 examples."""
    labels = [f"c{i % 150}" for i in range(200)]
    (note,) = noted(tmp_path, labels)
    assert note.endswith(
        "150 distinct values of 'label' in 200 examples, 100 of them with a single example"
    )
    assert load_text(*[labelled(tmp_path, labels)] * 2).labels == tuple(sorted(set(labels)))
    every = labelled(tmp_path, [f"sentence {i}" for i in range(30)])
    (fault,) = faults(load_text, every, every)
    assert fault.endswith("no class has a second example; is it the right column?")


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (["1", "1.0", "2"] * 9, "labels '1', '1.0' are taken for different classes"),
        (["Up", "up ", "down", "UP"] * 9, "labels 'UP', 'Up', 'up' are taken for different"),
        (["caf\u00e9", "cafe\u0301", "bar"] * 9, "'caf\u00e9' are taken for different classes"),
        (["up", "down", "NaN"] * 9, "9 labels 'NaN' are taken for a class, not for missing ones"),
        (["0.5", "1.5"] * 9, "2 distinct values of 'label' in 18 examples, all numbers, taken for"),
        ([*range(30)] * 9, "30 distinct values of 'label' in 270 examples, all numbers, taken"),
    ],
)
def test_classes_that_may_be_a_mistake_are_noted(tmp_path, labels, note):
    (found,) = noted(tmp_path, labels)
    assert note in found


@pytest.mark.parametrize("labels", [["0", "1", "0"], ["0.0", "1.0", "0.0"], ["a", "b", "a"]])
def test_plain_classes_are_not_noted(tmp_path, labels):
    assert noted(tmp_path, labels) == []


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("label", [[1, 2], {"a": 1}, float("nan"), None])
def test_labels_that_are_no_single_value_are_refused(tmp_path, label, regression):
    records = [{"text": "a", "label": 1}, {"text": "b", "label": label}]
    file = write(tmp_path / "x.jsonl", *map(json.dumps, records))
    fault = faults(load_text, file, file, regression=regression)[0]
    assert fault.startswith(f"{file}:2: ") and "1 of 2 records cannot be used" in fault


def test_empty_texts_are_counted_and_a_column_of_them_refused(tmp_path):
    rows = ["a\t\tx", " \tb\ty", "c\td\tx"]
    file = write(tmp_path / "t.tsv", "one\ttwo\tlabel", *rows)
    dev = write(tmp_path / "d.tsv", "one\ttwo\tlabel", "e\tf\tx")
    data = load_files(file, dev, text_columns=["one", "two"], label_column="label")
    shares = [f"{file}: 1 of 3 texts in {column!r} are empty" for column in ("one", "two")]
    assert data.notes == shares
    write(dev, "one\ttwo\tlabel", "e\t\tx")
    assert faults(load_files, file, dev, text_columns=["one", "two"], label_column="label") == [
        f"{dev}: 1 of 1 texts in 'two' are empty; is it the right column?"
    ]


def test_dev_examples_that_are_trained_on_are_counted(tmp_path):
    train = write(tmp_path / "t.tsv", "text\tlabel", "a\t0", "b\t1")
    dev = write(tmp_path / "d.tsv", "text\tlabel", "b\t0", "c\t1")
    assert load_text(train, dev).notes == [f"{dev}: 1 of 2 examples have texts of the training set"]


def test_a_column_named_twice_is_refused(tmp_path):
    file = write(tmp_path / "t.csv", "text,label,text", "a,0,b", "c,1,d")
    message = f"{file}: 2 columns are named 'text'; rename all but one"
    assert faults(load_text, file, file) == [message] * 2
    same = dict(text_columns=["text", "text"], label_column="label")
    assert "'text' is named twice" in faults(load_files, file, file, **same)[0]
    same = dict(text_columns=["label"], label_column="label")
    assert "'label' is named twice" in faults(load_files, file, file, **same)[0]


@pytest.mark.parametrize(
    "labels",
    [[2.5e5, 3e5, 9e5], [1e30, 2e30, 2e30], [-1e-20, 3e-20, 0], [1_700_000_000, 1_700_900_000]],
)
def test_scores_are_learnt_with_mean_0_and_deviation_1(labels):
    labels = np.array(labels, np.float64)
    scale = LabelScale.of(labels)
    learnt = scale.learnt(labels)
    assert learnt.dtype == np.float32
    assert (learnt.mean(), learnt.std()) == pytest.approx((0, 1), abs=1e-6)
    np.testing.assert_allclose(scale.own_units(learnt), labels, rtol=1e-6, atol=1e-6 * labels.std())


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        ([7, 7, 7], [1, 2], "all 3 training labels are 7, nothing to learn"),
        ([1e300, 2], [1, 2], r"labels up to 1e\+300; fp32 ends at 3.4e\+38"),
        ([1, 2], [1, -1e300], r"labels up to 1e\+300"),
        ([1e9, 1e9 + 1], [1e9], r"are 1e\+09 ± 0.5: too close to each other .* subtract 1e\+09"),
        ([0, 1e-40], [0], "multiply them"),
    ],
)
def test_scores_that_fp32_cannot_tell_apart_are_refused(tmp_path, train, dev, message):
    files = [
        write(tmp_path / name, "text\tlabel", *(f"{name}{i}\t{x!r}" for i, x in enumerate(labels)))
        for name, labels in (("t.tsv", train), ("d.tsv", dev))
    ]
    data = load_text(*files, regression=True)
    with pytest.raises(UserError, match=message):
        label_scale(data)


def test_three_text_columns_are_refused(tmp_path):
    (fault,) = faults(load_files, "t", "d", text_columns=["a", "b", "c"], label_column="label")
    assert fault == "3 text columns given, one or two are needed"


def test_a_decimal_comma_is_told_what_to_write(tmp_path):
    records = [{"text": "a", "label": "0,5"}, {"text": "b", "label": "1,5"}]
    file = write(tmp_path / "x.jsonl", *map(json.dumps, records))
    fault = faults(load_text, file, file, regression=True)[0]
    assert "label '0,5' is not a number: decimals stand behind a point, 0.5" in fault
