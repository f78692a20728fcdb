"""Finetuning end to end at toy size: staging, repeatability, two ranks, predictions, own data."""

from __future__ import annotations

import fcntl
import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_scenarios import BAD, DEV, FILLER, GOOD, sentence
from pretrain_scenarios import run_world, values
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from model.classifier import RapidBertForSequenceClassification
from model.parallel import initialize_parallel
from model.pretrained import read_description
from recipes import finetune
from recipes.common.errors import UserError
from recipes.common.settings import parse
from recipes.corpus.tokenizer import open_tokenizer
from recipes.engine.world import World, initialize_world, shut_down
from recipes.tasks import classifier
from recipes.tasks.classifier import build_model
from recipes.tasks.evaluation import (
    cut_notes,
    encode_all,
    evaluate,
    evaluation_batch,
)
from recipes.tasks.finetune_result import is_done, remove_earlier
from recipes.tasks.finetune_settings import Settings
from recipes.tasks.finetuning import resolve
from recipes.tasks.glue_tasks import TASKS

FAST = ["--epochs", "20", "--learning-rate", "5e-3", "--batch-size", "16", "--log-every", "1"]


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


def calm_finetunings(calls: list[list[str]]) -> list[str]:
    """Likewise, without the head's dropout."""
    classifier.RapidBertForSequenceClassification = functools.partial(
        RapidBertForSequenceClassification, dropout=0.0
    )  # type: ignore[misc,assignment]
    return finetunings(calls)


def losses(directory: Path) -> list[float]:
    lines = (directory / "log.jsonl").read_text().splitlines()
    return [record["loss/train"] for record in map(json.loads, lines) if "loss/train" in record]


def predicted(file: Path) -> list[str]:
    """The predictions in a file for the server, which numbers them from 0."""
    header, *rows = file.read_text().splitlines()
    assert header == "index\tprediction"
    numbers, predictions = zip(*(row.split("\t") for row in rows), strict=True)
    assert numbers == tuple(str(number) for number in range(DEV))
    return list(predictions)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def results(finetune_place, out):
    """MNLI, RTE from it, and CoLA: twice with one seed, once with another, once from scratch."""
    place = finetune_place

    def call(task: str, output: str, *more: str, start: Path = place / "run") -> list[str]:
        named = ["--task", task, "--data", str(place / "glue")]
        return [*named, "--checkpoint", str(start), "--output", str(out / output), *FAST, *more]

    calls = [
        call("MNLI", "one", "--predict-test"),  # in another spelling, it is still MNLI
        call("rte", "one", start=out / "one" / "mnli-seed17"),
        call("cola", "one"),
        call("cola", "again", "--save-model"),
        call("cola", "one", "--seed", "18"),
        call("cola", "scratch", "--from-scratch"),
        call("mnli", "one", "--predict-test"),
        call("cola", "again", "--save-model"),
    ]
    (done,) = values(run_world(1, finetunings, calls))
    assert done == ["mnli-seed17", "cola-seed17"]
    return {
        str(path.relative_to(out)): json.loads(path.read_text()) for path in out.glob("*/*.json")
    }


def test_the_record_says_what_was_done(results):
    record = results["one/cola-seed17.json"]
    assert record["task"] == "cola" and record["seed"] == 17 and record["stand_in"]
    assert record["train_examples"] == 192 and record["dev_examples"] == DEV
    assert record["steps"] == 20 * 12
    assert record["adamw_weight_decay"] == pytest.approx(TASKS["cola"].weight_decay / 5e-3)
    mnli = results["one/mnli-seed17.json"]
    matched, mismatched = mnli["metrics"]["matched"], mnli["metrics"]["mismatched"]
    chance = [of["accuracy"] for of in mnli["chance"]["metrics"].values()]
    assert mnli["chance"]["score"] == pytest.approx(sum(chance) / 2)
    assert mnli["score"] == pytest.approx((matched["accuracy"] + mismatched["accuracy"]) / 2)


