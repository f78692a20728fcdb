"""The package as somebody's library: its names, and what importing it leaves behind."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib import import_module, util
from pathlib import Path

import pytest
import torch

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


def test_it_is_installed_as_rapidbert_alone_and_whole():
    with open(ROOT / "pyproject.toml", "rb") as file:
        tools = tomllib.load(file)["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "model").rglob("*.py")}
    assert set(tools["package-dir"].values()) == folders
    assert set(tools["packages"]) == set(tools["package-dir"])
    assert {name.split(".")[0] for name in tools["packages"]} == {"rapidbert"}
    assert tools["package-data"] == {"rapidbert": ["py.typed"]}
    assert (ROOT / "model" / "py.typed").is_file()


def test_it_works_under_that_name():
    """No file of it says `model`, so that it needs no package of this name."""
    for path in (ROOT / "model").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[0] not in ("model", "recipes"), path
    folder = ROOT / "model"
    spec = util.spec_from_file_location(
        "rapidbert", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    library = util.module_from_spec(spec)
    try:
        sys.modules["rapidbert"] = library
        spec.loader.exec_module(library)
        config = library.preset("rapidbert-tiny", num_layers=1)
        assert type(config).__module__ == "rapidbert.config"
        scores = library.RapidBertForMaskedLM(config).eval().logits(torch.tensor([[5, 6]]))
        assert scores.shape == (1, 2, 30528)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "rapidbert"]:
            del sys.modules[name]
