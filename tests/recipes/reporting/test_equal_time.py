"""The comparison, from runs and results written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recipes.common.errors import UserError
from recipes.reporting import equal_time

MINUTES = 2


def write_run(directory: Path, losses: list[float], scores: list[float], **changes) -> Path:
    """Evaluations evenly over the time; scores from random weights, at 25, at 50 and 100%."""
    name = directory.name
    options = {"minutes": MINUTES, "mask_probability": 0.3, "attention": "sdpa", "kernels": "torch"}
    config = {
        "model": {"name": name, "parameters": 2_000_000},
        "run": options,
        "device": "cpu",
        "world_size": 1,
        "versions": {},
        "git_revision": "unknown",
        "global_batch": 16,
        "data": {
            "tokenizer_fingerprint": "ab",
            "train_tokens": 1000,
            "unigram_entropy_nats": 6.0,
        },
        **changes,
    }
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    records = []
    for number, loss in enumerate(losses, 1):
        seconds = 60 * MINUTES * number / len(losses)
        where = {"step": number, "sequences": 16 * number, "tokens": 900 * number}
        where |= {"seconds": seconds + 30, "time/training_seconds": seconds}
        rate = {"throughput/tokens_per_sec": 1000.0 + number, "cost/dollars": 0.0}
        records += [where | rate | {"loss/train": loss - 1}, where | {"loss/eval": loss}]
    (directory / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    places = ["glue-from-scratch", "at-25/glue", "at-50/glue", "glue"]
    for place, score, share in zip(places, scores, (0, 0.25, 0.5, 1), strict=True):
        export = directory / Path(place).parent / "export"
        export.mkdir(parents=True, exist_ok=True)
        progress = {"progress": {"training_seconds": 60 * MINUTES * (share or 1)}}
        (export / "config.json").write_text(json.dumps(progress))
        (directory / place).mkdir(parents=True)
        for task, value in (("cola", score), ("sst2", score + 0.2)):
            metric = "matthews" if task == "cola" else "accuracy"
            result = {"task": task, "seed": 17, "score": value, "metrics": {metric: value}}
            result |= {"stand_in": True, "seconds": 1.0, "dollars": 0.0, "notes": []}
            result |= {"checkpoint": "x", "from_scratch": not share, "settings": {}}
            (directory / place / f"{task}-seed17.json").write_text(json.dumps(result))
    return directory


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    ours = write_run(tmp_path / "rapidbert-tiny", [6.0, 5.0, 4.5, 4.0], [0.1, 0.3, 0.4, 0.5])
    bert = write_run(tmp_path / "bert-tiny", [6.5, 6.0, 5.5, 5.0], [0.05, 0.1, 0.2, 0.3])
    return [ours, bert]


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
    record = json.loads((tmp_path / "out" / "equal_time.json").read_text())
    ours = record["models"]["rapidbert-tiny"]
    assert ours["loss"] == [[0.5, 1.0, 1.5, 2.0], [6.0, 5.0, 4.5, 4.0]]
    assert [point["minutes"] for point in ours["scores"]] == [0, 0.5, 1, 2]
    assert ours["scores"][-1]["tasks"] == {"cola": 50.0, "sst2": 70.0}
    # Stand-ins are named wherever their scores are.
    report = (tmp_path / "out" / "equal_time.md").read_text()
    assert record["stand_in"] and "not GLUE" in printed and "not GLUE" in report.splitlines()[0]


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
    other = write_run(tmp_path / "other", [5.0], [0.1] * 4, device="NVIDIA H200", global_batch=32)
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
        write_run(tmp_path / name, [6.0, 5.0, 4.5, 4.0], [0.1] * 4, identity=identity)
        for name, identity in zip(("rapidbert-tiny", "bert-tiny"), identities, strict=True)
    ]
    with pytest.raises(UserError, match="held-out texts"):
        equal_time.load(runs)
