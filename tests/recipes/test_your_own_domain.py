"""docs/your-own-domain.md: its commands, as they stand there, make what it says, at toy size."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import itertools
import json
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from finetune_scenarios import BAD, GOOD, sentence
from pretrain_scenarios import run_world, values

from model.pretrained import read_export

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "your-own-domain.md"
# What the page says for a real run, and what the test runs instead.
TOY = {
    "--duration 1000000": "--duration 32 --eval-sequences 8 --sequence-length 32",
    "ds_configs/base.json": f"{ROOT}/ds_configs/tiny_cpu.json",
    "--output runs/domain/mine": "--output runs/domain/mine --epochs 1",
    "--output runs/domain/search": "--output runs/domain/search --epochs 1 --batch-size 16",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def commands() -> list[str]:
    """The page's command lines in their order."""
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [re.sub(" +", " ", line) for line in lines]


def at_toy_size() -> list[list[str]]:
    script = "\n".join(commands())
    for real, toy in TOY.items():
        assert script.count(real) == 1, real
        script = script.replace(real, toy)
    return [shlex.split(line) for line in script.splitlines()]


def follow(place: str, command: list[str]) -> int | None:
    """Run a command in a folder, in this process; returns its exit status."""
    os.chdir(place)
    starter, script, *words = [word for word in command if word != "--quiet"]  # the launcher's
    assert starter in ("python", "deepspeed")
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    sys.argv = [script, *words]
    return module.main()


@pytest.fixture(scope="module")
def place(finetune_place, tmp_path_factory) -> Path:
    """A folder with what the page says has to be there, in which its commands have run."""
    folder = tmp_path_factory.mktemp("domain")
    rng = np.random.default_rng(0)
    (folder / "my_texts").mkdir()
    (folder / "runs").mkdir()
    (folder / "runs" / "base").symlink_to(finetune_place / "run")
    texts = [sentence(rng, str(rng.choice(GOOD + BAD))) for _ in range(300)]
    longer = [f"{one} {two}" for one, two in itertools.pairwise(texts)]
    (folder / "my_texts" / "all.txt").write_text("\n\n".join(longer))
    (folder / "passages.txt").write_text("\n".join(texts[:20]))
    for name in ("train", "dev", "new"):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = [[text, int(bool(set(text.split()) & set(GOOD)))] for text in texts[:40]]
            labelled = name != "new"
            header = ["text", "label"] if labelled else ["text", "id"]
            csv.writer(file).writerows([header, *rows])
    for name, pairs in (("pairs", texts[:60]), ("dev_pairs", texts[60:90])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = [[text, " ".join(reversed(text.split()))] for text in pairs]
            csv.writer(file).writerows([["query", "passage"], *rows])
    for command in at_toy_size():
        assert values(run_world(1, follow, str(folder), command)) == [0], command
    return folder


def test_the_domain_encoder_continues_from_the_start(place):
    record = json.loads((place / "runs" / "domain" / "config.json").read_text())
    domain = read_export(place / "runs" / "domain" / "export")
    base = read_export(place / "runs" / "base" / "export")
    assert record["started_from"]["embeddings"] == "all pieces keep their rows"
    assert domain.config.num_layers == base.config.num_layers
    far = {name: (domain.tensors[name] - base.tensors[name]).abs().max() for name in base.tensors}
    assert 0 < max(far.values()) < 0.1  # it has learnt, and has not begun anew


def test_the_classifier_answers_for_the_new_texts(place):
    answers = list(csv.DictReader(io.StringIO((place / "answers.csv").read_text())))
    assert len(answers) == 40
    columns = ["text", "id", "prediction", "probabilities.0", "probabilities.1", "error"]
    assert list(answers[0]) == columns
    for row in answers:
        assert float(row["probabilities.0"]) + float(row["probabilities.1"]) == pytest.approx(1)
        assert row["prediction"] == max(
            "01", key=lambda label: float(row[f"probabilities.{label}"])
        )


def test_the_search_finds_passages_by_the_vectors(place, monkeypatch):
    """The query is encoded by sentence-transformers, the passages by embed.py."""
    monkeypatch.chdir(place)
    vectors = np.load("passages.npy")
    assert vectors.shape == (20, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    [program] = blocks("python")
    passages = Path("passages.txt").read_text().split("\n")
    program = program.replace("what the report said about the weather", passages[7])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(program, str(PAGE), "exec"), {})
    lines = printed.getvalue().splitlines()
    assert len(lines) == 3 and lines[0] == f"1.000  {passages[7]}"
