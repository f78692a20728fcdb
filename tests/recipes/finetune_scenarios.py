"""A toy export and toy tasks in GLUE's layout, for the tests of finetuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model.config import ModelConfig
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from recipes.corpus.tokenizer import open_tokenizer
from recipes.prepare_data import main as prepare
from recipes.training.export import write_export

GOOD = ["fine", "lovely", "bright", "warm", "happy"]
BAD = ["awful", "broken", "grim", "cold", "bitter"]
FILLER = ["the", "a", "report", "said", "that", "weather", "was", "quite", "again", "and", "then"]

TRAIN, DEV = 192, 63

PAIR = "index\tsentence1\tsentence2"
# Header of the labelled files, and the label of a sentence with a word of GOOD, BAD or FILLER.
TASKS = {
    "MNLI": (f"{PAIR}\tgold_label", ("entailment", "neutral", "contradiction")),
    "RTE": (f"{PAIR}\tlabel", ("entailment", "not_entailment")),
    "STS-B": (f"{PAIR}\tscore", ("5.000", "0.000", "2.500")),
    "CoLA": (None, ("1", "0")),
}


def sentence(rng: np.random.Generator, word: str) -> str:
    words = list(rng.choice(FILLER, 6))
    words.insert(int(rng.integers(6)), word)
    return " ".join(words)


def write_tasks(folder: Path) -> None:
    """The label follows from one word. Test sets are the dev sets, in another order."""
    rng = np.random.default_rng(0)
    for name, (header, labels) in TASKS.items():
        (folder / name).mkdir(parents=True)
        devs = ("dev_matched", "dev_mismatched") if name == "MNLI" else ("dev",)
        for file, count in (("train", TRAIN), *((dev, DEV) for dev in devs)):
            drawn = rng.integers(len(labels), size=count)
            texts = [sentence(rng, str(rng.choice((GOOD, BAD, FILLER)[k]))) for k in drawn]
            if name == "CoLA":
                rows = [f"src\t{labels[k]}\t\t{t}" for k, t in zip(drawn, texts, strict=True)]
                unlabelled = [f"{i}\t{text}" for i, text in enumerate(texts)]
                test_header = "index\tsentence"
            else:
                unlabelled = [f"{i}\t{text}\tthe report" for i, text in enumerate(texts)]
                rows = [f"{u}\t{labels[k]}" for k, u in zip(drawn, unlabelled, strict=True)]
                test_header = PAIR
            _write(folder / name / f"{file}.tsv", ([header] if header else []) + rows)
            if file != "train":
                test = folder / name / f"{file.replace('dev', 'test')}.tsv"
                _write(test, [test_header, *reversed(unlabelled)])
    (folder / "STAND_IN").write_text("made up for a test\n")


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n")


def make_text(count: int) -> list[str]:
    """Sentences of the words of the tasks."""
    rng = np.random.default_rng(1)
    return [sentence(rng, str(rng.choice(GOOD + BAD))) for _ in range(count)]


def make_place(folder: Path) -> Path:
    """`run` and `calm`: exports of a random encoder, `calm` without dropout; `glue`: the tasks."""
    (folder / "text.txt").write_text("\n\n".join(make_text(600)))
    prepare(
        ["--input", str(folder / "text.txt"), "--output", str(folder / "data")]
        + ["--vocab-size", "300", "--workers", "1"]
    )
    tokenizer = open_tokenizer(folder / "data")
    initialize_parallel()
    torch.manual_seed(0)
    config = ModelConfig(
        "tiny", num_layers=1, hidden_size=32, num_heads=2, ffn_size=64, vocab_size=300
    )
    state = {
        name: value.detach() for name, value in RapidBertForMaskedLM(config).named_parameters()
    }
    facts = {"tokenizer": {"fingerprint": tokenizer.fingerprint}}
    calm = replace(config, hidden_dropout=0.0, ffn_dropout=0.0)
    for name, described in (("run", config), ("calm", calm)):
        write_export(folder / name / "export", state, described, folder / "data", facts)
    write_tasks(folder / "glue")
    return folder
