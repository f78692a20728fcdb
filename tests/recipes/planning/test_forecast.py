"""Batches that fit and divide, predictions against arithmetic, and the shape of Figure S1."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from plan_scenarios import question, write_record

from recipes.common.errors import UserError
from recipes.common.gpus import SHORT_NAMES
from recipes.engine.batch_plan import plan_batches
from recipes.planning import forecast as forecasting
from recipes.planning.calibration import expected, fit
from recipes.planning.compute import MeasuredCurve
from recipes.planning.forecast import (
    best_plan,
    forecast,
    largest_micro_batch,
    memory,
    step_time,
    update_seconds,
)
from recipes.planning.memory import check_fit
from recipes.planning.network import Collective, collective_seconds, fabric


@given(st.integers(1, 5000), st.integers(1, 600), st.integers(1, 64))
@example(3, 2, 1)
@example(929, 104, 1)
def test_no_larger_micro_batch_fits_and_cuts_evenly(share, largest, gpus):
    made = best_plan(share * gpus, largest, gpus)
    assert made.micro_batch <= largest
    better = range(made.micro_batch + 1, min(share, largest) + 1)
    if made.global_batch == share * gpus:
        assert not any(share % size == 0 for size in better)
    else:  # only small pieces divide it: 509 sequences are no 509 micro-batches
        assert 10 * abs(made.global_batch - share * gpus) <= share * gpus
        assert not any(share % size == 0 for size in range(made.micro_batch // 2 + 1, largest + 1))
    # The JSON's limit that is advised makes pretraining cut the batch as planned.
    assert plan_batches(share * gpus, made.micro_batch, gpus) == made


def test_the_largest_micro_batch_is_where_memory_ends(tmp_path):
    asked = question(tmp_path)
    for gpus, capacity in ((8, 40), (200, 80)):
        largest = largest_micro_batch(asked, gpus, capacity)
        check_fit(memory(asked, gpus, largest), largest, capacity)
        with pytest.raises(UserError, match=f"{largest} sequences fit"):
            check_fit(memory(asked, gpus, largest + 1), largest + 1, capacity)


def test_a_step_is_the_sum_of_its_parts_and_lies_in_its_interval(tmp_path):
    asked = question(tmp_path, "--gpu", "h200")
    for gpus in (1, 8, 64, 200):
        times = forecast(asked, gpus).times
        parts = times.step
        total = parts.compute + parts.exchange + parts.update + parts.waiting
        assert times.step.total == pytest.approx(total)
        assert times.fast < total < times.slow
        assert (parts.exchange == 0) == (gpus == 1) and (parts.waiting == 0) == (gpus <= 8)
        batch = forecast(asked, gpus).plan.global_batch
        assert times.tokens_per_second == pytest.approx(batch * 128 / total)
        peak = gpus * 989e12
        flops = 6 * asked.model.parameters() * times.tokens_per_second
        assert times.mfu == pytest.approx(flops / peak)
        short, long = times.costs
        assert short.hours == pytest.approx(short.steps * total / 3600)
        assert short.steps == -(-70_000 * 4096 // batch) and long.steps > 2.5 * short.steps
        assert long.dollars == pytest.approx(long.hours * gpus * 3.59)
        assert bool(times.extrapolated) == (gpus > 64)


def test_figure_s1_constant_against_growing_global_batches(tmp_path):
    """Appendix C: at a constant global batch throughput does not grow linearly with the GPUs; at
    one that grows it nearly does. On 64 GPUs 65,536 sequences are faster than 4,096."""
    words = ("--model", "rapidbert-large", "--gpu", "a100-40")
    counts = (8, 16, 32, 64, 128, 200)

    def rates(batches):
        asked = [question(tmp_path, *words, "--global-batch", str(batch)) for batch in batches]
        found = [forecast(each, n).times for each, n in zip(asked, counts, strict=True)]
        return [each.tokens_per_second / n for each, n in zip(found, counts, strict=True)]

    constant, growing = rates([4096] * 6), rates([512 * n for n in counts])
    assert constant == sorted(constant, reverse=True)
    assert constant[3] < 0.7 * constant[0] and constant[5] < 0.35 * constant[0]
    assert min(growing) > 0.85 * growing[0]
    assert rates([65_536] * 6)[3] > 1.4 * constant[3]


def test_table_s2_in_our_own_code(tmp_path):
    """By hand: 704 MFLOP and 1.0 MB a token, the published share of the peak and waiting.

    Waves of tiles, the exchange and the update come on top: 10 to 25 ms.
    """
    config = {
        "train_batch_size": 4096,
        "train_micro_batch_size_per_gpu": 128,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
    }
    asked = question(tmp_path, "--gpu", "a100-40", config=config)
    for row in (*fit().used[1:], *fit().unused):
        tokens, nodes = 4096 * 128 / row.gpus, row.gpus // 8
        hand = 704e6 * tokens / (312e12 * fit().matmul_share) + 1.17e6 * tokens / (1.555e12 * 0.7)
        hand += fit().waiting_seconds * sum(1 / k for k in range(2, nodes + 1))
        step = forecast(asked, row.gpus).times.step
        assert hand + 0.010 < step.total < hand + 0.025


def test_a_record_of_this_device_is_what_times_stand_on(tmp_path):
    """One GPU of 8 does what one alone did with 512 sequences, and then talks."""
    path = write_record(tmp_path / "throughput.json", "NVIDIA H200")
    asked = question(tmp_path, "--record", str(path), "--gpu", "h200")
    alone, eight = (update_seconds(asked, n, expected()) for n in (1, 8))
    one = forecast(asked, 1)
    # 8 s were measured for 8 micro-batches of 512 and one update: so much are 4,096 of it here.
    assert one.times.step.total == pytest.approx(8.0)
    assert one.times.tokens_per_second == pytest.approx(4096 * 100 / 8)
    assert one.times.extrapolated == ("a micro-batch beyond those measured",)
    times = forecast(asked, 8).times
    assert times.step.compute == pytest.approx((8.0 - alone) / 8)
    assert times.step.update == pytest.approx(eight) and not times.extrapolated
    # Slowest and fastest of the measured steps are in the interval.
    assert times.fast < 0.95 * times.step.compute and 1.15 * times.step.compute < times.slow
    many = forecast(asked, 64).times
    assert many.step.compute == pytest.approx(0.2 - alone)
    # Between two sizes: straight.
    between = forecast(asked, 16).times.step.compute
    share = (256 - 64) / (512 - 64)
    assert between == pytest.approx((0.2 - alone) * (1 - share) + (8.0 - alone) / 8 * share)


def test_of_fp32_no_times_are_known_but_those_measured(tmp_path):
    config = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8}
    assert forecast(question(tmp_path, config=config), 8).times is None
    path = write_record(tmp_path / "throughput.json", "NVIDIA H200")
    words = ("--record", str(path), "--gpu", "h200")
    assert forecast(question(tmp_path, *words, config=config), 8).times is not None


def test_gpus_that_nodes_do_not_share_evenly_are_refused(tmp_path):
    with pytest.raises(UserError, match="13 GPUs: 2 nodes .* 13 / 2 = 6.5; take 12 or 14"):
        forecast(question(tmp_path), 13)


def test_stage_2_reduces_in_every_micro_batch_and_hides_it_only_if_told(tmp_path):
    def exchange(**zero):
        config = {
            "train_batch_size": 4096,
            "train_micro_batch_size_per_gpu": 64,
            "bf16": {"enabled": True},
            "communication_data_type": "fp32",
            "zero_optimization": zero,
        }
        asked = question(tmp_path, "--gpu", "a100-40", config=config)
        plan = plan_batches(4096, 64, 16)
        return step_time(asked, plan, expected()).exchange

    once, often = exchange(stage=1), exchange(stage=2)
    assert often > 3 * once
    assert exchange(stage=2, overlap_comm=True) < 0.5 * often


def test_of_our_exchange_the_last_slice_stays(tmp_path, monkeypatch):
    """And what the backward pass of a small micro-batch, two thirds of its time, is too short for.

    Base's embedding is 17% of its gradients; one slice of five is more.
    """
    bf16 = {"enabled": True, "immediate_grad_update": True}
    config = {
        "train_batch_size": 4096,
        "train_micro_batch_size_per_gpu": 64,
        "bf16": bf16,
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 30_000_000},
    }

    def exchange(tokens_per_second=500_000, **changes):
        measured = MeasuredCurve(((1, 128 / tokens_per_second),))
        monkeypatch.setattr(forecasting, "curve_of", lambda *_: measured)
        asked = question(tmp_path, "--gpu", "a100-40", config=config | changes)
        return step_time(asked, plan_batches(4096, 64, 64), expected()).exchange

    hidden, whole = exchange(), exchange(bf16={"enabled": True})
    links = fabric(SHORT_NAMES["a100-40"], SHORT_NAMES["a100-40"].network_gbit_per_s, 0.8)
    gather = collective_seconds(Collective("all-gather", 2 * 137_400_384, 1), 64, links)
    reduce = collective_seconds(Collective("all-reduce", 4 * 137_400_384, 5), 64, links)
    assert hidden == pytest.approx(gather + reduce / 5)
    single = collective_seconds(Collective("all-reduce", 4 * 137_400_384, 1), 64, links)
    staged = 16 * 137_400_384 / (1555e9 * 0.7)  # DeepSpeed divides, then copies
    assert whole == pytest.approx(gather + single + staged)
    small = {"stage": 1, "reduce_bucket_size": 10_000_000}
    embedding = 30522 * 768 / 137_400_384
    reduce = collective_seconds(Collective("all-reduce", 4 * 137_400_384, 14), 64, links)
    assert exchange(zero_optimization=small) == pytest.approx(gather + embedding * reduce)
    reduce = collective_seconds(Collective("all-reduce", 4 * 137_400_384, 5), 64, links)
    short = 0.3 * reduce * 1.5
    assert exchange(round(64 * 128 / short)) == pytest.approx(gather + 0.7 * reduce, rel=1e-3)


def test_what_would_fit_is_said(tmp_path):
    asked = question(tmp_path, "--model", "rapidbert-xl", "--gpu-memory-gb", "15")
    with pytest.raises(UserError) as caught:
        forecast(asked, 1)
    said = str(caught.value)
    assert "1 GPU: not one sequence fits into 15 GB" in said
    assert "it fits on a100-40, a100-80, h100, h200, b200" in said
    config = {"train_batch_size": 4096, "train_micro_batch_size_per_gpu": 1}
    config |= {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    words = ("--model", "rapidbert-xl", "--gpu-memory-gb", "9")
    with pytest.raises(UserError) as caught:
        forecast(question(tmp_path, *words, config=config), 2)
    ways = str(caught.value).rpartition("; ")[2]
    count = int(ways.split(" on ")[-1].split()[0])
    small = question(tmp_path, *words, config=config)
    assert largest_micro_batch(small, count, 9) and not largest_micro_batch(small, count // 2, 9)
