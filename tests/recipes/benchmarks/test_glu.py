"""Figure S4 at the smallest size."""

import pytest
from benchmark_scenarios import run_benchmark

from model.config import PRESETS
from recipes.benchmarks import glu


def test_a_record_of_the_smallest_size(tmp_path):
    record = run_benchmark(
        tmp_path,
        "glu",
        *("--batches", "1", "2"),
        TOY_MODELS=("probe-tiny",),
        KERNELS=("torch", "triton"),
        REPEATS=3,
        TURN_SECONDS=0.0,
    )
    measured = {(point["batch"], point["block"]) for point in record["points"]}
    assert measured == {(b, name) for b in (1, 2) for name in glu.blocks(PRESETS["bert-tiny"])}
    assert "triton" in record["not_run"]
    for point in record["points"]:
        if point["block"] == glu.STANDARD:
            assert point["both_ratio"] == {"median": 1, "min": 1, "max": 1, "repeats": 3}
        assert point["forward_seconds"]["median"] < point["both_seconds"]["max"]


def test_weights_of_the_blocks():
    """A third more where two matrices become three; as many with two thirds of the inner width."""
    counts = {
        name: glu.feed_forward_parameters(block)
        for name, block in glu.blocks(PRESETS["rapidbert-base"]).items()
    }
    standard = 2 * 768 * 3072 + 3072 + 768
    assert counts[glu.STANDARD] == standard
    assert counts["glu"] == counts["fused_glu"] == 3 * 768 * 3072 + 768
    assert counts[glu.EQUAL] == pytest.approx(standard, rel=1e-3)
