"""What is tried before anything is measured: right where it is right, and wrong where it is not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from pretrain_scenarios import run_world, values

from recipes.benchmarks import first_steps
from recipes.benchmarks.checks import COMPILED, KERNELS, checks

LOSSES = {step: 8.0 - step / 10 for step in range(1, 21)}


def test_one_process_adds_and_says_with_what(tmp_path):
    (said,) = values(run_world(1, first_steps.world, tmp_path))
    assert said.startswith("gloo on cpu: set up and added in ")


def test_equal_losses_and_weights_are_equal_to_the_bit():
    said = first_steps.compare(LOSSES, LOSSES, True, exact=True)
    assert said == "20 steps, loss 7.90 to 6.00; resumed at step 10: equal to the bit"


@pytest.mark.parametrize(
    ("step", "factor", "same_weights", "exact", "fault"),
    [
        (13, 1 + 1e-7, True, True, "step 13 has loss"),
        (11, 1.0, False, True, "weights are other ones"),
        (20, 1.01, False, False, "step 20 has loss"),
        (20, float("nan"), False, False, "step 20 has loss nan"),
        (20, 1.001, False, False, None),
        (10, 2.0, True, True, None),  # before the resume: not its own
    ],
)
def test_a_resume_that_is_not_the_same_run_is_refused(step, factor, same_weights, exact, fault):
    resumed = LOSSES | {step: LOSSES[step] * factor}
    if fault is None:
        said = first_steps.compare(LOSSES, resumed, same_weights, exact=exact)
        assert ("within 1.0e-03 of each other" in said) == (not exact)
        return
    with pytest.raises(ArithmeticError, match=fault):
        first_steps.compare(LOSSES, resumed, same_weights, exact=exact)


def test_a_run_that_began_anew_is_not_taken_for_a_resumed_one():
    """Equal losses, but other times: the steps were done again."""
    whole = {
        step: {"step": step, "loss/train": LOSSES[step], "seconds": 1.5 * step} for step in LOSSES
    }
    later = {
        step: line | {"seconds": line["seconds"] + (step > 10)} for step, line in whole.items()
    }
    first_steps.refuse_a_new_start(whole, later)
    anew = {step: line | {"seconds": 1.25 * step} for step, line in whole.items()}
    for other in (anew, {**later, 10: anew[10]}, {s: later[s] for s in later if s != 4}, {}):
        with pytest.raises(ArithmeticError, match="not resumed at step 10: the line of step"):
            first_steps.refuse_a_new_start(whole, other)
    with pytest.raises(ArithmeticError, match="the line of step 1 in"):
        first_steps.refuse_a_new_start({}, {})


def test_missing_steps_are_named():
    short = {step: loss for step, loss in LOSSES.items() if step < 19}
    with pytest.raises(ArithmeticError, match=r"no loss of steps \[19, 20\]"):
        first_steps.compare(LOSSES, short, True, exact=True)


def test_a_run_is_cut_off_as_by_a_crash(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for name in ("checkpoints/step-000000010", "checkpoints/step-000000020", "export"):
        (whole / name).mkdir(parents=True)
        (whole / name / "file").touch()
    (whole / "log.jsonl").write_text(json.dumps({"step": 20, "loss/train": 6.0}) + "\n")
    first_steps.cut_off(whole, cut, 10)
    assert [path.name for path in (cut / "checkpoints").iterdir()] == ["step-000000010"]
    assert not (cut / "export").exists() and first_steps.losses(cut) == {20: 6.0}
    assert (whole / "checkpoints/step-000000020/file").exists()


def test_a_command_that_fails_ends_with_its_status_and_name(monkeypatch, tmp_path, capsys):
    def fail(*_, **__):
        raise subprocess.CalledProcessError(2, ["prepare_data.py"])

    monkeypatch.setattr(first_steps.subprocess, "run", fail)
    monkeypatch.setattr(
        first_steps.sys, "argv", ["", "pretraining", str(tmp_path), "rapidbert-tiny"]
    )
    assert first_steps.main() == 1
    assert "prepare_data.py" in capsys.readouterr().err


def test_a_gpu_is_checked_for_more_than_a_cpu(tmp_path):
    here, on_a_gpu = checks(False, tmp_path), checks(True, tmp_path)
    assert [check.name for check in here] == ["world", "pretraining"]
    more = {KERNELS, "CUDA graphs", *(f"compile {model}" for model in COMPILED)}
    assert {check.name for check in on_a_gpu} == more | {"world", "pretraining"}
    for check in on_a_gpu:
        assert check.seconds > 0 and check.says and Path(check.words[1]).suffix in (".py", "")
        if check.name not in (KERNELS, "CUDA graphs"):
            assert Path(check.words[1]).is_file() and check.words[2] in first_steps.FIRST_STEPS
