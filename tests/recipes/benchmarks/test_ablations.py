"""One thing changed at a time."""

from dataclasses import fields

from benchmark_scenarios import run_benchmark

from model.config import PRESETS
from recipes.benchmarks import ablations
from recipes.benchmarks.training_step import Setup

BASE = Setup(
    PRESETS["rapidbert-base"],
    {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}, "data_types": {}},
    "triton",
    "triton",
)


def test_every_variant_differs_in_one_thing():
    found = ablations.variants(BASE)
    for name, changed in found.items():
        different = [
            f.name for f in fields(Setup) if getattr(changed, f.name) != getattr(BASE, f.name)
        ]
        assert len(different) == 1, name
    assert {"kernels torch", "kernels compile", "attention sdpa", "layers recomputed"} <= set(found)
    assert found["ZeRO 0"].deepspeed == {"bf16": {"enabled": True}}
    assert not found["without deepspeed"].with_deepspeed


def test_a_record_of_the_smallest_size(tmp_path):
    record = run_benchmark(
        tmp_path,
        "ablations",
        TOY_MODELS=("probe-tiny",),
        KERNELS=("torch", "triton"),
        REPEATS=2,
    )
    ratios = record["ratios"]["probe-tiny"]
    assert ratios.keys() == {
        "attention reference",
        "layers recomputed",
        "ZeRO 0",
        "without deepspeed",
    }
    assert all(0 < ratio["min"] <= ratio["median"] <= ratio["max"] for ratio in ratios.values())
    assert set(record["not_run"]) == {
        f"probe-tiny: {name}" for name in ("attention triton", "attention flash", "kernels triton")
    }
