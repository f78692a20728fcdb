"""JSON files of any kind: what can be had of them, and what is written."""

from __future__ import annotations

import json
from typing import NotRequired, TypedDict

import pytest

from recipes.common.json_content import at, finite, json_bytes, misfits, object_in


def test_what_is_written_is_read_again(tmp_path):
    content = {"a": [1, {"b": "ü"}], "c": None}
    (tmp_path / "x.json").write_bytes(json_bytes(content))
    assert object_in(tmp_path / "x.json") == content
    assert json_bytes(content).endswith(b"}\n") and json.loads(json_bytes(content)) == content


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"3", b"\xff"])
def test_what_is_no_object_is_an_empty_one(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    assert object_in(tmp_path / "x.json") == {} == object_in(tmp_path / "none.json")


def test_values_within_values():
    record = {"a": {"b": {"c": 3}}, "d": [1]}
    assert at(record, "a.b.c") == 3 and at(record, "a.b") == {"c": 3}
    assert at(record, "a.x.c") is None and at(record, "d.0") is None and at(None, "a") is None


def test_numbers_are_finite_ones():
    assert (finite(3), finite(-0.5)) == (3.0, -0.5)
    others = (True, None, "3", float("nan"), float("inf"), [1], {}, 10**400)
    assert not [value for value in others if finite(value) is not None]


class Part(TypedDict):
    name: str
    size: int


class Whole(TypedDict):
    parts: list[Part]
    shares: dict[str, float]
    known: bool
    note: NotRequired[str]


def whole() -> Whole:
    return {"parts": [{"name": "a", "size": 0}], "shares": {"x": 1, "y": 0.5}, "known": False}


def test_what_fits_is_not_named():
    assert list(misfits(whole(), Whole, "file")) == []
    assert list(misfits({**whole(), "note": 3, "more": None}, Whole, "file")) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"parts": {}}, ["file.parts is {}"]),
        ({"parts": [3]}, ["file.parts[0] is 3"]),
        (
            {"parts": [{"name": None}, {"name": "b", "size": True}]},
            ["file.parts[0].name is None", "file.parts[0].size is missing"]
            + ["file.parts[1].size is True"],
        ),
        ({"parts": [{"name": "b", "size": -1}]}, ["file.parts[0].size is -1"]),
        (
            {"shares": {"x": float("nan"), "y": "1"}},
            ["file.shares.x is nan", "file.shares.y is '1'"],
        ),
        ({"known": 1}, ["file.known is 1"]),
    ],
)
def test_everything_that_does_not_fit_is_named(change, named):
    assert list(misfits({**whole(), **change}, Whole, "file")) == named
