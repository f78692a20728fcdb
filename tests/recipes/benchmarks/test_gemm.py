"""Every way gives the product that it stands for; waves by hand; a record of the smallest size."""

from __future__ import annotations

import json

import pytest
import torch

from model.config import preset
from recipes.benchmarks import gemm, matrix_products
from recipes.benchmarks.matrix_products import Layer, Operands, fp8_ways, wave_arithmetic, ways
from recipes.benchmarks.running import run_mode

LAYER = Layer("glu_in", 48, 32, 64, 1)


@pytest.mark.parametrize("which", matrix_products.PASSES)
def test_every_way_gives_the_products_of_autograd(which):
    torch.manual_seed(0)
    operands = Operands.random(LAYER, torch.device("cpu"), torch.float32)
    x, weight = (t.clone().double().requires_grad_() for t in (operands.x, operands.weight))
    y = torch.nn.functional.linear(x, weight)
    y.backward(operands.dy.double())
    expected = {"forward": y.detach(), "dgrad": x.grad, "wgrad": weight.grad}[which]
    assert expected.shape == LAYER.result_shape(which)
    found = ways(which, operands, cublaslt=False) | fp8_ways(which, operands)
    split = {"rows in 2 parts", "rows in 4 parts"} if which == "wgrad" else set()
    assert found.keys() == {"as trained", "rows padded to 512", "fp8", "fp8 with casts"} | split
    for name, way in found.items():
        # Three digits of a binary fraction in e4m3, two in e5m2.
        tolerance = 0.08 if "fp8" in name else 1e-6
        assert (way().double() - expected).norm() < tolerance * expected.norm(), name


def test_a_way_that_gives_something_else_is_not_timed():
    with pytest.raises(ValueError, match=r"differs by 5.0e-01 from what training computes"):
        gemm.checked(lambda: torch.full((3,), 1.5), torch.ones(3), "cuBLASLt")
    assert gemm.checked(lambda: torch.full((3,), 1.005), torch.ones(3), "cuBLASLt") < 0.01


def test_waves_by_hand():
    """The gated feed-forward's weight gradient: 6,144 x 768 are 48 x 3 tiles, 12 too many."""
    waves = wave_arithmetic(6144, 768, 132)
    assert (waves.tiles, waves.waves) == (144, 144 / 132)
    assert waves.efficiency == 144 / 264
    assert wave_arithmetic(256, 128, 132).tiles == 1  # a tile may lie either way
    base = matrix_products.layers(preset("rapidbert-base"), 57_344)
    assert wave_arithmetic(*base[0].result_shape("wgrad"), 132) == waves
    assert [layer.flops for layer in base[:2]] == [2 * 57_344 * 768 * 6144, 2 * 57_344 * 768 * 3072]


def test_only_a_saving_of_more_than_3_percent_counts():
    def of(**medians):
        return gemm.fastest({name: {"median": value} for name, value in medians.items()})

    assert of(trained=1.0, other=0.975) is None
    assert of(trained=1.0, other=0.96, third=0.9) == "third"
    assert of(trained=1.0, other=0.96, fp8=0.5) == "other"  # its casts belong to the step


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the mode here, and return what it left on the disk."""
    monkeypatch.setattr(gemm, "REPEATS", 3)
    monkeypatch.setattr(gemm, "TURN_SECONDS", 0.0)

    def run(**settings):
        assert run_mode("gemm", gemm.MODE, gemm.Settings(output=tmp_path, **settings)) == 0
        assert (tmp_path / "gemm_cpu.png").read_bytes().startswith(b"\x89PNG")
        return json.loads((tmp_path / "gemm_cpu.json").read_bytes())

    return run


def test_a_record_of_the_smallest_size(run):
    record = run(rows=40)
    layers = ("glu_in", "glu_out", "qkv", "projection", "vocabulary")
    measured = [(point["layer"], point["pass"]) for point in record["points"]]
    assert measured == [(layer, which) for layer in layers for which in matrix_products.PASSES]
    assert record["not_run"].keys() == {"cuBLASLt", "fp8"} and not record["failures"]
    for point in record["points"]:
        assert point["of_as_trained"]["as trained"]["median"] == 1
        assert point["faster"] in {*point["seconds"]} - {"as trained"} | {None}
        assert point["rows"] == (128 if point["layer"] == "vocabulary" else 40)
    (total,) = (line for what, line in gemm.headlines(record) if "15 of 15 products" in what)
    assert "TFLOP/s" in total
    # On a GPU a point has its waves as well.
    first = record["points"][0]
    first |= gemm.waves(Layer("glu_in", 57_344, 768, 6144, 11), "wgrad", 132)
    assert gemm.table(record)[1][5] == "1.09 (55% full)"


def test_fp8_comes_last_and_is_added_to_its_points(run, monkeypatch):
    order = []
    timed = gemm.alternate
    monkeypatch.setattr(
        gemm, "alternate", lambda c, *a, **b: order.append([*c]) or timed(c, *a, **b)
    )
    monkeypatch.setattr(gemm, "check_fp8", lambda what, device: None)
    record = run(rows=48)
    fp8 = ["as trained", "fp8", "fp8 with casts"]
    assert len(order) == 15 + 3 and order[15:] == [fp8] * 3
    assert not any("fp8" in contenders for contenders in order[:15])
    assert len(record["points"]) == 15 and not record["failures"]
    for point in record["points"]:
        names = {*fp8} if point["layer"] == "glu_in" else {"as trained"}
        for key in ("seconds", "of_as_trained", "differences"):
            assert names == {n for n in point[key] if n in fp8}, (point["layer"], key)


def test_without_time_one_pass_is_measured(run):
    record = run(minutes=1e-6)
    assert len(record["points"]) == 1 and len(record["not_run"]) == 14 + 2
