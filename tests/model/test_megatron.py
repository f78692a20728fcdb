"""What importing Megatron does to torch, and what it leaves undone."""

from __future__ import annotations

import pytest
import torch

from model import megatron


def test_a_function_is_compiled_once_by_its_first_call(monkeypatch):
    compiled = []

    def compile(function, **options):
        compiled.append(options)
        return function

    monkeypatch.setattr(megatron, "_compile", compile)
    double = megatron._compile_when_called(lambda x: 2 * x, dynamic=True)
    assert not compiled
    assert [double(3), double(4)] == [6, 8]
    assert compiled == [{"dynamic": True}]


def test_a_decorator_with_options_compiles_when_called(monkeypatch):
    compiled = []

    def compile(function, **options):
        compiled.append(options)
        return function

    monkeypatch.setattr(megatron, "_compile", compile)

    @megatron._compile_when_called(dynamic=True)
    def double(x):
        """Doubles."""
        return 2 * x

    assert double.__doc__ == "Doubles." and not compiled
    assert [double(3), double(4)] == [6, 8]
    assert compiled == [{"dynamic": True}]


def test_torch_compile_is_torchs_own_behind_an_import_that_fails():
    with pytest.raises(ImportError), megatron._compiling_when_called():
        assert torch.compile is megatron._compile_when_called
        raise ImportError
    assert torch.compile is megatron._compile


def test_torch_compile_is_torchs_own_again():
    assert torch.compile is megatron._compile


def test_inside_a_graph_it_is_part_of_the_graph():
    double = megatron._compile_when_called(lambda x: 2 * x)
    outer = torch.compile(lambda x: double(x) + 1, backend="eager", fullgraph=True)
    assert outer(torch.tensor(3.0)) == 7
