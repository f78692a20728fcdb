"""The time of a micro-batch: against a model of every kernel, by hand, and through measurements."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import PRESETS
from recipes.common.gpus import GPUS, SHORT_NAMES
from recipes.common.places import ROOT
from recipes.planning.calibration import best, expected, worst
from recipes.planning.compute import MeasuredCurve, TabulatedCurve, launches, work

H200 = SHORT_NAMES["h200"]


def curve(model: str, rates=None) -> TabulatedCurve:
    return TabulatedCurve(work(PRESETS[model], 128, 0.3), H200, rates or expected())


PREDICTED = json.loads((ROOT / "docs" / "results" / "predictions.json").read_text())["throughput"]
EVERY_KERNEL = [(device, row) for device, rows in PREDICTED.items() for row in rows]


@pytest.mark.parametrize(("device", "row"), EVERY_KERNEL)
def test_mfu_is_that_of_a_model_of_every_kernel(device, row):
    """That model adds bytes and instructions of each compiled kernel and assumes what matrix
    products reach; this one takes their share of the peak from Table S2. Nothing was measured."""
    model, sequences = row["model"], row["micro_batch"]
    low, middle, high = row["mfu"]

    def mfu(rates):
        asked = work(PRESETS[model], 128, 0.3)
        seconds = TabulatedCurve(asked, GPUS[device], rates).seconds(sequences)
        return 6 * PRESETS[model].parameters() * 128 * sequences / seconds / 989e12

    assert 0.98 * low < mfu(expected()) < high
    assert mfu(worst()) < low < middle < high < mfu(best())
    assert mfu(expected()) == pytest.approx(middle, rel=0.10)


@pytest.mark.parametrize(("device", "row"), EVERY_KERNEL)
def test_what_is_no_matrix_product_takes_as_long_as_in_that_model(device, row):
    asked = work(PRESETS[row["model"]], 128, 0.3)
    moved = row["real_tokens_per_micro_batch"] / 128 * asked.sequence_bytes
    moved += asked.micro_batch_bytes
    seconds = moved / (GPUS[device].memory_gb_per_s * 1e9 * expected().memory_share)
    others = sum(value for name, value in row["milliseconds"].items() if name != "matmul")
    assert 1e3 * seconds == pytest.approx(others, rel=0.04)


def test_bytes_are_those_counted():
    """Of RapidBERT: BERT's attention goes through padding here, of which nothing is known."""
    rows = [row for row in json.loads(COUNTED.read_text())["rows"] if "rapid" in row["model"]]
    assert len(rows) == 3
    for row in rows:
        asked = work(PRESETS[row["model"]], row["sequence_length"], 0.3)
        parts = row["per_micro_batch"]
        counted = sum(of["gigabytes"] for name, of in parts.items() if name != "matrix products")
        moved = row["micro_batch"] * asked.sequence_bytes + asked.micro_batch_bytes
        assert moved / 1e9 == pytest.approx(counted, rel=0.03), row["model"]
        assert asked.micro_batch_bytes / 1e9 == pytest.approx(
            parts["accumulation"]["gigabytes"], rel=1e-3
        )


def test_work_by_hand():
    """Per token Base has 736 MFLOP, Large 2,512.

    That leaves out what the last layer saves by seeing only the tokens to predict.
    """
    for name, flops in (("rapidbert-base", 736e6), ("rapidbert-large", 2512e6)):
        asked = work(PRESETS[name], 128, 0.30)
        assert 0.95 < asked.sequence_flops / 128 / flops < 1
        again = work(PRESETS[name], 128, 0.30, recompute=True)
        assert again.sequence_flops == pytest.approx(4 / 3 * asked.sequence_flops)


COUNTED = ROOT / "docs" / "results" / "step_counted.json"


def counted_launches() -> dict[str, float]:
    """Launches of forward, backward and accumulation by model."""
    return {
        row["model"]: sum(part["launches"] for part in row["per_micro_batch"].values())
        for row in json.loads(COUNTED.read_text())["rows"]
    }


def test_launches_are_those_counted_and_between_two_depths_on_a_line():
    counted = counted_launches()
    assert len(counted) == 5
    assert {name: launches(PRESETS[name]) for name in counted} == counted
    for family in ("rapidbert", "bert"):
        base, large = counted[f"{family}-base"], counted[f"{family}-large"]
        tiny = launches(PRESETS[f"{family}-tiny"])  # 3 layers beside 12 and 24
        assert tiny == pytest.approx(base - 9 * (large - base) / 12)
    again = work(PRESETS["rapidbert-base"], 128, 0.3, recompute=True).launches
    assert again == pytest.approx(4 / 3 * counted["rapidbert-base"])


def test_small_micro_batches_are_less_efficient():
    """Appendix C: the same sequences in smaller pieces take longer, at last because of the host."""
    counted = counted_launches()
    for model in ("rapidbert-base", "rapidbert-large"):
        made = curve(model)
        each = [made.seconds(size) / size for size in (16, 64, 128, 256, 512)]
        assert each == sorted(each, reverse=True) and each[0] > 2 * each[-1]
        assert made.seconds(1) == made.host_seconds() == 30e-6 * counted[model]
        assert made.seconds(512) == made.device_seconds(512) > made.host_seconds()
    # Without the host it is the last wave of tiles: half a wave, in each of the layer's products.
    device = curve("rapidbert-base", replace(expected(), memory_share=1e9)).device_seconds
    unfilled = 2 * device(64) - device(128)
    inner = 768 + 768 + 768 + 3072 + 2304 + 768 + 6144 + 768
    tiles = 0.5 * 132 * 128 * 256 * 2 * inner * 12 / (989e12 * expected().matmul_share)
    assert unfilled == pytest.approx(tiles, rel=1e-3)


@given(st.integers(1, 5000))
def test_a_measured_curve_runs_through_its_points(size):
    points = ((8, 0.10), (64, 0.2), (512, 1.1))
    made = MeasuredCurve(points)
    assert all(made.seconds(at) == pytest.approx(seconds) for at, seconds in points)
    assert made.seconds(size) <= made.seconds(size + 1)
    assert made.is_measured(size) == (8 <= size <= 512)
    assert made.seconds(288) == pytest.approx(0.65)  # half way
    assert made.seconds(1024) == pytest.approx(2.2) and made.seconds(1) == 0.10
