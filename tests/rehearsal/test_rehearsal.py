"""A training step on a GPU that is not there, at full size, against its budget."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pretrain_scenarios
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from fake_gpu import DEVICE, _check_grid, _check_tensor
from pretrain_scenarios import run_world, values
from rehearse import BUDGET, CASES, Case, differences, rehearsal, rehearse

pytestmark = pytest.mark.slow

CASE = Case("rapidbert-base", "base", 128, 2)
"""The one that strays are put into."""


def stray_cast(x: Any) -> Any:
    return x.float().to(x.dtype)


def stray_copy(x: Any) -> Any:
    return x.flatten(1).t().contiguous().t().reshape(x.shape)


def stray_wait(x: Any) -> Any:
    return x * x.sum().item()


def stray_cpu_tensor(x: Any) -> Any:
    return x * torch.ones(x.shape[-1], device="cpu")


def stray_timer(x: Any) -> Any:
    """As each start of DeepSpeed's timers does."""
    get_accelerator().synchronize()
    return x


def stray_synchronize(x: Any) -> Any:
    torch.cuda.synchronize(x.device)
    return x


STRAYS = (stray_cast, stray_copy, stray_wait, stray_cpu_tensor, stray_timer, stray_synchronize)


@dataclass
class Rehearsed:
    """What one process saw."""

    budgets: dict[str, Any]
    """By case."""
    launched: set[str]
    """Signatures of kernels."""
    compiled: set[str]
    said: dict[str, list[str]]
    """Of a step with each stray."""


def rehearse_all() -> Rehearsed:
    """Rehearse all cases, and one with each stray."""
    os.environ.pop("TRITON_INTERPRET", None)  # before kernels are imported
    from compile_kernels import signatures

    from model import feed_forward

    compiled = signatures()

    plain = feed_forward.linear
    said = {}
    with rehearsal() as counting:
        steps = [rehearse(counting, case) for case in CASES]
        found = {step.case.name: step.budget() for step in steps}
        for stray in STRAYS:
            with mock.patch.object(
                feed_forward, "linear", lambda module, x, stray=stray: plain(module, stray(x))
            ):
                try:
                    budget = rehearse(counting, CASE).budget()
                    said[stray.__name__] = differences(CASE.name, budget, found[CASE.name])
                except AssertionError as error:
                    said[stray.__name__] = [str(error)]
    launched = set().union(*(step.counts.signatures for step in steps))
    return Rehearsed(found, launched, compiled, said)


@pytest.fixture(scope="module")
def rehearsed() -> Rehearsed:
    with mock.patch.object(pretrain_scenarios, "TIMEOUT_SECONDS", 300):
        [found] = values(run_world(1, rehearse_all))
    return found


@pytest.mark.parametrize("case", [case.name for case in CASES])
def test_a_step_launches_and_moves_what_its_budget_says(rehearsed, case):
    """If a change is meant: run rehearse.py, look at what it prints, commit the budget."""
    found = rehearsed.budgets[case]
    allowed = json.loads(BUDGET.read_text())[case]
    faults = differences(case, json.loads(json.dumps(found)), allowed)
    assert not faults, "\n".join(faults)


def test_a_step_waits_for_the_device_once(rehearsed):
    for case, found in rehearsed.budgets.items():
        assert len(found["waits"]) == 1, (case, found["waits"])
        assert not [key for key in found["operations"] if " on the CPU |" in key], case


@pytest.mark.parametrize(
    ("stray", "operation"),
    [
        ("stray_cast", "_to_copy | "),
        ("stray_copy", "clone | "),
        ("stray_wait", "waits for the device: "),
        ("stray_cpu_tensor", "mul at "),
        ("stray_timer", "waits for the device: synchronize at "),
        ("stray_synchronize", "waits for the device: synchronize at "),
    ],
)
def test_a_stray_operation_is_named_with_its_place(rehearsed, stray, operation):
    said = rehearsed.said[stray]
    assert any(f"{operation}model/feed_forward.py " in line for line in said), said


def test_kernels_that_are_compiled_are_those_that_a_step_launches(rehearsed):
    """`test_kernels_compile_for_gpus` compiles them; a signature is what Triton compiles apart."""
    missing = rehearsed.launched - rehearsed.compiled
    assert not missing, "\n".join(sorted(missing))
    # What else is compiled: other lengths, no ALiBi, fp32, larger vocabularies.
    others = sorted(rehearsed.compiled - rehearsed.launched)
    apart = (
        "_dropout(X=*bf16, Keys",
        "COLUMNS=1792, BLOCK=2048, THRESHOLD=429496730, ACC=fp32, BIASED=False",
        "KEYS=32,",
        "ALIBI=False",
        "=*fp32, Slopes=",
        "Sums=*fp32",
        "DTable=*fp32",
        "Ids=*i32",
    )
    assert all(any(mark in each for mark in apart) for each in others), "\n".join(others)


def test_launches_that_no_gpu_takes_are_refused():
    for grid in ((0,), (2**31,), (1, 2**16), (1, 1, 2**16)):
        with pytest.raises(AssertionError, match="here: grid"):
            _check_grid("here", grid)
    _check_grid("here", (2**31 - 1, 2**16 - 1))
    with pytest.raises(AssertionError, match="here: X .* is on cpu"):
        _check_tensor("here", "X", torch.empty(2))
    huge = torch.empty(1, device="meta").expand(2**16, 2**16)
    with mock.patch("fake_gpu.DEVICE", torch.device("meta")):
        with pytest.raises(AssertionError, match="has strides"):
            _check_tensor("here", "X", huge)
        with pytest.raises(AssertionError, match="beyond a 32-bit index"):
            _check_tensor("here", "X", torch.empty(2**16, 2**15 + 1, device="meta"))
    assert DEVICE.type == "cuda"
