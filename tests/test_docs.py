"""The documentation names what is there."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from model.config import ModelConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "docs/results/README.md"] + sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")
)
# The log and the faults tell of what was, and what a test makes; the options name defaults.
NAME_OTHER_FILES = ("docs/log.md", "docs/faults.md", "docs/options.md")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [page for page in PAGES if page not in NAME_OTHER_FILES])
def test_every_path_that_is_named_exists(page):
    text = (ROOT / page).read_text("utf-8")
    named = set(re.findall(r"\b(?:recipes|model|slurm|ds_configs|docs|tests)/[\w./-]*\w/?", text))
    assert named or page != "README.md"
    missing = [path for path in sorted(named) if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_repository_leads_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text)
    missing = [
        link
        for link in links
        if not link.startswith("http") and not ((ROOT / page).parent / link).exists()
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_page_can_be_found_from_the_readme(page):
    text = "".join((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/cluster.md"))
    assert page == "README.md" or f"]({page})" in text or f"]({Path(page).name})" in text


def test_the_row_of_a_new_size_is_one():
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    [row] = re.findall(r"```python\n(ModelConfig.*?)```", text, re.DOTALL)
    built = eval(row, {"ModelConfig": ModelConfig})
    assert built.head_dim == 64 and built.parameters() > 30e6


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    starting, training = page.index("## Starting"), page.index("## Slow")
    quoted = re.findall(r"^\| `(.+?)` \|", page[starting:training], re.MULTILINE)
    assert len(quoted) > 10
    said = texts_in_code()
    for message in quoted:
        for part in filter(None, (part.strip() for part in message.split("…"))):
            assert any(part in text for text in said), f"{part!r} of {message!r}"


def texts_in_code() -> list[str]:
    """All strings of the commands, the model and the jobs; parts of one f-string stand apart."""
    texts = [path.read_text("utf-8") for path in (ROOT / "slurm").glob("*.sh")]
    for folder in ("recipes", "model"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


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
