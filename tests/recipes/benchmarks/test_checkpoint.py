"""The cost of saving, measured on a toy; and the arithmetic behind its share of the training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from pretrain_scenarios import run_world, values

from recipes import benchmark
from recipes.benchmarks import checkpoint as benchmark_checkpoint
from recipes.benchmarks.records import Record
from recipes.common.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def measured(output: Path) -> None:
    arguments = ["--model", "rapidbert-tiny", "--output", str(output)]
    arguments += ["--deepspeed-config", str(ROOT / "ds_configs" / "tiny_cpu.json")]
    sys.argv = ["benchmark.py", "checkpoint", *arguments]
    benchmark_checkpoint.STEPS = benchmark_checkpoint.REPEATS = 2
    benchmark.main()


def test_the_record_of_two_processes(tmp_path):
    outcomes = run_world(2, measured, tmp_path)
    values(outcomes)
    record = json.loads((tmp_path / "checkpoint_cpu.json").read_text())
    assert (tmp_path / "checkpoint_cpu.png").read_bytes().startswith(b"\x89PNG")
    settings, saving = record["settings"], record["saving"]
    assert settings["processes"] == 2
    # fp32 weights and two moments, and what safetensors needs to name them.
    state = 12 * settings["parameters"] / 1e9
    assert state < saving["gigabytes"] < 1.01 * state
    for rate in (saving["stall_seconds"], saving["write_seconds"], saving["step_seconds"]):
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    write, speed = saving["write_seconds"], saving["write_mb_per_second"]
    assert speed["max"] == pytest.approx(1000 * saving["gigabytes"] / write["min"])
    resuming = record["resuming"]
    assert resuming["load_mb_per_second"]["min"] == pytest.approx(
        1000 * saving["gigabytes"] / resuming["load_seconds"]["max"]
    )
    assert all(seconds > 0 for seconds in resuming["to_the_first_step"].values())
    assert "start to first step" in outcomes[0].output and "MB/s" in outcomes[0].output
    assert outcomes[1].output == ""
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == [".lock", "checkpoint_cpu.json", "checkpoint_cpu.png"]


def stopped_early(output: Path) -> None:
    """No time is left after the first pass, by the clock of the first rank alone."""
    asked = []

    def out_of_time(record: Record, what: str) -> bool:
        asked.append(what)
        over = len(asked) > 1 and not record.of_another_rank
        if over:
            record["not_run"][what] = "no time left"
        return over

    Record.out_of_time = out_of_time  # in the fork of this test
    measured(output)
    assert asked == ["passes after 0", "passes after 1"]


def test_no_pass_begins_without_time_left(tmp_path):
    values(run_world(2, stopped_early, tmp_path))
    record = json.loads((tmp_path / "checkpoint_cpu.json").read_text())
    assert record["not_run"] == {"passes after 1": "no time left"} and record["complete"]
    assert record["saving"]["write_seconds"]["repeats"] == 1
    assert record["resuming"]["load_seconds"]["repeats"] == 1


def test_the_share_of_the_training_time_by_hand():
    def of(seconds: float) -> dict[str, float]:
        return {"min": 0.0, "median": seconds, "max": 2 * seconds}

    saving = {"stall_seconds": of(0.5), "write_seconds": of(3.0), "processor_seconds": of(1.0)}
    share = benchmark_checkpoint.share_of_training(saving, processes=2)
    # 4,096 x 128 tokens at 1.1 million a second: 0.4766 s a step, 476.6 s to the next checkpoint.
    assert share["step_seconds"] == pytest.approx(0.4766, abs=1e-4)
    assert share["shares"] == pytest.approx(
        {
            "stall": 1 / 476.6,
            "processor_time": 2 * 2 / 8 / 476.6,
            "training_that_waits_for_the_write": 7 / 476.6,
        },
        rel=1e-3,
    )
    assert share["step_seconds_for_one_percent"]["stall"] == pytest.approx(0.1)


def test_faults_are_named_at_once(tmp_path, monkeypatch):
    arguments = ["--model", "rapidbert-bse", "--deepspeed-config", "none.json"]
    arguments += ["--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "checkpoint", *arguments])
    with pytest.raises(UserError) as refusal:
        benchmark.main()
    for fault in ("rapidbert-bse", "none.json"):
        assert fault in str(refusal.value)