def test_the_record_names_the_task_that_the_start_was_finetuned_on(results):
    started = {name: record["start_task"] for name, record in results.items()}
    assert started.pop("one/rte-seed17.json") == "mnli"
    assert set(started.values()) == {None}


def test_a_decisive_word_is_learned(results):
    assert results["one/cola-seed17.json"]["score"] > 0.8


def test_one_seed_repeats_and_two_differ(results, out):
    first = losses(out / "one" / "cola-seed17")
    assert first == losses(out / "again" / "cola-seed17")
    assert first != losses(out / "one" / "cola-seed18")
    assert first != losses(out / "scratch" / "cola-seed17")
    metrics = [results[f"{name}/cola-seed17.json"]["metrics"] for name in ("one", "again")]
    assert metrics[0] == metrics[1]


def test_rte_starts_from_mnli(results, finetune_place, out):
    """Encoder and pooler are MNLI's result, the head is new."""
    initialize_parallel()
    start = out / "one" / "mnli-seed17"
    options = ["--task", "rte", "--data", str(finetune_place / "glue"), "--checkpoint", str(start)]
    model = build_model(resolve(parse(Settings, [*options, "--output", str(out)]), 1))
    published = load_file(start / "export" / "model.safetensors")
    name = "bert.encoder.layer.0.mlp.wo.weight"
    assert model.encoder.layers[0].mlp.linear_out.weight.equal(published[name])
    assert model.pooler.weight.equal(published["bert.pooler.dense.weight"])
    assert model.classifier.weight.shape == (2, 32) != published["classifier.weight"].shape
    before = load_file(finetune_place / "run" / "export" / "model.safetensors")
    assert not published[name].equal(before[name]), "MNLI moved the encoder"
    assert "cls.predictions.decoder.bias" not in published


def test_predictions_for_the_server_score_what_the_dev_sets_do(results, finetune_place, out):
    """The test sets are the dev sets, in another order."""
    metrics = results["one/mnli-seed17.json"]["metrics"]
    assert metrics["matched"]["accuracy"] > 0.6
    for name, file in (("matched", "MNLI-m.tsv"), ("mismatched", "MNLI-mm.tsv")):
        dev = (finetune_place / "glue" / "MNLI" / f"dev_{name}.tsv").read_text().splitlines()[1:]
        labels = [line.split("\t")[3] for line in dev]
        found = predicted(out / "one" / "mnli-seed17" / "predictions" / file)
        right = np.mean([a == b for a, b in zip(found, labels, strict=True)])
        assert right == pytest.approx(metrics[name]["accuracy"])


def test_another_result_takes_the_earlier_model_along(results, finetune_place, out):
    directory = out / "again" / "cola-seed17"
    assert (directory / "export" / "model.safetensors").is_file()
    options = ["--task", "cola", "--data", str(finetune_place / "glue"), "--output"]
    options += [str(out / "again"), "--checkpoint", str(finetune_place / "run")]
    work = resolve(parse(Settings, options), 1)
    remove_earlier(work)
    assert not work.result.exists() and not (directory / "export").exists()
    assert (directory / "log.jsonl").exists()


