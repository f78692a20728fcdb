"""JSON files of any kind: what can be had of them, and what is written."""

from __future__ import annotations

import json

import pytest

from recipes.common.json_content import at, finite, json_bytes, object_in


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
    others = (True, None, "3", float("nan"), float("inf"), [1], {})
    assert not [value for value in others if finite(value) is not None]
