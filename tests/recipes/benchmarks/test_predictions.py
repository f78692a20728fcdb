"""Predicted beside measured, by hand; and the table of predictions that is in the repository."""

from __future__ import annotations

import json

import pytest

from recipes.benchmarks import predictions
from recipes.benchmarks.profile import CLASSES, IDLE
from recipes.benchmarks.throughput import ROWS
from recipes.common.gpus import GPUS


@pytest.fixture
def record(tmp_path, monkeypatch):
    expected = {
        "model": "m",
        "micro_batch": 4,
        "global_batch": 8,
        "mfu": [0.4, 0.5, 0.6],
        "real_tokens_per_micro_batch": 100,
        "milliseconds": {"matmul": 60.0, "all else": 3.0},
    }
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps({"throughput": {"a GPU": [expected]}}))
    monkeypatch.setattr(predictions, "PREDICTIONS", path)
    row = {"model": "m", "micro_batch": 4, "global_batch": 8, "mfu": 0.45}
    seconds = {"matmul": 0.1, "attention": 0.006, "idle": 0.002}
    parts = {"micro_batch": 4, "real_tokens": 200, "seconds": seconds}
    return {
        "benchmark": "throughput",
        "device": "a GPU",
        "rows": [row, row | {"global_batch": 16}],
        "breakdowns": {"m": parts},
    }


def test_a_step_of_twice_the_tokens_is_halved_and_what_has_no_class_is_added(record):
    assert predictions.beside(record) == [
        ("m:4:8, MFU", "45.0%", "50.0% (40.0% to 60.0%)"),
        ("m, matmul, 100 tokens", "50.0 ms", "60.0 ms"),
        ("m, all else, 100 tokens", "4.0 ms", "3.0 ms"),
    ]


def test_nothing_stands_beside_another_device_or_mode(record):
    assert predictions.beside(record | {"device": "cpu"}) == []
    assert predictions.beside(record | {"benchmark": "glu"}) == []


def test_the_predictions_are_of_rows_devices_and_classes_that_exist_and_add_up():
    known = json.loads(predictions.PREDICTIONS.read_text())["throughput"]
    for device, rows in known.items():
        assert device in GPUS
        for row in rows:
            assert (row["model"], row["micro_batch"], row["global_batch"]) in ROWS
            assert row["mfu"] == sorted(row["mfu"])
            assert row["milliseconds"].keys() <= {*CLASSES, IDLE, predictions.ALL_ELSE}
            total = row["micro_batch_milliseconds"]
            assert sum(row["milliseconds"].values()) == pytest.approx(total, abs=0.3)


def test_the_page_on_the_first_call_holds_measurements_against_the_same_predictions():
    page = (predictions.PREDICTIONS.parents[1] / "first-gpu-call.md").read_text()
    for rows in json.loads(predictions.PREDICTIONS.read_text())["throughput"].values():
        for row in rows:
            low, middle, high = row["mfu"]
            assert f"{middle:.1%} ({low:.1%} to {high:.1%})" in page
            assert f"{row['micro_batch_milliseconds']} ms" in page
            assert f"{row['real_tokens_per_micro_batch']:,} real tokens" in page
            assert " / ".join(map(str, row["milliseconds"].values())) in page
