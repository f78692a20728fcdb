"""TensorBoard itself is asked what it shows, through its own web application."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend import application
from tensorboard.backend.event_processing import data_ingester
from tensorboard.default import get_plugins
from tensorboard.program import TensorBoard
from werkzeug.test import Client

from recipes.training.curves import LAYOUT, SCORE, Curves, tag_of
from recipes.training.run_log import RunLog, read_records

STEPS = 12


def finetune(directory: Path, task: str, score: float) -> None:
    log = RunLog(directory, total_steps=4, task=task, config={"task": task, "epochs": 2})
    for step in (2, 4):
        log.log(step, 8 * step, 80 * step, 0.1 * step, {"loss/train": 1 / step})
        log.eval(step, 8 * step, 80 * step, 0.1 * step, {"dev/accuracy": score * step / 4})
    log.summarize((4, 32, 320, 0.4), {"task": task, "epochs": 2}, {SCORE: score})
    log.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A pretraining that was resumed after step 6 of 10, and two finetunings, one done twice."""
    runs = tmp_path_factory.mktemp("runs")
    for first, last, resume, loss in ((1, 10, 0, 9.0), (7, STEPS, 6, 5.0)):
        config = {"run": {"seed": 7}, "device": "cpu", "model": {"name": "rapidbert-tiny"}}
        log = RunLog(runs / "demo", total_steps=STEPS, resume_step=resume, config=config)
        for step in range(first, last + 1):
            scalars = {"loss/train": loss - step / 7, "throughput/tokens_per_sec": 1000.0 + step}
            scalars |= {"optimizer/grad_norm": 0.1 * step, "accuracy/eval": 0.01}
            where = (step, 16 * step, 1000 * step, 0.5 * step)
            log.log(*where, scalars | {"time/training_seconds": 0.4 * step})
            if step % 4 == 0:
                log.eval(*where, {"loss/eval": 3.0, "time/training_seconds": 0.5 * step})
        log.close()
    for score in (0.25, 0.5):
        finetune(runs / "demo" / "glue" / "cola-seed17", "cola", score)
    finetune(runs / "demo" / "glue-from-scratch" / "cola-seed17", "cola", 0.125)
    return runs


@pytest.fixture(scope="module")
def ask(runs) -> Any:
    """Asks TensorBoard's application over `runs` for a path, in this process."""
    board = TensorBoard(plugins=get_plugins())
    board.configure(argv=["tensorboard", "--logdir", str(runs), "--load_fast=false"])
    ingester = data_ingester.LocalDataIngester(board.flags)
    ingester._multiplexer.AddRunsFromDirectory(str(runs))  # what its thread does, now and once
    ingester._multiplexer.Reload()
    app = application.TensorBoardWSGIApp(
        board.flags, board.plugin_loaders, ingester.data_provider, board.assets_zip_provider
    )
    client = Client(app)

    def get(path: str, body: dict[str, Any] | None = None, **words: str) -> Any:
        url = f"/data/{path}?{urllib.parse.urlencode(words)}"
        answer = client.get(url) if body is None else client.post(url, json=body)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        return json.loads(answer.get_data())

    return get


def logged(directory: Path, name: str) -> list[tuple[int, float]]:
    records, broken = read_records(directory / "log.jsonl")
    assert not broken
    first: dict[int, float] = {}  # of two records of a step
    for record in records:
        if name in record:
            first.setdefault(record["step"], record[name])
    return list(first.items())


def test_the_scalars_are_what_the_log_says(runs, ask):
    for run, directory, task in (
        ("demo/tensorboard", runs / "demo", None),
        ("demo/glue/cola-seed17/tensorboard", runs / "demo/glue/cola-seed17", "cola"),
    ):
        records, _ = read_records(directory / "log.jsonl")
        names = {name for record in records for name in record}
        names -= {"step", "sequences", "tokens", "seconds"}
        assert len(names) > 2
        for name in names:
            answer = ask("plugin/scalars/scalars", run=run, tag=tag_of(name, task))
            assert [(step, value) for _, step, value in answer] == [
                (step, pytest.approx(value)) for step, value in logged(directory, name)
            ]
    tokens = ask("plugin/scalars/scalars", run="demo/tensorboard", tag="4 progress/tokens")
    assert [(step, value) for _, step, value in tokens] == [
        (step, 1000.0 * step) for step in range(1, STEPS + 1)
    ]


def test_it_opens_on_loss_and_throughput_and_tasks_stand_by_themselves(ask):
    found = ask("plugin/scalars/tags")
    assert sorted(found) == [
        "demo/glue-from-scratch/cola-seed17/tensorboard",
        "demo/glue/cola-seed17/tensorboard",
        "demo/tensorboard",
    ]
    tags = sorted({tag for of in found.values() for tag in of})
    groups = list(dict.fromkeys(tag.partition("/")[0] for tag in tags))
    assert groups == [
        *("1 loss", "2 throughput", "3 accuracy", "4 progress", "5 optimizer", "6 time"),
        *("cola", "finetuning"),
    ]


def test_custom_scalars_are_laid_out_and_name_curves_that_exist(ask):
    layout = ask("plugin/custom_scalars/layout")
    assert [each["title"] for each in layout["category"]] == list(LAYOUT)
    assert list(LAYOUT)[:3] == ["Loss", "Throughput", "Health"]
    charts = {c["title"]: c["multiline"]["tag"] for e in layout["category"] for c in e["chart"]}
    answer = ask(
        "plugin/custom_scalars/scalars", run="demo/tensorboard", tag=charts["loss (nats)"][0]
    )
    assert list(answer["tag_to_events"]) == ["1 loss/train"]
    answer = ask(
        "plugin/custom_scalars/scalars",
        run="demo/glue/cola-seed17/tensorboard",
        tag=charts["loss"][0],
    )
    assert list(answer["tag_to_events"]) == ["cola/loss/train"]


def test_hyper_parameters_stand_beside_the_final_score(ask):
    columns = ask("plugin/hparams/experiment", {"experimentName": ""})
    assert {each["name"] for each in columns["hparamInfos"]} == {"task", "epochs"}
    assert [each["name"]["tag"] for each in columns["metricInfos"]] == [SCORE]
    request = {
        "experimentName": "",
        "colParams": [{"metric": {"group": "", "tag": SCORE}}],
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"],
        "startIndex": 0,
        "sliceSize": 9,
    }
    groups = ask("plugin/hparams/session_groups", request)["sessionGroups"]
    scores = {
        session["name"]: session["metricValues"][0]["value"]
        for group in groups
        for session in group["sessions"]
    }
    assert scores == {
        "demo/glue-from-scratch/cola-seed17/tensorboard": 0.125,
        "demo/glue/cola-seed17/tensorboard": 0.5,
    }


def test_the_settings_are_a_text(ask):
    assert "config/text_summary" in ask("plugin/text/tags")["demo/tensorboard"]
    (text,) = ask("plugin/text/text", run="demo/tensorboard", tag="config/text_summary")
    assert "<h3>run</h3>" in text["text"] and "<code>rapidbert-tiny</code>" in text["text"]


def test_curves_of_a_log_of_no_records(tmp_path):
    curves = Curves(tmp_path)
    curves.close()
    curves.redraw([])
    curves.redraw([{"step": 1, "sequences": 2, "tokens": 3, "seconds": 4.0, "loss/train": None}])
    curves.close()
    assert len(list(tmp_path.iterdir())) == 1
