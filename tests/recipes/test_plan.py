"""Batches that fit and divide, predictions against the paper's table and against arithmetic."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes import plan
from recipes.common.errors import UserError
from recipes.engine.batch_plan import plan_batches
from recipes.plan import best_plan, ceiling, communication_bytes, forecast, largest_micro_batch
from recipes.planning.memory import check_fit

ROOT = Path(__file__).resolve().parents[2]
A100 = "NVIDIA A100-SXM4-40GB"


def question(tmp_path: Path, *words: str, config: dict | None = None) -> plan.Question:
    arguments = ["--model", "rapidbert-base", "--gpus", "8", "--record", str(tmp_path / "none")]
    if config is not None:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config, indent=1))
        arguments += ["--deepspeed-config", str(path)]
    return plan.resolve(plan.parse_arguments([*arguments, *words]))


@given(st.integers(1, 5000), st.integers(1, 600), st.integers(1, 64))
def test_no_larger_micro_batch_fits_and_cuts_evenly(share, largest, gpus):
    made = best_plan(share * gpus, largest, gpus)
    assert made.global_batch == share * gpus and made.micro_batch <= largest
    better = range(made.micro_batch + 1, min(share, largest) + 1)
    assert not any(share % size == 0 for size in better)


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
            limit = int(re.findall(r"\d+", said[1])[-1])
            assert "on" not in said[1]  # one limit for all
            name = f"ds_configs/{model.rpartition('-')[2]}.json"
            line = (ROOT / name).read_text().splitlines()[int(said[0]) - 1]
            assert '"train_micro_batch_size_per_gpu"' in line and name in printed
            for each in content["forecasts"]:
                made = plan_batches(4096, limit, each["gpus"])
                assert made.micro_batch == each["micro_batch"]
                assert made.global_batch == each["global_batch"]
                assert each["memory_gb"] <= float(memory)


def test_the_largest_micro_batch_is_where_memory_ends(tmp_path):
    asked = question(tmp_path)
    for gpus, capacity in ((8, 40), (200, 80)):
        largest = largest_micro_batch(asked, gpus, capacity)
        check_fit(plan.memory(asked, gpus, largest), largest, capacity)
        with pytest.raises(UserError, match=f"{largest} sequences fit"):
            check_fit(plan.memory(asked, gpus, largest + 1), largest + 1, capacity)


def test_table_s2_from_its_row_of_eight_gpus(tmp_path):
    """The published code is data-parallel without ZeRO and reduces fp32 gradients.

    The network of its cluster is not known; 200 Gbit/s per GPU is what such machines had.
    """
    config = {"train_batch_size": 4096, "train_micro_batch_size_per_gpu": 128}
    rate = ["--tokens-per-second-per-gpu", str(0.938e6 / 8), "--measured-gpus", "8"]
    asked = question(tmp_path, *rate, "--gpu", A100, "--gpu-memory-gb", "40", config=config)
    found = {gpus: forecast(asked, gpus) for gpus in (8, 16, 32, 64)}
    milliseconds = [round(1e3 * each.step_seconds) for each in found.values()]
    assert milliseconds == [559, 319, 182, 113]
    published = [559, 279, 166, 110]
    errors = [round(100 * (a / b - 1)) for a, b in zip(milliseconds, published, strict=True)]
    assert errors == [0, 14, 10, 3]
    assert found[8].mfu == pytest.approx(0.309, abs=0.001)  # Table S2
    assert found[8].tokens_per_second == pytest.approx(0.938e6)
    # Table S3: 1.28 hours of 8 x $2 are $20.48
    steps = 1.28 * 3600 / found[8].step_seconds
    assert found[8].dollars == pytest.approx(70_000 / steps * 20.48 * 2.5 / 2, rel=1e-6)


def test_bytes_on_the_network_are_those_of_a_ring():
    class Ring:
        """Every rank sends one of n parts to its neighbour, n - 1 times; twice for a reduction."""

        def __init__(self, ranks: int, size: int):
            part = size / ranks
            self.gather = sum(part for _ in range(ranks - 1))
            self.reduce = 2 * self.gather

    for ranks in (2, 8, 200):
        made = best_plan(ranks * 12, 3, ranks)
        fp32, bf16 = Ring(ranks, 4 * 1000), Ring(ranks, 2 * 1000)
        zero = {"zero_optimization": {"stage": 1}}
        two = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
        mixed = {**zero, "bf16": {"enabled": True}, "communication_data_type": "fp32"}
        sent = [communication_bytes(1000, config, made) for config in ({}, zero, mixed, two)]
        assert sent == pytest.approx(
            [
                fp32.reduce,
                fp32.reduce + fp32.gather,
                fp32.reduce + bf16.gather,
                made.accumulation * bf16.reduce + bf16.gather,
            ]
        )
    assert communication_bytes(1000, {}, best_plan(8, 8, 1)) == 0


def test_the_ceiling_is_that_of_one_h200():
    """775k and 236k tokens/s, before what the last layer saves by seeing masked tokens only."""
    base, large = (
        ceiling(plan.preset(name), "NVIDIA H200", 128, 0.30)
        for name in ("rapidbert-base", "rapidbert-large")
    )
    assert 1.0 < base / 775e3 < 1.08 and 1.0 < large / 236e3 < 1.04
    assert ceiling(plan.preset("rapidbert-base"), "cpu", 128, 0.30) is None


def record(path: Path, device: str) -> Path:
    def row(micro_batch: int, global_batch: int, seconds: float) -> dict:
        sizes = {"micro_batch": micro_batch, "global_batch": global_batch}
        counts = {"sequences_per_step": global_batch, "real_tokens_per_step": 100.0 * global_batch}
        return {"model": "rapidbert-base", **sizes, **counts, "step_seconds": {"median": seconds}}

    rows = [row(512, 4096, 8.0), row(512, 512, 1.1), row(64, 64, 0.2)]
    settings = {"sequence_length": 128, "setups": {"rapidbert-base": {"recompute": False}}}
    content = {"device": device, "settings": settings, "rows": rows}
    content["largest_micro_batch"] = {"rapidbert-base": {"micro_batch": 2048}}
    path.write_text(json.dumps(content))
    return path


def test_a_record_of_this_device_is_what_times_stand_on(tmp_path):
    """One GPU of 8 does what one alone did with 512 sequences, and then talks."""
    path = record(tmp_path / "throughput.json", "NVIDIA H200")
    words = ("--record", str(path), "--gpu", "NVIDIA H200", "--gpu-memory-gb", "141")
    asked = question(tmp_path, *words)
    eight, many, one = (forecast(asked, gpus) for gpus in (8, 64, 1))
    assert eight.step_seconds == pytest.approx(1.1 + eight.communication_seconds)
    assert many.step_seconds == pytest.approx(0.2 + many.communication_seconds)
    assert one.step_seconds == pytest.approx(8.0) and one.communication_seconds == 0
    assert one.tokens_per_second == pytest.approx(4096 * 100 / 8)
    assert eight.measured == "512 x 1 on 1 GPU"
    assert eight.hours == pytest.approx(70_000 * eight.step_seconds / 3600)
    assert eight.dollars == pytest.approx(eight.hours * 8 * 2.5)
    assert "of 2048 sequences fit, of 4096 do not" in plan.explanation(asked, [eight])[0]
    # Another card, another length, another way of computing: not measured.
    for others in (("--gpu", A100), ("--sequence-length", "256"), ("--recompute",)):
        assert forecast(question(tmp_path, *words, *others), 8).step_seconds is None


def test_without_a_measurement_there_is_no_time(tmp_path, capsys):
    plan.main(["--model", "rapidbert-base", "--gpus", "8", "200", "--record", str(tmp_path / "no")])
    printed = capsys.readouterr().out
    assert printed.count("not measured") == 3 and "ms a step" not in printed
    assert "Ceiling: a bound, not a prediction" in printed
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table[:4]}) == 1  # a Markdown table
    plan.main(["--model", "bert-tiny", "--gpus", "1", "--gpu", "NVIDIA Z9"])
    assert "peak of NVIDIA Z9 unknown" in capsys.readouterr().out


def test_every_fault_is_named_at_once(tmp_path):
    (tmp_path / "record.json").write_text('{"device": "cpu"}')
    words = ["--model", "rapidbert-bose", "--gpus", "0", "--duration", "8e5"]
    words += ["--tokens-per-second-per-gpu", "0", "--record", str(tmp_path / "record.json")]
    with pytest.raises(UserError) as caught:
        plan.resolve(plan.parse_arguments(words))
    faults = "\n".join(caught.value.faults)
    for named in ("rapidbert-base?", "--gpus", "8e5", "--tokens-per-second", "record.json"):
        assert named in faults
    assert len(caught.value.faults) == 5
    (tmp_path / "file").touch()
    words = ["--model", "bert-base", "--gpus", "1", "--sequence-length", "1024"]
    words += ["--gpu-memory-gb", "inf", "--tokens-per-second-per-gpu", "inf"]
    words += ["--network-gbps", "inf", "--price-per-gpu-hour", "inf"]
    for target, why in (
        (tmp_path, f"{tmp_path}: is a directory; name a file"),
        (tmp_path / "file" / "plan", f"{tmp_path / 'file'} is a file"),
    ):
        with pytest.raises(UserError) as caught:
            plan.resolve(plan.parse_arguments([*words, "--json", str(target)]))
        assert why in caught.value.faults[4]
        assert "learned positions for 512 tokens" in caught.value.faults[5]
        assert len(caught.value.faults) == 6
    with pytest.raises(UserError) as caught:
        words = ["--gpus", "1", "5000", "--gpu-memory-gb", "7", "--record", str(tmp_path / "none")]
        plan.main(["--model", "rapidbert-large", *words])
    assert "1 GPUs: not one sequence fits" in caught.value.faults[0]
    assert "4096 / 5000 ranks" in caught.value.faults[1]
