"""Tags of words and sets of labels end to end at toy size, on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from finetune_scenarios import BAD, FILLER, GOOD
from pretrain_scenarios import run_world, values
from sklearn.metrics import f1_score
from torch.nn import BCEWithLogitsLoss

from model.classifier import RapidBertForSequenceClassification
from model.parallel import initialize_parallel
from model.token_classifier import RapidBertForTokenClassification
from recipes import finetune
from recipes.common.errors import Faults, UserError
from recipes.common.settings import parse
from recipes.corpus.tokenizer import open_tokenizer
from recipes.engine.world import initialize_world, shut_down
from recipes.tasks.finetune_result import is_done
from recipes.tasks.finetune_settings import Settings
from recipes.tasks.finetuning import resolve
from recipes.tasks.tag_schemes import tag_metrics
from recipes.tasks.token_classification import EncodedSentences

FAST = ["--learning-rate", "5e-3", "--batch-size", "16", "--log-every", "1"]
KINDS = ("token-classification", "multi-label")
FEW = ["--max-train", "41", "--epochs", "1"]
LABELS = ["bad", "good"]
OTHER = [word for word in FILLER if word not in ("weather", "report")]


def finetunings(calls: list[list[str]]) -> list[str]:
    """Several, one after the other, in one process; returns which were done already."""
    world = initialize_world()
    done = []
    for call in calls:
        work = resolve(parse(Settings, call), world.world_size)
        if is_done(work):
            done.append(work.name)
        else:
            finetune.finetune(work, world)
    shut_down()
    return done


def write_tags(path: Path, count: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """ "weather report" is a thing; a report of something else is none."""
    rng = np.random.default_rng(seed)
    sentences = []
    for _ in range(count):
        words, tags = list[str](), list[str]()
        for kind in rng.choice(3, 6, p=(0.4, 0.3, 0.3)):
            words += [[], ["weather", "report"], ["report"]][kind]
            tags += [[], ["B-THING", "I-THING"], ["O"]][kind]
            words += [str(word) for word in rng.choice(OTHER, 2)]
            tags += ["O", "O"]
        sentences.append((words, tags))
    blocks = ["-DOCSTART- -X- O\n"]
    blocks += ["".join(f"{w} -X- {t}\n" for w, t in zip(*each, strict=True)) for each in sentences]
    path.write_text("\n".join(blocks))
    return sentences


def write_label_sets(path: Path, count: int, seed: int) -> np.ndarray:
    """Labels say which of GOOD and BAD a text has a word of: none, one or both."""
    rng = np.random.default_rng(seed)
    rows, drawn = [], rng.integers(2, size=(count, 2))
    for bad, good in drawn:
        words = [str(word) for word in rng.choice(FILLER, 6)]
        words += [str(rng.choice(GOOD))] * good + [str(rng.choice(BAD))] * bad
        labels = [name for name, there in zip(LABELS, (bad, good), strict=True) if there]
        rows.append({"text": " ".join(rng.permutation(words)), "labels": labels})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return drawn


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for name, count, seed in (("train", 240, 0), ("dev", 60, 1)):
        write_tags(folder / f"{name}.conll", count, seed)
        write_label_sets(folder / f"{name}.jsonl", count, seed)
    return folder


def call(kind: str, place: Path, out: Path, output: str, *more: str, start: str = "run"):
    ending = "conll" if kind == "token-classification" else "jsonl"
    files = ["--train-file", str(out / f"train.{ending}"), "--dev-file", str(out / f"dev.{ending}")]
    if ending == "jsonl":
        files += ["--text-columns", "text", "--label-column", "labels"]
    where = ["--checkpoint", str(place / start), "--output", str(out / output)]
    return ["--kind", kind, "--task", ending, *files, *where, *FAST, *more]


@pytest.fixture(scope="module")
def results(finetune_place, out) -> dict[str, Any]:
    calls = [
        call("token-classification", finetune_place, out, "one", "--epochs", "24"),
        call("multi-label", finetune_place, out, "one", "--epochs", "6"),
    ]
    few = [call(kind, finetune_place, out, "1", *FEW, start="calm") for kind in KINDS]
    (done,) = values(run_world(1, finetunings, [*calls, *calls, *few]))
    assert done == ["conll-seed17", "jsonl-seed17"]
    return {path.stem: json.loads(path.read_text()) for path in out.glob("one/*.json")}


def test_tags_are_learnt_from_the_sentence(results, out, tmp_path):
    """The baseline gives each word the tag that it has most often, whatever is said beside it."""
    record = results["conll-seed17"]
    dev = write_tags(tmp_path / "same", 60, 1)
    right = [tags for _, tags in dev]
    usual = {"weather": "B-THING", "report": "I-THING"}
    baseline = tag_metrics(right, [[usual.get(word, "O") for word in words] for words, _ in dev])
    assert 0.5 < baseline["f1"] < 0.8
    assert record["score_metric"] == "f1" and record["score"] > baseline["f1"] + 0.05
    assert record["metrics"]["accuracy"] > baseline["accuracy"]
    lines = (out / "one/conll-seed17/predictions/dev.conll").read_text().split("\n\n")
    columns = [[line.split("\t") for line in each.splitlines()] for each in lines]
    assert [[line[0] for line in each] for each in columns] == [words for words, _ in dev]
    assert [[line[1] for line in each] for each in columns] == right
    predicted = [[line[2] for line in each] for each in columns]
    assert tag_metrics(right, predicted) == pytest.approx(record["metrics"])


def test_sets_of_labels_are_learnt(results, out, tmp_path):
    """The baseline gives every text both labels."""
    record = results["jsonl-seed17"]
    right = write_label_sets(tmp_path / "same", 60, 1)
    baseline = f1_score(right, np.ones_like(right), average="micro")
    assert record["score_metric"] == "micro_f1" and record["score"] > baseline + 0.1
    assert record["metrics"]["macro_f1"] > baseline + 0.1
    assert any("of 60 examples have 'bad' " in note for note in record["notes"])


def test_exports_are_what_transformers_and_our_models_read(results, out, finetune_place):
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    initialize_parallel()
    folder = out / "one" / "conll-seed17"
    config = json.loads((folder / "export/config.json").read_text())
    assert config["architectures"] == ["RapidBertForTokenClassification"]
    assert list(config["id2label"].values()) == ["O", "B-THING", "I-THING"]
    model = RapidBertForTokenClassification.from_pretrained(folder / "export")
    tokenizer = open_tokenizer(folder / "export")
    lines = (folder / "predictions/dev.conll").read_text().split("\n\n")[0].splitlines()
    words, _, predicted = zip(*(line.split("\t") for line in lines), strict=True)
    (sequence,) = (made := EncodedSentences(tokenizer, [words], None, 64)).ids
    scores = model.logits(torch.from_numpy(sequence).unsqueeze(0))[0, made.places[0]]
    assert [config["id2label"][str(k)] for k in scores.argmax(-1).tolist()] == list(predicted)
    config = json.loads((out / "one/jsonl-seed17/export/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == LABELS
    several = RapidBertForSequenceClassification.from_pretrained(out / "one/jsonl-seed17/export")
    assert several.outputs == 2
    load = {"trust_remote_code": True}
    theirs = AutoModelForTokenClassification.from_pretrained(folder / "export", **load)
    ids = torch.from_numpy(sequence).unsqueeze(0)
    torch.testing.assert_close(theirs(ids).logits[0, made.places[0]], scores, atol=1e-5, rtol=0)
    theirs = AutoModelForSequenceClassification.from_pretrained(
        out / "one/jsonl-seed17/export", **load
    )
    given = theirs(ids, labels=torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(given.logits, several.logits(ids), atol=1e-5, rtol=0)
    expected = BCEWithLogitsLoss()(several.logits(ids), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(given.loss, expected, atol=1e-5, rtol=0)


def test_pipelines_give_the_same_tags_and_probabilities(results, out):
    """By AutoTokenizer and the pipelines of transformers, from the export's directory alone."""
    initialize_parallel()
    folder = out / "one" / "conll-seed17"
    tagger = transformers.pipeline(
        "token-classification",
        model=str(folder / "export"),
        trust_remote_code=True,
        ignore_labels=[],
    )
    tokenizer = open_tokenizer(folder / "export")
    blocks = (folder / "predictions/dev.conll").read_text().split("\n\n")[:8]
    for lines in blocks:
        words, _, predicted = zip(*(line.split("\t") for line in lines.splitlines()), strict=True)
        (places,) = EncodedSentences(tokenizer, [words], None, 256).places
        found = {piece["index"]: piece["entity"] for piece in tagger(" ".join(words))}
        assert [found[place] for place in places.tolist()] == list(predicted)
    assert {tag for lines in blocks for tag in lines.split()} >= {"O", "B-THING", "I-THING"}

    export = out / "one/jsonl-seed17/export"
    scorer = transformers.pipeline("text-classification", model=str(export), trust_remote_code=True)
    model, tokenizer = (
        RapidBertForSequenceClassification.from_pretrained(export),
        open_tokenizer(export),
    )
    for line in (out / "dev.jsonl").read_text().splitlines()[:8]:
        text = json.loads(line)["text"]
        ids = torch.tensor([[tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]])
        with torch.no_grad():
            expected = dict(zip(LABELS, model.logits(ids)[0].sigmoid().tolist(), strict=True))
        scores = {each["label"]: each["score"] for each in scorer(text, top_k=None)}
        assert scores == pytest.approx(expected, abs=1e-5)


