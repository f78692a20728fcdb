"""The documentation names what is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/your-own-domain.md"]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_is_named_exists(page):
    text = (ROOT / page).read_text("utf-8")
    named = set(re.findall(r"\b(?:recipes|model|slurm|ds_configs|docs|tests)/[\w./-]*\w/?", text))
    assert named
    missing = [path for path in sorted(named) if not (ROOT / path).exists()]
    assert not missing


def test_the_table_of_options_is_that_of_the_code():
    options = script("write_options")
    assert options.PAGE.read_text("utf-8") == options.page()


def test_the_picture_shows_every_file_and_no_arrow_that_points_upwards(tmp_path):
    picture = script("draw_architecture")
    files = picture.sources()
    assert sum(map(len, files.values())) > 80 and all(files.values())
    order = list(picture.CHAPTERS)
    upwards = [
        pair for pair in picture.imports(files) if order.index(pair[0]) > order.index(pair[1])
    ]
    assert not upwards
    picture.draw(tmp_path / "architecture.png")
    for path in (tmp_path / "architecture.png", picture.PICTURE):
        with Image.open(path) as image:
            assert image.text["Description"] == picture.shown(), "python docs/draw_architecture.py"