def test_two_ranks_compute_what_one_does(finetune_place, out):
    """15 examples a step, 1 in the last one, 63 in the dev and test sets: two ranks divide none."""

    def calls(output: str) -> list[list[str]]:
        return [
            ["--task", task, "--data", str(finetune_place / "glue"), "--max-train", "61"]
            + ["--checkpoint", str(finetune_place / "calm"), "--output", str(out / output)]
            + ["--epochs", "20", "--learning-rate", "5e-3", "--batch-size", "15"]
            + ["--log-every", "1", "--predict-test"]
            for task in ("cola", "stsb")
        ]

    for world_size in (1, 2):
        values(run_world(world_size, calm_finetunings, calls(f"ranks-{world_size}")))
    one, two = out / "ranks-1", out / "ranks-2"
    for task in ("cola", "stsb"):
        name = f"{task}-seed17"
        assert len(losses(one / name)) == 20 * 5
        np.testing.assert_allclose(losses(two / name), losses(one / name), rtol=1e-3)
        records = [json.loads((ranks / f"{name}.json").read_text()) for ranks in (one, two)]
        assert [record["world_size"] for record in records] == [1, 2]
        assert records[1]["metrics"] == pytest.approx(records[0]["metrics"], abs=1e-3)
    classes = [predicted(ranks / "cola-seed17/predictions/CoLA.tsv") for ranks in (one, two)]
    assert classes[0] == classes[1]
    scores = [predicted(ranks / "stsb-seed17/predictions/STS-B.tsv") for ranks in (one, two)]
    assert len(set(scores[0])) > 20
    np.testing.assert_allclose(np.float64(scores[1]), np.float64(scores[0]), atol=2e-3)


