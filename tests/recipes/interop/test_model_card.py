"""Model cards: their numbers are the records' own, and what nobody knows is not in them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from pretrain_scenarios import command_line, pretraining, run_world, values, write_config

from model.config import ModelConfig
from recipes.common.files import sha256
from recipes.interop.card_facts import CardFacts, gather, glue_scores
from recipes.interop.model_card import BEGIN, model_card, refresh_scores, with_scores

CONFIG = ModelConfig("some-bert", 2, 64, 2, 128, vocab_size=100)


def front_matter(card: str) -> dict:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def table(card: str, heading: str) -> dict[str, str]:
    """Two-column rows of a section."""
    section = card.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def number(text: str) -> float:
    found = re.match(r"[\d,.]+", text)
    assert found
    return float(found[0].replace(",", ""))


def bare(**changes) -> CardFacts:
    nothing = dict(description={}, record={}, log=[], manifest={}, glue={}, parameters=0)
    return CardFacts(**{"config": CONFIG, "head": "masked_lm", **nothing, **changes})


@pytest.fixture(scope="module")
def run(finetune_place, tmp_path_factory) -> Path:
    """A pretraining of five steps, exported after two of them and at its end."""
    folder = tmp_path_factory.mktemp("card")
    config = write_config(folder, 8, 4)
    options = dict(duration=40, eval_every=1, log_every=1, export_at=0.4)
    arguments = command_line(finetune_place / "data", folder / "run", config, **options)
    assert values(run_world(1, pretraining, arguments)) == [0]
    return folder / "run"


def test_the_numbers_of_a_pretraining_are_those_of_its_records(run, finetune_place):
    card = (run / "export" / "README.md").read_text("utf-8")
    record = json.loads((run / "config.json").read_text())
    manifest = json.loads((finetune_place / "data" / "manifest.json").read_text())
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert front_matter(card)["pipeline_tag"] == "fill-mask"
    assert front_matter(card)["library_name"] == "transformers"
    assert "license" not in front_matter(card) and "License: not named yet" in card
    assert number(table(card, "Model")["parameters"]) == record["model"]["parameters"]
    data, train = table(card, "Training text"), manifest["splits"]["train"]
    assert data["from"] == "text.txt"  # without the folders of this machine
    assert number(data["tokens"]) == train["tokens"]
    assert number(data["documents"]) == train["documents"]
    trained = table(card, "Pretraining")
    assert number(trained["steps"]) == 5 and number(trained["sequences"]) == 40
    assert number(trained["tokens"]) == log[-1]["tokens"]
    assert number(trained["global batch"]) == 8
    assert number(trained["peak learning rate"]) == record["run"]["learning_rate"]
    curve = [line.split(" | ") for line in card.splitlines() if re.match(r"\| \d+ \| ", line)]
    train_loss = {r["step"]: r["loss/train"] for r in log if "loss/train" in r}
    eval_loss = {r["step"]: r["loss/eval"] for r in log if "loss/eval" in r}
    assert [int(row[0].strip("| ")) for row in curve] == [1, 2, 3, 4, 5]
    for step, row in enumerate(curve, 1):
        assert float(row[2]) == pytest.approx(train_loss[step], rel=1e-3)
        assert float(row[3]) == pytest.approx(eval_loss[step], rel=1e-3)
    assert table(card, "Made with")["torch"] == record["versions"]["torch"]
    assert table(card, "Cost")["device"] == "1 x cpu" and "dollars" not in card


def test_an_export_on_the_way_says_how_far_it_is(run):
    card = (run / "at-40" / "export" / "README.md").read_text("utf-8")
    assert number(table(card, "Pretraining")["steps"]) == 2
    curve = [line for line in card.splitlines() if re.match(r"\| \d+ \| ", line)]
    assert [int(line.split(" | ")[0].strip("| ")) for line in curve] == [1, 2]


def test_what_is_not_known_is_left_out():
    card = model_card(bare())
    assert yaml.safe_load(card.split("---\n")[1])["tags"]
    for heading in ("Training text", "Pretraining", "GLUE", "Task", "Cost", "Made with"):
        assert f"## {heading}" not in card
    assert "None" not in card and "unknown" not in card and "nan" not in card


def test_a_damaged_record_makes_the_card_shorter_and_nothing_fails(tmp_path):
    (tmp_path / "config.json").write_text('{"identity": {}, "run": 5, "versions": []')
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss/train": 2.5}\n{"step": 2, "lo')
    (tmp_path / "manifest.json").write_text("[]")
    facts = gather(tmp_path / "export", CONFIG, "masked_lm", {}, tmp_path, tmp_path / "none")
    assert facts.record == {} and facts.manifest == {} and len(facts.log) == 1
    assert "some-bert" in model_card(facts)


def test_weights_of_others_were_not_trained_here(tmp_path):
    """Nor do records that happen to lie beside the directory belong to it."""
    record = {"identity": {}, "device": "NVIDIA H200", "world_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss/train": 2.5}\n')
    described = {"imported_from": {"directory": "bert-base-uncased", "layout": "bert"}}
    for name in ("export", "mine"):
        place = tmp_path / name
        facts = gather(place, CONFIG, "masked_lm", described, tmp_path, tmp_path / "none")
        card = model_card(facts)
        assert "weights in the layout of bert that others have trained" in card
        assert "trained with RapidBERT" not in card and "H200" not in card and "2.5" not in card


def test_a_gpu_has_hours_and_a_price():
    record = {"device": "NVIDIA H100 80GB HBM3", "world_size": 8}
    log = [{"step": 1, "cost/dollars": 10.0}, {"step": 2, "cost/dollars": 50.0}]
    progress = {"step": 2, "seconds": 9000.0}
    card = model_card(bare(record=record, log=log, description={"progress": progress}))
    cost = {"device": "8 x NVIDIA H100 80GB HBM3", "GPU hours": "20", "dollars": "50.00"}
    assert table(card, "Cost") == {"---": "---", **cost}


def test_hub_data_sets_are_named_for_the_hub(tmp_path):
    inputs = ["allenai/c4", str(tmp_path), "./mine/texts", "a/b/c.txt"]
    card = model_card(bare(manifest={"options": {"input": inputs}}))
    assert front_matter(card)["datasets"] == ["allenai/c4"]
    assert table(card, "Training text")["from"] == f"allenai/c4, {tmp_path.name}, texts, c.txt"


def test_a_classifier_says_task_labels_and_score(models):
    task = {
        "name": "mood",
        "labels": ["good", "a|b"],
        "text_columns": ["a", "b"],
        "max_length": 64,
        "metrics": {"dev": {"accuracy": 0.875}},
        "train_examples": 1234,
    }
    card = model_card(bare(head="classifier", description={"task": task}))
    assert front_matter(card)["pipeline_tag"] == "text-classification"
    assert "# some-bert, finetuned on mood" in card
    assert table(card, "Task")["labels"] == "good, a\\|b"
    assert number(table(card, "Task")["examples to learn from"]) == 1234
    assert "| dev | accuracy | 0.875 |" in card
    assert "text_pair" in card and "recipes/predict.py" in card
    exported = (models / "single" / "export" / "README.md").read_text("utf-8")
    assert table(exported, "Task")["labels"] == "bad, so, so, good"


def write_result(folder: Path, name: str, weights: str, score: float, **changes) -> None:
    task = name.partition("-")[0]
    result = {"task": task, "score": score, "score_metric": "accuracy", "stand_in": False}
    result |= {"from_scratch": False, "checkpoint_sha256": weights, **changes}
    (folder / f"{name}.json").write_text(json.dumps(result))


def test_scores_of_these_weights_come_into_the_card_and_no_others(tmp_path):
    export, results = tmp_path / "export", tmp_path / "glue"
    (results / "mnli-seed17" / "export").mkdir(parents=True)
    export.mkdir()
    weights = export / "model.safetensors"
    weights.write_bytes(b"these")
    (results / "mnli-seed17" / "export" / "model.safetensors").write_bytes(b"mnli")
    these, mnli = sha256(weights), sha256(results / "mnli-seed17/export/model.safetensors")
    write_result(results, "mnli-seed17", these, 0.8)
    write_result(results, "rte-seed17", mnli, 0.6)
    write_result(results, "rte-seed18", mnli, 0.7)
    write_result(results, "cola-seed17", these, 0.5, stand_in=True)
    write_result(results, "qnli-seed17", "others", 0.9)
    write_result(results, "qqp-seed17", these, 0.9, from_scratch=True)
    found = glue_scores(results, weights)
    assert found == {"mnli": [(0.8, "accuracy")], "rte": [(0.6, "accuracy"), (0.7, "accuracy")]}
    assert refresh_scores(export, results) is None  # an older export has no card

    card = model_card(bare())
    (export / "README.md").write_text(card.replace("# some-bert", "# My own title"))
    for _ in range(2):
        assert refresh_scores(export, results) == f"{export / 'README.md'}: has the scores"
    renewed = (export / "README.md").read_text()
    assert "| rte | 65.0 | accuracy | 2 |" in renewed and renewed.count("| mnli |") == 1
    assert "# My own title" in renewed and with_scores(renewed, {}) == card.replace(
        "# some-bert", "# My own title"
    )
    assert model_card(bare(glue=found)) == with_scores(card, found)

    (export / "README.md").write_text(renewed.replace(BEGIN, ""))
    assert "the place for the scores is gone" in (refresh_scores(export, results) or "")
