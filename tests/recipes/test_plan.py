"""The command: what it prints is what pretraining then does."""

from __future__ import annotations

import json

import pytest
from plan_scenarios import question, write_record

from recipes import plan
from recipes.common.errors import UserError
from recipes.planning.forecast import forecast
from recipes.reporting.plan_page import explanation, heading, notes


def test_the_page_says_what_the_json_says(tmp_path, capsys):
    output = tmp_path / "plan.json"
    words = ["--model", "rapidbert-large", "--gpu", "h200", "--json", str(output)]
    words += ["--gpus", "8", "16", "32", "64", "128", "200", "8"]  # once is enough
    assert plan.main([*words, "--record", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(output.read_text())
    table = [line.strip("| ").split("|") for line in printed.splitlines() if line.startswith("| ")]
    rows = {row[0].strip(): [cell.strip() for cell in row] for row in table[2:8]}
    assert list(rows) == ["8", "16", "32", "64", "128*", "200*"]
    for row, each in zip(rows.values(), content["forecasts"], strict=True):
        times = each["times"]
        assert row[1] == f"{each['micro_batch']} x {each['accumulation']}"
        assert row[2] == f"{each['memory_gb']:.1f}" and each["memory_gb"] <= 141
        assert row[3] == f"{1e3 * times['step_seconds']:,.0f}"
        low, high = (float(end.replace(",", "")) for end in row[4].split("-"))
        assert low <= 1e3 * times["step_seconds"] <= high
        assert row[6] == f"{times['mfu']:.1%}"
        assert row[8] == f"{times['costs'][0]['hours']:,.2f}"
        assert row[11] == f"{times['costs'][1]['dollars']:,.2f}"
    assert "PREDICTED from data sheets: nothing was measured on this GPU" in printed
    assert "* extrapolated: more than the 64 GPUs of Table S2." in printed
    assert "pretraining takes 4,000 = 20 x 1 x 200. Batches that 200 GPUs divide: 4,000, 4,200" in (
        printed
    )
    assert all(line in printed for line in content["commands"])
    assert "16 x a100-40 +" in printed and "$20.48" in printed and "36.2% MFU" in printed


def test_what_the_record_says_stands_beside_the_estimate(tmp_path):
    path = write_record(tmp_path / "throughput.json", "NVIDIA H200")
    asked = question(tmp_path, "--record", str(path), "--gpu", "h200")
    assert "of 2048 sequences fit, of 4096 do not" in explanation(asked)[0]
    assert f"PREDICTED from {path}, measured on one such GPU" in heading(asked)
    assert not any("ms per layer" in line for line in explanation(asked))
    found = [forecast(asked, 200)]
    assert "a micro-batch beyond those measured" in notes(asked, found)[0]


def test_another_batch_is_no_other_length(tmp_path):
    asked = question(tmp_path, "--global-batch", "16384")
    said = notes(asked, [forecast(asked, 8)])
    assert said[0] == "70k-steps: 286,720,000 sequences, here 17,500 steps."


def test_every_number_of_gpus_that_is_too_small_or_too_large_is_named(tmp_path):
    with pytest.raises(UserError) as caught:
        words = ["--gpus", "1", "5000", "--gpu-memory-gb", "7", "--record", str(tmp_path)]
        plan.main(["--model", "rapidbert-large", *words])
    assert "1 GPU: not one sequence fits" in caught.value.faults[0]
    assert "4096 / 5000 ranks" in caught.value.faults[1]
    assert (
        "Set train_batch_size to 5000 or use 4505 ranks. (--global-batch"
        in (caught.value.faults[1])
    )


def test_wrong_requests_end_with_status_2_and_all_faults():
    words = ["--model", "rapidbert-bas", "--gpu", "h2000"]
    with pytest.raises(UserError) as caught:
        plan.main([*words, "--simulat"])
    assert "unknown argument '--simulat' (did you mean --simulate?)" in str(caught.value)
    with pytest.raises(UserError) as caught:
        plan.main(words)
    model, gpu = caught.value.faults
    assert "did you mean rapidbert-base?" in model and "did you mean h200?" in gpu
    assert caught.value.status == 2
