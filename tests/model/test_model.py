"""The package as somebody's library: its names, and what importing it leaves behind."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import model

ROOT = Path(model.__file__).parents[1]


def in_a_fresh_python(code: str) -> str:
    command = [sys.executable, "-W", "default", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Transformer Engine" not in done.stderr and "full scope" not in done.stderr
    return done.stdout


def test_every_name_is_there():
    for name in model.__all__:
        where = import_module(f"model.{model._FILES[name]}")
        assert getattr(model, name) is getattr(where, name)
        assert name in dir(model)
    assert model._FILES.keys() == set(model.__all__)
    with pytest.raises(AttributeError, match="'model' has no attribute 'RapidBret'"):
        _ = model.RapidBret


def test_a_configuration_costs_no_torch():
    code = (
        "import sys; from model import preset; print(preset('rapidbert-base').parameters());"
        "print(sorted({'torch', 'megatron', 'triton'} & set(sys.modules)))"
    )
    assert in_a_fresh_python(code).splitlines()[1] == "[]"


def test_importing_changes_nothing_and_a_model_needs_no_set_up():
    """The libraries below it are imported first: what they do is theirs."""
    code = (
        "import os, warnings, torch, torch.distributed as dist, safetensors.torch\n"
        "with warnings.catch_warnings():\n"
        "    warnings.simplefilter('ignore')\n"
        "    import megatron.core.transformer.transformer_layer\n"
        "before = dict(os.environ), list(warnings.filters)\n"
        "from model import RapidBertForMaskedLM, preset\n"
        "import model.kernels.operations, model.classifier\n"
        "assert (dict(os.environ), list(warnings.filters)) == before\n"
        "assert not dist.is_initialized()\n"
        "m = RapidBertForMaskedLM(preset('rapidbert-tiny')).eval()\n"
        "print(list(m.logits(torch.tensor([[5, 6]])).shape), dist.get_world_size())\n"
        "assert (dict(os.environ), list(warnings.filters)) == before\n"
    )
    assert in_a_fresh_python(code).strip() == "[1, 2, 30528] 1"
