"""Files of pairs: what is read, skipped, noted and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recipes.common.errors import UserError
from recipes.tasks.classification_data import TaskData
from recipes.tasks.pair_data import TextSet, load_pairs

TRIPLES = [("who", "Rollo", "Rouen"), ("where", "Rouen", "Rollo")]
SCORED = [("who", "Rollo", "4.5"), ("who", "Rouen", "0")]


def csv(path: Path, rows: list[tuple[str, ...]], header: str = "q,a,no") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return path


def load(train: Path, dev: Path, *columns: str, score: str | None = None) -> TaskData[TextSet]:
    return load_pairs(train, dev, text_columns=columns or ("q", "a"), score_column=score)


def test_columns_are_read(tmp_path):
    train, dev = csv(tmp_path / "t.csv", TRIPLES), csv(tmp_path / "d.csv", SCORED, "q,a,score")
    data = load(train, dev, "q", "a", "no", score="score")
    assert data.train.columns == [list(column) for column in zip(*TRIPLES, strict=True)]
    assert data.train.scores is None and len(data.train) == 2
    assert data.dev["dev"].columns == [["who", "who"], ["Rollo", "Rouen"]]
    np.testing.assert_array_equal(data.dev["dev"].scores, [4.5, 0])
    lines = tmp_path / "t.jsonl"
    records = [dict(zip(("q", "a", "no"), row, strict=True)) for row in TRIPLES]
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    again = load(lines, dev, "q", "a", "no", score="score")
    assert list(again.train.parts("train")) == list(data.train.parts("train"))
    assert list(data.dev["dev"].parts("d")) != list(data.dev["dev"].front(1).parts("d"))
    assert load(train, dev, "q", "a", "no").dev["dev"].scores is None


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("who", " ", "Rouen"), "no text in 'a'"),
        (("", "", "Rouen"), "no text in 'q', 'a'"),
        (("who", "Rollo", "Rollo"), "'no' and 'a' are equal, 'Rollo'"),
        (("who", "Rollo", "who"), "'no' and 'q' are equal, 'who'"),
        (("who", "Rollo"), "2 columns, not 3"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(tmp_path, row, reason):
    """Of two, so more than 1%; of two hundred it is skipped with a note."""
    dev = csv(tmp_path / "d.csv", TRIPLES)
    train = csv(tmp_path / "t.csv", [TRIPLES[0], row])
    with pytest.raises(UserError, match=f"t.csv:3: {reason}; 1 of 2 records cannot be used"):
        load(train, dev, "q", "a", "no")
    csv(train, [*(100 * TRIPLES)[:199], row])
    data = load(train, dev, "q", "a", "no")
    assert len(data.train) == 199 and f"t.csv:201: {reason}" in data.notes[0]


def test_null_is_no_text(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"q": null, "a": "Rollo"}\n{"q": 5, "a": "Rollo"}\n')
    with pytest.raises(UserError, match=r"t.jsonl:1: no text in 'q'; 2 of 2 records"):
        load(tmp_path / "t.jsonl", csv(tmp_path / "d.csv", TRIPLES))


def test_faults_of_both_files_are_named(tmp_path):
    train, dev = csv(tmp_path / "t.csv", TRIPLES), csv(tmp_path / "d.csv", SCORED, "q,b,score")
    with pytest.raises(UserError) as error:
        load(train, dev, "q", "x", score="score")
    assert [str(f).split("; ")[0].split(": ")[1] for f in error.value.faults] == [
        "no column 'x'",
        "no column 'x'",
    ]


def test_a_set_that_measures_nothing_is_refused(tmp_path):
    train = csv(tmp_path / "t.csv", TRIPLES)
    equal = csv(tmp_path / "d.csv", [("who", "Rollo", "3"), ("who", "Rouen", "3")], "q,a,score")
    with pytest.raises(UserError, match="every 'score' is 3, there is no order to find"):
        load(train, equal, score="score")
    one = csv(tmp_path / "d.csv", [("who", "Rollo", ""), ("he", "Rollo", "")])
    with pytest.raises(UserError, match="all 'a' are equal, nothing to choose from"):
        load(train, one)
    none = csv(tmp_path / "d.csv", [("who", "Rollo", "much")], "q,a,score")
    with pytest.raises(UserError, match="label 'much' is not a number"):
        load(train, none, score="score")


def test_what_a_reader_of_the_scores_should_know(tmp_path):
    train = csv(tmp_path / "t.csv", [*TRIPLES, TRIPLES[0]])
    data = load(train, csv(tmp_path / "d.csv", TRIPLES))
    assert "d.csv: 2 of 2 pairs are in the training set" in data.notes[0]
    assert "t.csv: 1 of 3 records are there before" in data.notes[1]
    assert data.train.front(2).columns == [["who", "where"], ["Rollo", "Rouen"]]
