"""Figure S2 at the smallest size."""

import pytest
from benchmark_scenarios import run_benchmark


def test_tokens_per_step_stay_the_same_and_sequences_are_full(tmp_path):
    record = run_benchmark(
        tmp_path,
        "sequence-length",
        *("--lengths", "64", "16"),
        TOY_MODELS={"probe-tiny": 256},
        WARM_UP_STEPS=1,
        STEPS=3,
    )
    points = {point["sequence_length"]: point for point in record["points"]}
    assert points.keys() == {16, 64}
    for length, point in points.items():
        assert point["sequences_per_step"] == 256 / length
        assert point["real_tokens_per_step"] == pytest.approx(256, rel=0.2)
        assert point["step_seconds"]["repeats"] == 3
