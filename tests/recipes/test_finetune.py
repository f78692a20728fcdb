"""Finetuning end to end at toy size: staging, repeatability, own data, and everything refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.classifier import SequenceClassifier
from model.config import ModelConfig
from model.masked_lm import MaskedLM
from model.parallel import initialize_parallel
from recipes import finetune
from recipes.cli import UserError
from recipes.export import write_export
from recipes.glue_tasks import TASKS
from recipes.prepare_data import main as prepare
from recipes.schedule import adamw_weight_decay
from recipes.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
GOOD = "fine lovely bright warm happy".split()
BAD = "awful broken grim cold bitter".split()
FILLER = "the a report said that weather was quite again and then".split()


def sentence(rng: np.random.Generator, word: str) -> str:
    words = list(rng.choice(FILLER, 6))
    words.insert(int(rng.integers(6)), word)
    return " ".join(words)


def write_tasks(folder: Path) -> None:
    """MNLI, RTE and CoLA in GLUE's layout; the label is decided by one word of the sentence."""
    rng = np.random.default_rng(0)
    for name, labels in (
        ("MNLI", ("entailment", "neutral", "contradiction")),
        ("RTE", ("entailment", "not_entailment")),
        ("CoLA", ("1", "0")),
    ):
        (folder / name).mkdir(parents=True)
        for file, count in (("train", 192), ("dev", 64)):
            rows = []
            for i in range(count):
                label = int(rng.integers(len(labels)))
                text = sentence(rng, str(rng.choice((GOOD, BAD, FILLER)[label])))
                if name == "CoLA":
                    rows.append(f"src\t{labels[label]}\t\t{text}")
                elif name == "RTE":
                    rows.append(f"{i}\t{text}\tthe report\t{labels[label]}")
                else:
                    rows.append(f"{i}\t{text}\tthe report\t{labels[label]}")
            header = {"RTE": "index\tsentence1\tsentence2\tlabel", "CoLA": None}.get(
                name, "index\tsentence1\tsentence2\tgold_label"
            )
            lines = ([header] if header else []) + rows
            files = [f"{file}.tsv"]
            if name == "MNLI" and file == "dev":
                files = ["dev_matched.tsv", "dev_mismatched.tsv"]
            for each in files:
                (folder / name / each).write_text("\n".join(lines) + "\n")
    (folder / "STAND_IN").write_text("made up for a test\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `run` (an export of a random encoder) and `glue` (three tasks)."""
    folder = tmp_path_factory.mktemp("finetune")
    rng = np.random.default_rng(1)
    text = [sentence(rng, str(rng.choice(GOOD + BAD))) for _ in range(600)]
    (folder / "text.txt").write_text("\n\n".join(text))
    prepare(
        ["--input", str(folder / "text.txt"), "--output", str(folder / "data")]
        + ["--vocab-size", "300", "--workers", "1"]
    )
    tokenizer = Tokenizer(folder / "data" / "tokenizer.model")
    initialize_parallel()
    torch.manual_seed(0)
    config = ModelConfig(
        "tiny", num_layers=1, hidden_size=32, num_heads=2, ffn_size=64, vocab_size=300
    )
    state = {name: value.detach() for name, value in MaskedLM(config).named_parameters()}
    facts = {"tokenizer": {"fingerprint": tokenizer.fingerprint}}
    write_export(folder / "run" / "export", state, config, folder / "data", facts)
    write_tasks(folder / "glue")
    return folder


def run_all(*calls: list[str]) -> None:
    """Several finetunings, one after the other, in one fresh process."""
    code = """
import json, sys
from recipes import engine, finetune
works = [finetune.parse_arguments(call) for call in json.loads(sys.argv[1])]
world = engine.initialize_world()
for options in works:
    work = finetune.resolve(options, 1)
    if finetune.is_done(work):
        print("done already", work.name)
    else:
        finetune.finetune(work, world)
engine.shut_down()
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)], cwd=ROOT, env=environment, check=True
    )


@pytest.fixture(scope="module")
def results(place):
    """MNLI, RTE from it, and CoLA: twice with one seed, once with another, once from scratch."""
    fast = ["--epochs", "15", "--learning-rate", "1e-2", "--batch-size", "16"]

    def call(task: str, output: str, checkpoint: str = "run", *more: str) -> list[str]:
        named = ["--task", task, "--data", str(place / "glue")]
        named += ["--checkpoint", str(place / checkpoint), "--output", str(place / output)]
        return [*named, *fast, *more]

    run_all(
        call("mnli", "out"),
        call("rte", "out", "out/mnli-seed17"),
        call("cola", "out"),
        call("cola", "again", "run", "--save-model"),
        call("cola", "out", "run", "--seed", "18"),
        call("cola", "scratch", "run", "--from-scratch"),
        call("cola", "again", "run", "--save-model"),  # done already
    )
    return {
        path.relative_to(place): json.loads(path.read_text())
        for path in place.glob("*/*.json")
        if path.parent.name in ("out", "again", "scratch")
    }


def test_the_record_says_what_was_done(results):
    record = results[Path("out/cola-seed17.json")]
    assert record["task"] == "cola" and record["seed"] == 17 and record["stand_in"]
    assert record["train_examples"] == 192 and record["dev_examples"] == 64
    assert record["steps"] == 15 * 12
    assert record["adamw_weight_decay"] == pytest.approx(TASKS["cola"].weight_decay / 1e-2)
    mnli = results[Path("out/mnli-seed17.json")]
    matched, mismatched = mnli["metrics"]["matched"], mnli["metrics"]["mismatched"]
    assert mnli["score"] == pytest.approx((matched["accuracy"] + mismatched["accuracy"]) / 2)


def test_a_decisive_word_is_learned(results):
    assert results[Path("out/cola-seed17.json")]["score"] > 0.8


def test_one_seed_repeats_and_two_differ(results, place):
    def losses(output: str, seed: int) -> list[float]:
        lines = (place / output / f"cola-seed{seed}" / "log.jsonl").read_text().splitlines()
        return [x["loss/train"] for x in map(json.loads, lines) if "loss/train" in x]

    assert losses("out", 17) == losses("again", 17) != losses("out", 18)
    assert losses("scratch", 17) != losses("out", 17)
    metrics = [results[Path(f"{place}/cola-seed17.json")]["metrics"] for place in ("out", "again")]
    assert metrics[0] == metrics[1]


def test_rte_starts_from_mnli(results, place):
    """Encoder and pooler are MNLI's result, the head is new."""
    config, weights, _ = finetune.starting_weights(place / "out" / "mnli-seed17")
    model = SequenceClassifier(config, 2)
    head = model.classifier.weight.detach().clone()
    finetune.start_from(model, weights)
    published = load_file(place / "out" / "mnli-seed17" / "export" / "model.safetensors")
    name = "bert.encoder.layer.0.mlp.wo.weight"
    assert torch.equal(model.encoder.layers[0].mlp.linear_out.weight, published[name])
    assert torch.equal(model.pooler.weight, published["bert.pooler.dense.weight"])
    assert torch.equal(model.classifier.weight, head)
    before = load_file(place / "run" / "export" / "model.safetensors")
    assert not torch.equal(published[name], before[name]), "MNLI moved the encoder"
    assert "cls.predictions.decoder.bias" not in published


def test_data_of_ones_own(place):
    rng = np.random.default_rng(3)
    for file, count in (("mine.csv", 96), ("dev.csv", 32)):
        rows = ["mood,words"]
        for _ in range(count):
            mood = str(rng.choice(["up", "down"]))
            rows.append(f"{mood},{sentence(rng, str(rng.choice(GOOD if mood == 'up' else BAD)))}")
        (place / file).write_text("\n".join(rows) + "\n")
    run_all(
        ["--train-file", str(place / "mine.csv"), "--dev-file", str(place / "dev.csv")]
        + ["--text-columns", "words", "--label-column", "mood", "--checkpoint", str(place / "run")]
        + ["--output", str(place / "mine"), "--epochs", "1"]
    )
    record = json.loads((place / "mine" / "custom-seed17.json").read_text())
    assert set(record["metrics"]) == {"accuracy", "f1"}
    description = json.loads((place / "mine/custom-seed17/export/config.json").read_text())
    assert description["task"]["labels"] == ["down", "up"]


def faults_of(place: Path, *more: str) -> list[str]:
    arguments = ["--checkpoint", str(place / "run"), "--output", str(place / "refused"), *more]
    with pytest.raises(UserError) as error:
        finetune.resolve(finetune.parse_arguments(arguments), 1)
    assert not (place / "refused").exists()
    return list(error.value.faults)


def test_all_faults_at_once(place):
    glue = str(place / "glue")
    faults = faults_of(place, "--task", "rtee", "--data", glue, "--epochs", "0", "--seed", "-1")
    assert len(faults) == 3 and any("rte" in fault for fault in faults)
    assert "batch of 16" in faults_of_world(place, "--task", "rte", "--data", glue)
    assert any("--dev-file" in fault for fault in faults_of(place, "--train-file", "x.csv"))
    assert any("RTE" in f for f in faults_of(place, "--task", "rte", "--data", str(place)))


def faults_of_world(place: Path, *more: str) -> str:
    arguments = ["--checkpoint", str(place / "run"), "--output", str(place / "refused"), *more]
    with pytest.raises(UserError) as error:
        finetune.resolve(finetune.parse_arguments(arguments), 64)
    return str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "pickle", "missing", "tokenizer"])
