"""The command: what it prints is what pretraining then does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from plan_scenarios import question, write_record

from recipes import plan
from recipes.common.errors import UserError
from recipes.engine.batch_plan import plan_batches
from recipes.planning.forecast import forecast
from recipes.reporting.plan_page import explanation

ROOT = Path(__file__).resolve().parents[2]


def test_the_advice_makes_pretraining_cut_the_batch_as_planned(tmp_path, capsys):
    for model in ("rapidbert-base", "rapidbert-large", "rapidbert-xl"):
        for memory in ("40", "80", "141"):
            output = tmp_path / "plan.json"
            plan.main(
                ["--model", model, "--gpus", "8", "32", "64", "200", "--gpu-memory-gb", memory]
                + ["--json", str(output)]
            )
            printed = capsys.readouterr().out
            content = json.loads(output.read_text())
            (said,) = re.findall(r'json, line (\d+): "train_micro_batch.*": (.*)', printed)
            # One limit for all, or "128 on 32 GPUs; 64 on 8, 64 GPUs".
            limits = {
                gpus: int(sequences)
                for sequences, numbers in re.findall(r"(\d+) on ([\d, ]+) GPUs", said[1])
                for gpus in map(int, numbers.split(","))
            }
            last = int(re.findall(r"\d+", said[1])[-1])
            name = f"ds_configs/{model.rpartition('-')[2]}.json"
            line = (ROOT / name).read_text().splitlines()[int(said[0]) - 1]
            assert '"train_micro_batch_size_per_gpu"' in line and name in printed
            for each in content["forecasts"]:
                limit = limits[each["gpus"]] if limits else last
                made = plan_batches(4096, limit, each["gpus"])
                assert made.micro_batch == each["micro_batch"]
                assert made.global_batch == each["global_batch"]
                assert each["memory_gb"] <= float(memory)


def test_without_a_measurement_there_is_no_time(tmp_path, capsys):
    plan.main(["--model", "rapidbert-base", "--gpus", "8", "200", "--record", str(tmp_path / "no")])
    printed = capsys.readouterr().out
    assert printed.count("not measured") == 3 and "ms a step" not in printed
    assert "Ceiling: a bound, not a prediction" in printed
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table[:4]}) == 1  # a Markdown table
    plan.main(["--model", "bert-tiny", "--gpus", "1", "--gpu", "NVIDIA Z9"])
    assert "peak of NVIDIA Z9 unknown" in capsys.readouterr().out


def test_what_the_record_says_of_memory_stands_beside_the_estimate(tmp_path):
    path = write_record(tmp_path / "throughput.json", "NVIDIA H200")
    words = ("--record", str(path), "--gpu", "NVIDIA H200", "--gpu-memory-gb", "141")
    asked = question(tmp_path, *words)
    said = explanation(asked, [forecast(asked, 8)])
    assert "of 2048 sequences fit, of 4096 do not" in said[0]
    assert str(path) in said[1]


def test_every_number_of_gpus_that_is_too_small_or_too_large_is_named(tmp_path):
    with pytest.raises(UserError) as caught:
        words = ["--gpus", "1", "5000", "--gpu-memory-gb", "7", "--record", str(tmp_path / "none")]
        plan.main(["--model", "rapidbert-large", *words])
    assert "1 GPUs: not one sequence fits" in caught.value.faults[0]
    assert "4096 / 5000 ranks" in caught.value.faults[1]
