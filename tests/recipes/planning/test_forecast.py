"""Batches that fit and divide, predictions against the paper's table and against arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_scenarios import question, write_record

from model.config import PRESETS
from recipes.common.errors import UserError
from recipes.planning.forecast import (
    best_plan,
    ceiling,
    communication_bytes,
    forecast,
    largest_micro_batch,
    memory,
)
from recipes.planning.memory import check_fit

A100 = "NVIDIA A100-SXM4-40GB"


@given(st.integers(1, 5000), st.integers(1, 600), st.integers(1, 64))
def test_no_larger_micro_batch_fits_and_cuts_evenly(share, largest, gpus):
    made = best_plan(share * gpus, largest, gpus)
    assert made.global_batch == share * gpus and made.micro_batch <= largest
    better = range(made.micro_batch + 1, min(share, largest) + 1)
    assert not any(share % size == 0 for size in better)


def test_the_largest_micro_batch_is_where_memory_ends(tmp_path):
    asked = question(tmp_path)
    for gpus, capacity in ((8, 40), (200, 80)):
        largest = largest_micro_batch(asked, gpus, capacity)
        check_fit(memory(asked, gpus, largest), largest, capacity)
        with pytest.raises(UserError, match=f"{largest} sequences fit"):
            check_fit(memory(asked, gpus, largest + 1), largest + 1, capacity)


def test_table_s2_from_its_row_of_eight_gpus(tmp_path):
    """The published code is data-parallel without ZeRO and reduces fp32 gradients.

    The network of its cluster is not known; 200 Gbit/s per GPU is what such machines had.
    """
    config = {"train_batch_size": 4096, "train_micro_batch_size_per_gpu": 128}
    rate = ["--tokens-per-second-per-gpu", str(0.938e6 / 8)]
    asked = question(tmp_path, *rate, "--gpu", A100, "--gpu-memory-gb", "40", config=config)
    found = {gpus: forecast(asked, gpus) for gpus in (8, 16, 32, 64)}
    milliseconds = [round(1e3 * each.times.step_seconds) for each in found.values()]
    assert milliseconds == [562, 321, 182, 113]
    published = [559, 279, 166, 110]
    errors = [round(100 * (a / b - 1)) for a, b in zip(milliseconds, published, strict=True)]
    assert errors == [1, 15, 10, 3]
    # The rate has the network inside the node in it, and here it comes on top once more.
    eight, network = found[8].times, found[8].communication_seconds
    assert eight.tokens_per_second == pytest.approx(4096 * 128 / (4096 * 128 / 0.938e6 + network))
    assert network < 0.006 * eight.step_seconds
    assert eight.mfu == pytest.approx(0.309, rel=0.007)  # Table S2
    # Table S3: 1.28 hours of 8 x $2 are $20.48
    steps = 1.28 * 3600 / eight.step_seconds
    assert eight.dollars == pytest.approx(70_000 / steps * 20.48 * 2.5 / 2, rel=1e-6)


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


def test_the_ceiling_is_the_data_sheet_of_one_h200():
    """By hand, per token: Base has 736 MFLOP and moves 1.0 MB, Large 2,512 MFLOP and 2.8 MB.

    That leaves out what the last layer saves by seeing only the tokens to predict.
    """
    base, large = (
        ceiling(PRESETS[name], "NVIDIA H200", 128, 0.30)
        for name in ("rapidbert-base", "rapidbert-large")
    )
    assert base and 1.0 < base * (736e6 / 989e12 + 1.0e6 / 4.8e12) < 1.08
    assert large and 1.0 < large * (2512e6 / 989e12 + 2.8e6 / 4.8e12) < 1.04
    assert ceiling(PRESETS["rapidbert-base"], "cpu", 128, 0.30) is None


def test_a_record_of_this_device_is_what_times_stand_on(tmp_path):
    """One GPU of 8 does what one alone did with 512 sequences, and then talks."""
    path = write_record(tmp_path / "throughput.json", "NVIDIA H200")
    words = ("--record", str(path), "--gpu", "NVIDIA H200", "--gpu-memory-gb", "141")
    asked = question(tmp_path, *words)
    eight, many, one = (forecast(asked, gpus) for gpus in (8, 64, 1))
    assert eight.times.step_seconds == pytest.approx(1.1 + eight.communication_seconds)
    assert many.times.step_seconds == pytest.approx(0.2 + many.communication_seconds)
    assert one.times.step_seconds == pytest.approx(8.0) and one.communication_seconds == 0
    assert one.times.tokens_per_second == pytest.approx(4096 * 100 / 8)
    assert eight.times.measured == "512 x 1 on 1 GPU"
    assert eight.times.hours == pytest.approx(70_000 * eight.times.step_seconds / 3600)
    assert eight.times.dollars == pytest.approx(eight.times.hours * 8 * 2.5)
    # Another card, another length, another way of computing: not measured.
    for others in (("--gpu", A100), ("--sequence-length", "256"), ("--recompute",)):
        assert forecast(question(tmp_path, *words, *others), 8).times is None
