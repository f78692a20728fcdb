"""The comparison, from runs and results written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_scenarios import write_comparison, write_timed_run

from recipes.common.errors import UserError
from recipes.reporting import equal_time


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    directory = write_comparison(tmp_path)
    return [directory / "rapidbert-tiny", directory / "bert-tiny"]


def test_table_and_record_say_what_the_logs_say(runs, tmp_path):
    printed = equal_time.write(tmp_path / "out", runs)
    rows = {row[0]: row[1:] for row in equal_time.table(equal_time.load(runs))}
    assert rows[""] == ("rapidbert-tiny", "bert-tiny")
    assert rows["held-out loss at 25% of the time (nats)"] == ("6.000", "6.500")
    assert rows["held-out loss at 50% of the time (nats)"] == ("5.000", "6.000")
    assert rows["held-out loss at 100% of the time (nats)"] == ("4.000", "5.000")
    assert rows["minutes to bert-tiny's last loss"] == ("1.0", "")  # the second of four
    assert rows["minutes to rapidbert-tiny's last loss"] == ("", "never")
    assert rows["average of 2 tasks, from random weights"] == ("20.0", "15.0")
    assert rows["average of 2 tasks, at 50% of the time"] == ("50.0", "30.0")
    assert rows["average of 2 tasks, at 100% of the time"] == ("60.0", "40.0")
    assert rows["CoLA (matthews), random / last"] == ("10.0 / 50.0", "5.0 / 30.0")
    assert rows["real tokens/s (median)"] == ("1,002", "1,002")
    assert rows["cost, evaluation and saving too"] == ("no GPU", "no GPU")
    record = json.loads((tmp_path / "out" / "equal_time.json").read_text())
    ours = record["models"]["rapidbert-tiny"]
    assert ours["loss"] == [[0.5, 1.0, 1.5, 2.0], [6.0, 5.0, 4.5, 4.0]]
    assert [point["minutes"] for point in ours["scores"]] == [0, 0.5, 1, 2]
    assert ours["scores"][-1]["tasks"] == {"cola": 50.0, "sst2": 70.0}
    # Stand-ins are named wherever their scores are.
    report = (tmp_path / "out" / "equal_time.md").read_text()
    assert record["stand_in"] and "not GLUE" in printed and "not GLUE" in report.splitlines()[0]


def test_the_runs_of_a_comparison_are_found(runs, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "config.json").write_text("{}")
    assert equal_time.runs_in(tmp_path) == runs


def test_the_figure_shows_loss_and_scores_against_minutes(runs):
    losses, scores = equal_time.figure(equal_time.load(runs)).axes
    lines = {line.get_label(): line for line in losses.lines}
    assert np.array_equal(lines["bert-tiny"].get_xdata(), [0.5, 1.0, 1.5, 2.0])
    assert np.array_equal(lines["bert-tiny"].get_ydata(), [6.5, 6.0, 5.5, 5.0])
    lines = {line.get_label(): line for line in scores.lines}
    assert np.allclose(lines["rapidbert-tiny"].get_xdata(), [0, 0.5, 1, 2])
    assert np.allclose(lines["rapidbert-tiny"].get_ydata(), [20, 40, 50, 60])
    assert "not GLUE" in scores.get_ylabel()


def test_what_cannot_be_compared_is_named(runs, tmp_path):
    other = write_timed_run(
        tmp_path / "other", [5.0], [0.1] * 4, device="NVIDIA H200", global_batch=32
    )
    with pytest.raises(UserError) as caught:
        equal_time.load([runs[0], other])
    assert [fault.split(" differ")[0] for fault in caught.value.faults] == [
        "devices",
        "global batches",
    ]
    (runs[1] / "at-50/glue/cola-seed17.json").unlink()
    with pytest.raises(UserError, match="tasks differ"):
        equal_time.load(runs)


def test_everything_missing_is_named_at_once(runs):
    (runs[0] / "at-25/export/config.json").write_text("{}")
    log = runs[1] / "log.jsonl"
    log.write_text(log.read_text().replace("time/training_seconds", "time/other"))
    with pytest.raises(UserError) as caught:
        equal_time.load(runs)
    assert "no export of a run by time" in caught.value.faults[0]
    assert "no evaluation by time" in caught.value.faults[1]


def test_losses_on_other_held_out_text_are_not_compared(tmp_path):
    identities = [{"validation_shards": [sha]} for sha in ("ab", "cd")]
    runs = [
        write_timed_run(tmp_path / name, [6.0, 5.0, 4.5, 4.0], [0.1] * 4, identity=identity)
        for name, identity in zip(("rapidbert-tiny", "bert-tiny"), identities, strict=True)
    ]
    with pytest.raises(UserError, match="held-out texts"):
        equal_time.load(runs)
