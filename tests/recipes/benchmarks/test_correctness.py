"""Right kernels pass, wrong ones are named."""

import pytest
import torch
from benchmark_scenarios import run_benchmark

from recipes.benchmarks import correctness
from recipes.benchmarks.records import Record

CPU = torch.device("cpu")


def judged(tmp_path, checks) -> Record:
    """The record of these checks in fp32."""
    record = Record("correctness", tmp_path)
    record["points"] = []
    for check in checks:
        errors = check.errors(torch.float32, CPU)
        correctness.judge(record, check.name, "float32", errors, correctness.LIMITS["float32"])
    return record


def chosen(*names: str):
    every = [*correctness.attention_checks(CPU), *correctness.kernel_checks(CPU)]
    return [check for check in every if check.name.startswith(names)]


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_the_kernels_are_right(tmp_path, kernels):
    """The Triton ones by the interpreter."""
    attention = "triton" if kernels == "triton" else "sdpa"
    checks = chosen(
        f"norm {kernels}", f"GLU {kernels}", f"loss {kernels}", f"attention {attention}"
    )
    assert len(checks) == 4
    record = judged(tmp_path, checks)
    assert record["within_limits"] and not record["failures"]
    assert all(0 < point["backward"] < 1e-5 for point in record["points"])


@pytest.mark.parametrize(
    ("check", "function", "change"),
    [
        ("GLU torch", "gated_gelu", lambda found: found * 1.001),
        ("norm torch", "residual_norm", lambda found: (found[0] + 1e-4, found[1])),
        ("loss torch", "cross_entropy", lambda found: found + float("nan")),
        # Right values whose gradient is wrong.
        (
            "GLU torch",
            "gated_gelu",
            lambda found: found.detach() + 1.001 * (found - found.detach()),
        ),
    ],
    ids=["scaled", "shifted", "nan", "gradient"],
)
def test_a_wrong_kernel_is_a_failure(tmp_path, monkeypatch, check, function, change):
    right = getattr(correctness.ops, function)
    monkeypatch.setattr(correctness.ops, function, lambda *given: change(right(*given)))
    record = judged(tmp_path, chosen(check))
    assert record["within_limits"] is False
    assert list(record["failures"]) == [f"{check}, float32"]


def test_attention_that_reaches_into_the_next_sequence_is_a_failure(tmp_path, monkeypatch):
    right = correctness.packed_attention

    def wrong(qkv, sequence_offsets, **named):
        return right(qkv, sequence_offsets.roll(-1).roll(1) + (sequence_offsets == 1), **named)

    monkeypatch.setattr(correctness, "packed_attention", wrong)
    assert judged(tmp_path, chosen("attention reference"))["within_limits"] is False


def test_what_trains_is_checked_first_and_what_compiles_for_long_last():
    every = [*correctness.attention_checks(CPU), *correctness.kernel_checks(CPU)]
    pairs = [(check.needs, dtype) for check, dtype in correctness.in_order(every)]
    assert len(pairs) == sum(len(check.dtypes) for check in every)
    own = [place for place, (needs, _) in enumerate(pairs) if needs.endswith("triton")]
    assert own[:4] == [0, 1, 2, 3]  # attention, norm, GLU and loss
    assert {dtype for _, dtype in pairs[:4]} == {torch.bfloat16}
    assert {needs for needs, _ in pairs[-6:]} == {"kernels compile"}


def test_a_whole_model_and_its_record(tmp_path):
    record = run_benchmark(tmp_path, "correctness", KERNELS=("torch",), BACKENDS=("sdpa",))
    assert record["within_limits"] is True
    model = record["points"][0]
    assert model["what"] == "rapidbert-tiny" and 0 < model["backward"] < model["limit"]
    assert {point["dtype"] for point in record["points"]} == {"float32", "bfloat16"}
