"""The choice of kernels, and that a GPU's compiler takes them all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import triton

from model import kernels
from model.kernels import (
    attention_short,
    attention_tiled,
    cross_entropy,
    dropout,
    gated_gelu,
    residual_norm,
)

ATTENTION = (attention_short, attention_tiled)
AROUND = (cross_entropy, dropout, gated_gelu, residual_norm)


def launched(*modules: ModuleType) -> set[str]:
    """Names of the kernels in these files; what kernels call is named otherwise."""
    return {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, triton.runtime.KernelInterface)
        if re.fullmatch(r"_dropout|_(forward|backward)_.*|_.*_(forward|backward)", name)
    }


def test_what_cannot_run_is_named(monkeypatch):
    with pytest.raises(ValueError, match="unknown kernels 'fast'; known: torch, compile, triton"):
        kernels.check_kernels("fast", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernels.check_kernels("triton", "cpu")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="'triton': they need a GPU .*; use 'torch' or 'compile'"):
        kernels.check_kernels("triton", "cpu")
    assert kernels.best_kernels("cpu") == "torch" and kernels.best_kernels("cuda") == "triton"


# Shared memory that a block may have (CUDA programming guide, compute capabilities).
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
# Registers of a thread that go to memory and back, in bytes: some do in the backward pass of
# attention, which is memory's to wait for anyway.
SPILLED_BYTES = 160


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_kernels_compile_for_gpus(capability):
    """The interpreter takes more than the compiler does. No A100 or H100 need be here."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[3])}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(script), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = list(map(json.loads, done.stdout.splitlines()))
    named = {facts["name"] for facts in found}
    assert named == launched(*ATTENTION, *AROUND) and len(named) == 12
    for facts in found:
        assert facts["shared_bytes"] <= SHARED_BYTES[capability], facts
        assert facts["spilled_bytes"] <= SPILLED_BYTES, facts
        assert facts["tensor_cores"] == (facts["name"] in launched(*ATTENTION)), facts