def test_two_ranks_train_on_the_same_mean(results, finetune_place, out):
    """Tokens are counted over both ranks: each one's own count would give another mean."""
    calls = [call(kind, finetune_place, out, "2", *FEW, start="calm") for kind in KINDS]
    values(run_world(2, finetunings, calls))
    for name in ("conll-seed17", "jsonl-seed17"):
        logs = [(out / str(ranks) / name / "log.jsonl").read_text() for ranks in (1, 2)]
        one, two = (
            [r["loss/train"] for r in map(json.loads, log.splitlines()) if "loss/train" in r]
            for log in logs
        )
        assert len(one) == 3 and two == pytest.approx(one, rel=1e-4)
        first, second = (json.loads((out / str(r) / f"{name}.json").read_text()) for r in (1, 2))
        assert second["metrics"] == pytest.approx(first["metrics"], abs=0.05)


def test_wrong_columns_are_named_at_once(finetune_place, out, tmp_path):
    def faults(*words: str) -> tuple[str, ...]:
        with pytest.raises(UserError) as caught:
            resolve(parse(Settings, words), 1, Faults())
        return caught.value.faults

    tags = call("token-classification", finetune_place, out, "bad")
    found = faults(*tags, "--text-columns", "a", "b", "--label-column", "t", "--regression")
    assert [fault.split(":")[0].split(" is ")[0] for fault in found] == [
        "--regression",
        "--text-columns",
        "--text-columns",
        "--label-column",
    ]
    sets = call("multi-label", finetune_place, out, "bad")
    del sets[sets.index("--label-column") : sets.index("--label-column") + 2]
    (only,) = faults(*sets)
    assert only == "--label-column: name the column of the labels, or one for each label"
    single = call("multi-label", finetune_place, out, "bad")
    single[single.index("multi-label")] = "classification"
    assert any("is a list, not one name" in fault for fault in faults(*single))