def test_data_of_ones_own(finetune_place, out):
    rng = np.random.default_rng(3)
    worth = {"up": GOOD, "even": FILLER, "down": BAD}
    for file, count in (("mine", 192), ("dev", DEV)):
        moods = [str(mood) for mood in rng.choice(["up", "down"], count)]
        rows = [f"{mood},{sentence(rng, str(rng.choice(worth[mood])))}" for mood in moods]
        (out / f"{file}.csv").write_text("\n".join(["mood,words", *rows]) + "\n")
        drawn = [(mood, str(rng.choice(worth[mood]))) for mood in rng.choice([*worth], count)]
        records = [
            {"words": sentence(rng, word), "degrees": {"up": 4e5, "even": "3e5", "down": 2e5}[mood]}
            for mood, word in drawn
        ]
        (out / f"{file}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))

    def call(kind: str, label: str, *more: str) -> list[str]:
        files = ["--train-file", str(out / f"mine.{kind}"), "--dev-file", str(out / f"dev.{kind}")]
        named = ["--text-columns", "words", "--label-column", label, "--output", str(out / "mine")]
        return [*files, *named, "--checkpoint", str(finetune_place / "run"), *more]

    regression = call("jsonl", "degrees", "--regression", "--task", "warmth", *FAST)
    values(run_world(1, finetunings, [call("csv", "mood", "--epochs", "1"), regression]))
    record = json.loads((out / "mine" / "custom-seed17.json").read_text())
    assert set(record["metrics"]) == {"accuracy", "f1"}
    description = read_description(out / "mine/custom-seed17/export")
    assert description["task"]["labels"] == ["down", "up"]
    found = AutoConfig.from_pretrained(out / "mine/custom-seed17/export", trust_remote_code=True)
    assert found.id2label == {0: "down", 1: "up"}
    record = json.loads((out / "mine" / "warmth-seed17.json").read_text())
    assert set(record["metrics"]) == {"spearman", "pearson", "rmse"}
    assert record["score"] == record["metrics"]["spearman"] > 0.5
    labels = {part: degrees(out / f"{part}.jsonl") for part in ("mine", "dev")}
    assert record["settings"]["label_scale"] == pytest.approx(
        {"mean": labels["mine"].mean(), "deviation": labels["mine"].std()}
    )
    assert any("labels are learnt as (label - " in note for note in record["notes"])
    assert losses(out / "mine/warmth-seed17")[0] < 3, "far from (3e5)**2"
    # What only knows the export and the texts computes the labels' own numbers.
    computed = exported_values(out / "mine/warmth-seed17/export", out / "dev.jsonl")
    error = np.sqrt(np.mean((computed - labels["dev"]) ** 2))
    assert error == pytest.approx(record["metrics"]["rmse"], rel=1e-3)
    assert error < 0.8 * labels["dev"].std()


def degrees(file: Path) -> np.ndarray:
    return np.array([float(json.loads(line)["degrees"]) for line in file.read_text().splitlines()])


def exported_values(export: Path, file: Path) -> np.ndarray:
    """By the export alone, as transformers loads it."""
    model = AutoModelForSequenceClassification.from_pretrained(export, trust_remote_code=True)
    assert model.config.problem_type == "regression"
    tokenizer = open_tokenizer(export)
    found = []
    for line in file.read_text().splitlines():
        ids = [tokenizer.cls_id, *tokenizer.encode(json.loads(line)["words"]), tokenizer.sep_id]
        with torch.no_grad():
            found.append(model.eval()(torch.tensor([ids])).logits.item())
    return np.array(found)


def test_a_loss_that_is_no_number_ends_without_a_result(finetune_place, out):
    options = ["--task", "cola", "--data", str(finetune_place / "glue"), "--output"]
    options += [str(out / "nan"), "--checkpoint", str(finetune_place / "run")]
    (outcome,) = run_world(1, poisoned, options)
    assert isinstance(outcome.error, UserError)
    assert "cola-seed17, step 1 of 60: loss nan, gradient norm" in str(outcome.error)
    assert f"no weight has changed yet, so look at those in {finetune_place / 'run'}" in str(
        outcome.error
    )
    assert not (out / "nan" / "cola-seed17.json").exists()


def poisoned(options: list[str]) -> None:
    world = initialize_world()
    work = resolve(parse(Settings, options), 1)
    work.weights["encoder.embedding.layernorm.weight"][0] = math.nan
    try:
        finetune.finetune(work, world)
    finally:
        shut_down()


@pytest.mark.parametrize("task", ["cola", "stsb"])
def test_outputs_that_are_no_numbers_are_no_predictions(finetune_place, out, task):
    """For classes too, where the largest of them would be a class like any other."""
    initialize_parallel()
    options = ["--task", task, "--data", str(finetune_place / "glue"), "--output", str(out)]
    work = resolve(parse(Settings, [*options, "--checkpoint", str(finetune_place / "run")]), 1)
    model = build_model(work)
    model.classifier.bias.data[-1] = math.nan
    with pytest.raises(UserError, match="for 63 of 63 examples the model computes something else"):
        evaluate(model, work, encode_all(work)[1], ALONE)


def test_two_processes_do_not_finetune_into_one_directory(finetune_place, out):
    options = ["--task", "cola", "--data", str(finetune_place / "glue"), "--output"]
    options += [str(out / "held"), "--checkpoint", str(finetune_place / "run")]
    directory = out / "held" / "cola-seed17"
    directory.mkdir(parents=True)
    (directory / "log.jsonl").write_text("another's\n")
    with (directory / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for outcome in run_world(2, finetunings, [options]):
            assert isinstance(outcome.error, UserError)
            assert f"{directory}: another process is finetuning into it" in str(outcome.error)
    assert (directory / "log.jsonl").read_text() == "another's\n"


def test_texts_that_are_cut_are_noted(finetune_place, out, capsys):
    options = ["--task", "cola", "--data", str(finetune_place / "glue"), "--max-length", "9"]
    options += ["--output", str(out), "--checkpoint", str(finetune_place / "run")]
    work = resolve(parse(Settings, options), 1)
    train, dev = encode_all(work)
    notes = cut_notes(work, {"training": train, **dev})
    assert [note.split(" of ")[0].split(":")[0] for note in notes] == ["training set", "dev set"]
    assert f"{dev['dev'].cut} of 63 examples are cut to 9 tokens, the longest has" in notes[1]


ALONE = World(0, 0, 1, torch.device("cpu"), 0, 1, 1)


def test_long_texts_are_evaluated_in_smaller_batches():
    assert [evaluation_batch(n, ALONE) for n in (64, 512, 1024, 65_536)] == [256, 256, 64, 1]
    eight = replace(ALONE, world_size=8, data_parallel_size=8)
    assert evaluation_batch(65_536, eight) == 8
