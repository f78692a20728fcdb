"""Results of finetunings that were damaged are no results."""

from __future__ import annotations

import json

import pytest
from report_scenarios import result

from recipes.common.errors import UserError
from recipes.tasks.results import read_result


def test_metrics_of_several_development_sets_are_a_result(tmp_path):
    path = tmp_path / "mnli-seed17.json"
    sets = {"matched": {"accuracy": 0.52}, "mismatched": {"accuracy": 0.5175}}
    path.write_text(json.dumps(whole := result("mnli", 17, 0.51875, metrics=sets)))
    assert read_result(path) == whole
    sets["mismatched"]["accuracy"] = float("nan")
    path.write_text(json.dumps({**whole, "metrics": sets}))
    with pytest.raises(UserError, match="the mismatched/accuracy is nan"):
        read_result(path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"score": float("nan")}, "the score is nan"),
        ({"score": 1e9}, "the score is 1000000000.0, not from -1 to 1"),
        ({"score": 10**400}, "the score is 1000"),
        ({"metrics": {"matthews": float("inf")}}, "the matthews is inf"),
        ({"metrics": {"matthews": "0.5"}}, "the matthews is '0.5', not a finite number"),
        ({"seconds": float("nan")}, "the seconds are nan"),
        ({"dollars": "2"}, "the dollars are '2', not a number from 0 on"),
        ({"dollars": -1.0}, "the dollars are -1"),
        ({"notes": 3}, "the notes are 3, no list"),
        ({"seed": "x"}, "seed is 'x', not a whole number"),
    ],
)
def test_numbers_that_no_finetuning_gives_are_named(tmp_path, damage, said):
    path, whole = tmp_path / "cola-seed17.json", result("cola", 17, -0.25)
    path.write_text(json.dumps(whole))
    assert read_result(path) == whole
    path.write_text(json.dumps({**whole, **damage}))
    with pytest.raises(UserError, match=said):
        read_result(path)