def test_a_damaged_start_is_refused(place, tmp_path, damage):
    import shutil

    shutil.copytree(place / "run" / "export", tmp_path / "export")
    weights = tmp_path / "export" / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "pickle":
        weights.write_bytes(pickle.dumps({"bert": Trap(tmp_path / "sprung")}))
    elif damage == "missing":
        weights.unlink()
    else:
        description = json.loads((tmp_path / "export" / "config.json").read_text())
        description["tokenizer"]["fingerprint"] = "0" * 64
        (tmp_path / "export" / "config.json").write_text(json.dumps(description))
    arguments = ["--task", "rte", "--data", str(place / "glue"), "--output", str(tmp_path / "o")]
    with pytest.raises(UserError) as error:
        finetune.resolve(finetune.parse_arguments([*arguments, "--checkpoint", str(tmp_path)]), 1)
    expected = "fingerprint" if damage == "tokenizer" else str(tmp_path)
    assert expected in str(error.value)
    assert not (tmp_path / "sprung").exists(), "weights are never unpickled"


class Trap:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_the_published_decay():
    """Table S1's 5e-6 at a peak of 5e-5 is AdamW's 0.1: facts of the two conventions."""
    cola = TASKS["cola"]
    assert adamw_weight_decay(cola.weight_decay, cola.learning_rate) == pytest.approx(0.1)
