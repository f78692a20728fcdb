"""The direction of imports, and the sizes that files and functions keep to."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = "modeling_rapidbert.py"
"""Every export carries a copy, so that it must be complete in one file, however long."""

SOURCES = [path for folder in ("model", "recipes") for path in (ROOT / folder).rglob("*.py")]


def test_imports_point_one_way_and_go_in_no_circle(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_files_and_functions_are_short():
    long = [
        f"{path.name}: {lines}"
        for path in SOURCES
        if (lines := _lines(path)) > 400 and path.name != SHIPPED
    ]
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                length = node.end_lineno - node.lineno + 1
                if length > 60:
                    long.append(f"{path.name}, {node.name}: {length}")
    assert not long


def _lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


@pytest.mark.parametrize("folder", sorted(p for p in (ROOT / "recipes").iterdir() if p.is_dir()))
def test_no_chapter_is_named_like_a_command(folder):
    """A package would hide the file of the same name."""
    assert not folder.with_suffix(".py").exists()


def test_jobs_of_slurm_take_their_parts_from_the_chapters_not_from_commands():
    commands = {path.stem for path in (ROOT / "recipes").glob("*.py")} - {"__init__"}
    for path in (ROOT / "slurm").glob("*.py"):
        imported = [
            node.module
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module
        ]
        assert not commands.intersection(name.removeprefix("recipes.") for name in imported)
