import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.corpus import json_values as module
from recipes.corpus.json_values import json_values

texts = st.text(st.sampled_from('a"\\{}[],: \n\u00e9\U0001f600'), max_size=12)
leaves = st.none() | st.booleans() | st.integers() | texts
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8
)
objects = st.dictionaries(texts, values, max_size=4)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(objects | leaves, max_size=4),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(1, 9),
)
def test_the_elements_of_an_array_however_it_is_laid_out(elements, indent, ascii_only, chunk):
    data = json.dumps(elements, indent=indent, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        found = list(json_values(io.BytesIO(data), 1_000_000))
    assert [json.loads(value) for _, value in found] == elements
    assert all(data[at:].startswith(value) for at, value in found)


@settings(max_examples=50, deadline=None)
@given(st.lists(objects, max_size=4), st.sampled_from(["", "\n", " ,\n"]), st.integers(1, 9))
def test_values_one_after_the_other(elements, between, chunk):
    data = between.join(json.dumps(element, indent=2) for element in elements).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        assert [
            json.loads(value) for _, value in json_values(io.BytesIO(data), 1_000_000)
        ] == elements


def test_a_long_value_is_passed_over_without_being_held():
    data = b'[{"a": "' + b"x" * 500_000 + b'"}, {"b": 1}]'
    assert [len(value) for _, value in json_values(io.BytesIO(data), 100)] == [101, 8]


def test_a_broken_value_harms_no_other():
    data = b'[{"a": 1}, {"b": }, nonsense, {"c": 3}] ] {"d": 4}'
    found = [value for _, value in json_values(io.BytesIO(data), 100)]
    assert found == [b'{"a": 1}', b'{"b": }', b"nonsense", b'{"c": 3}', b"]", b'{"d": 4}']


@pytest.mark.parametrize(
    "data", [b'[{"a": 1}', b'[{"a": 1}, {"b"', b'{"a": "', b'{"a": "\\', b"[1"]
)
def test_a_value_that_does_not_end_is_an_error(data):
    with pytest.raises(EOFError):
        list(json_values(io.BytesIO(data), 100))
