"""Folders of wheels: complete for another Python, without what is there, installed offline."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest

from recipes import wheels
from recipes.common.errors import UserError
from recipes.wheels import Found, follow, target_environment, without_what_is_there

ROOT = Path(__file__).resolve().parents[2]
PYTHON_312 = target_environment("3.12", "x86_64")


def write_wheel(folder: Path, name: str, version: str, *requires: str, module: str = "") -> Path:
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", "\n".join(lines) + "\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{stem}.dist-info/WHEEL", tags)
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
        if module:
            wheel.writestr(f"{module}.py", f"version = {version!r}\n")
    return path


def test_requirements_are_followed_on_the_other_python():
    packages = {
        "a": Found("1.0", ["b>=2", 'old; python_version < "3.12"', 'win; sys_platform == "win32"']),
        "b": Found("2.1", ["c[fast]==1.*", 'docs; extra == "docs"']),
        "c": Found("1.5", ['d; extra == "fast"', "e"]),
        "d": Found("0.9", ["a", 'f>=3; python_version >= "3.12"', "G_g.h>=1"]),
        "e": Found("4.0rc1", ["b<2"]),
        "g-g-h": Found("1", []),
    }
    met, gaps = follow(["a"], packages.get, PYTHON_312)
    assert met == set(packages)
    assert {name: why for name, (_, why) in gaps.items()} == {
        "f": "d needs f>=3: not there",
        "b": "e needs b<2: there is 2.1",
    }
    assert set(follow(["a"], packages.get, target_environment("3.11", "x86_64"))[1]) == {"old", "b"}


def test_what_a_machine_has_stays_where_it_will_do():
    packages = {
        "datasets": Found("5", ["numpy>=2", "pandas", "hub>=1.5"]),
        "numpy": Found("2.4", []),
        "pandas": Found("3", ["dates"]),
        "dates": Found("1", []),
        "hub": Found("2", ["core==2.50"]),
        "core": Found("2.50", []),
    }
    there = {"numpy": "2.1", "pandas": "1", "hub": "1.4", "core": "2.33", "other": "1"}
    bring, faults = without_what_is_there(packages, there, ["datasets", "torch"], PYTHON_312)
    assert bring == {"datasets", "hub", "core"}  # and not what belongs to pandas
    assert faults == ["the recipe needs torch: not there"]


def test_damaged_and_double_wheels_are_all_named(tmp_path):
    write_wheel(tmp_path, "a", "1.0")
    write_wheel(tmp_path, "A", "1.1")
    (tmp_path / "cut-1-py3-none-any.whl").write_bytes(b"PK")
    with pytest.raises(UserError) as caught:
        wheels.read_wheels(tmp_path)
    assert len(caught.value.faults) == 2
    assert "cut-1" in caught.value.faults[1] and "a 1.1 is there as well" in str(caught.value)


def test_faults_of_the_options_are_all_named(tmp_path):
    (tmp_path / "there.txt").write_text("numpy==2.x\n")
    (tmp_path / "file").write_text("")
    wrong = dict(python="3.8", output=tmp_path / "file", have=tmp_path / "there.txt")
    with pytest.raises(UserError) as caught:
        wheels.resolve(Namespace(only=["megatron_core", "numpie"], with_torch=False, **wrong))
    faults = "\n".join(caught.value.faults)
    for named in ("numpie not in pyproject.toml", "3.8: 3.11 or newer", "is a file", "2.x"):
        assert named in faults
    (tmp_path / "there.txt").write_text("-e git+https://example.org/numpy\n")
    with pytest.raises(UserError, match="name==version"):
        wheels.read_pins(tmp_path / "there.txt")


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """What pip finds: the recipe's packages without contents, some of which need others."""
    folder = tmp_path / "index"
    folder.mkdir()
    pins = wheels.read_pins(ROOT / "constraints.txt")
    for name in wheels.project_requirements():
        requires = []
        if name == "deepspeed":
            requires = ["torch", "hjson", 'only-new; python_version >= "3.13"', "einops>=0.8"]
        write_wheel(folder, name, pins.get(name, "99.0"), *requires)
    for name in ("hjson", "only-new", "einops", "triton"):
        write_wheel(folder, name, "0.8")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_folder_for_another_python_is_filled_without_torch(index, tmp_path, capsys):
    there = tmp_path / "there.txt"
    there.write_text("einops==0.8.1\nnumpy==1.26.4\ntorch==2.12.0+cu130\nnot @ file:///a/line\n")
    output = tmp_path / "out"
    output.mkdir()
    write_wheel(output, "stale", "1.0")
    options = Namespace(
        python="3.13", output=output, only=["deepspeed", "numpy"], have=there, with_torch=False
    )
    assert wheels.download(options) == 0
    names = {path.name.split("-")[0] for path in output.iterdir()}
    assert names == {"deepspeed", "hjson", "only_new", "numpy"}
    printed = capsys.readouterr().out
    assert "left out: einops, torch" in printed and "complete for Python 3.13" in printed


def test_what_the_index_lacks_is_named(index, tmp_path):
    next(index.glob("tqdm-*")).unlink()
    options = Namespace(
        python="3.12", output=tmp_path / "out", only=["tqdm"], have=None, with_torch=False
    )
    with pytest.raises(UserError) as caught:
        wheels.download(options)
    assert any("tqdm" in fault for fault in caught.value.faults)


def test_without_torch_on_either_side_nothing_is_installed(tmp_path, monkeypatch):
    write_wheel(tmp_path, "hjson", "1.0")
    monkeypatch.setattr(wheels, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="neither .* has PyTorch"):
        wheels.install(Namespace(folder=tmp_path, into=sys.executable))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no wheels in it"):
        wheels.install(Namespace(folder=tmp_path / "empty", into=sys.executable))


def test_set_up_offline_from_a_folder_with_the_torch_of_the_machine(tmp_path):
    here = tmp_path / "clone"
    for name in ("run.sh", "pyproject.toml", "constraints.txt", "recipes"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (here / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, here / name)
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(folder, "deepspeed", "0.19.99", module="brought")
    environment = {**os.environ, "WHEELS": str(folder), "PYTHON": sys.executable}

    def set_up(**changes: str) -> str:
        finished = subprocess.run(
            ["./run.sh", "setup"],
            cwd=here,
            env={**environment, **changes},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert finished.returncode == 0, finished.stdout
        return finished.stdout

    said = set_up()
    assert "installing" in said and "the recipe needs megatron-core" not in said  # it is with torch
    probe = "import brought, importlib.metadata as m, importlib.util as u; "
    probe += "print(brought.version, m.version('deepspeed'), u.find_spec('torch').origin)"
    shown = subprocess.run(
        [here / ".venv/bin/python", "-c", probe], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["0.19.99", "0.19.99", importlib.util.find_spec("torch").origin]
    assert set_up() == set_up(WHEELS="") == ""  # there already, with the folder and without it
