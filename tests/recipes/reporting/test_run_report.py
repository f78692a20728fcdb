"""The report of runs: its table by hand, its settings."""

from __future__ import annotations

import json
from pathlib import Path

from report_scenarios import restart, write_run

from recipes.reporting.run_report import report, table
from recipes.reporting.runs import load_runs


def column(directory: Path) -> dict[str, str]:
    return dict(table(load_runs([directory])))


def test_the_table_by_hand(tmp_path):
    assert column(write_run(tmp_path / "base")) == {
        "": "base",
        "model": "rapidbert-base",
        "parameters": "137.3 M",
        "devices": "8 × NVIDIA H200",
        "steps": "40 of 50",
        "sequences": "163,840",
        "tokens": "18,000,000",
        "training loss (nats)": "6.000",
        "evaluation loss at 15% masking (nats)": "5.000",
        "evaluation accuracy at 15% masking": "40.0%",
        "unigram entropy (nats)": "6.460",
        "real tokens/s (median)": "1,000,020",
        "padding (median)": "2.0%",
        "MFU, 6N (median)": "40.0%",
        "executed-FLOPs utilisation (median)": "-",
        "wall time": "40s",
        "restarts": "0",
        "cost": "$20.00",
    }


def test_a_loss_that_was_not_finite_is_passed_over(tmp_path):
    run = write_run(tmp_path / "base")
    lost = {"step": 41, "sequences": 167_936, "tokens": 1, "seconds": 41, "loss/train": None}
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps(lost) + "\n")
    cells = column(run)
    assert cells["steps"] == "41 of 50"
    assert cells["training loss (nats)"] == "6.000"


def test_the_markdown_holds_every_setting_and_escapes_bars(tmp_path):
    run = write_run(tmp_path / "base", run={"seed": 7, "data": "a|b"})
    text = report(load_runs([run]))
    for row in ("| seed | `7` |", "| data | `a\\|b` |", "| torch | `2.13.0` |"):
        assert row in text
    assert "![loss](loss.png)" in text


def test_the_markdown_says_where_a_run_was_restarted(tmp_path):
    run = restart(write_run(tmp_path / "base"), 20, at=25)
    assert column(run)["restarts"] == "1"
    text = report(load_runs([run]))
    assert "- base was restarted after step 20 was logged, 25s into the run" in text.splitlines()
