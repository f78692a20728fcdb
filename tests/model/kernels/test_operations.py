"""What holds for all operations: one compiled graph serves all layers."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
from exact import ROWS, WIDTH, row_keys
from torch._dynamo.testing import CompileCounter

from model.kernels import operations as ops

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_device")]


def test_layers_share_compiled_graphs(monkeypatch):
    """A graph for each site would soon be more than a function may have, which is an error."""
    counter = CompileCounter()
    monkeypatch.setattr(ops.torch, "compile", functools.partial(torch.compile, backend=counter))
    ops._compiled.cache_clear()
    x, wide, vector = torch.ones(ROWS, 1, WIDTH), torch.ones(ROWS, 1, 2 * WIDTH), torch.ones(WIDTH)
    norm = SimpleNamespace(weight=vector, bias=vector, eps=1e-12)
    for site in range(12):
        found = [
            (
                ops.residual_norm(x, vector, x, norm, 0.4, row_keys(), site, kernels)[0],
                ops.gated_gelu(wide, 0.4, row_keys(), site, 0, kernels),
            )
            for kernels in ("compile", "torch")
        ]
        torch.testing.assert_close(*found)
    assert counter.frame_count == 2
    ops._compiled.cache_clear()
