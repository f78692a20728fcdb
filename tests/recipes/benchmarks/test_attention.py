"""Floors by hand, FlexAttention against the reference, and a record of the smallest."""

import json

import pytest
import torch
from benchmark_scenarios import run_benchmark
from torch.nn.attention import flex_attention as flex

from model.attention import alibi_slopes, packed_attention
from recipes.benchmarks import attention
from recipes.benchmarks.attention import Sizes
from recipes.benchmarks.presentation import where
from recipes.benchmarks.records import Record


def test_bytes_and_flops_by_hand():
    """Two tokens, one head of four columns, bf16: 16 bytes are one of q, k, v, context."""
    assert attention.bytes_moved(2, 1, 4, 2) == (16 * 3 + 16, 16 * 3 + 16 + 16 * 3)
    # One sequence of two: QK' and PV are 2 x 2 x 4 multiply-adds each; the backward pass has five.
    assert attention.matmul_flops(4, 1, 4) == (2 * 2 * 16, 5 * 2 * 16)


@pytest.mark.parametrize(("bandwidth", "rate"), [(1e9, 1e30), (1e30, 1e9)])
def test_the_floor_is_the_slower_of_moving_and_computing(bandwidth, rate):
    record = {
        "copy_bytes_per_second": {"median": bandwidth},
        "matmul_flops_per_second": {"median": rate},
    }
    floors = attention.floor_seconds(record, 256, 64, 12, 64, 2)
    amounts = (
        attention.bytes_moved(256, 12, 64, 2)
        if bandwidth == 1e9
        else attention.matmul_flops(4 * 64 * 64, 12, 64)
    )
    assert floors == pytest.approx([amount / 1e9 for amount in amounts])


def test_flex_attention_computes_the_same_function():
    torch.manual_seed(0)
    offsets = torch.tensor([0, 7, 8, 8, 30, 41], dtype=torch.int32)
    qkv = torch.randn(41, 3, 3, 16)
    slopes = torch.tensor(alibi_slopes(3))
    same_sequence, alibi = attention.flex_functions(offsets, 41, slopes)
    mask = flex.create_block_mask(same_sequence, None, None, 41, 41, device="cpu")
    found = attention.flex_packed(qkv, alibi, mask, flex.flex_attention)
    torch.testing.assert_close(found, packed_attention(qkv, offsets, 22, slopes=slopes))


def test_a_record_of_the_smallest_size(tmp_path):
    sizes = Sizes(64, (16, 32), 2, 16, torch.float32, 2**20, 64)
    record = run_benchmark(tmp_path, "attention", TOY=sizes, REPEATS=3, TURN_SECONDS=0.0)
    measured = {(point["backend"], point["sequence_length"]) for point in record["points"]}
    assert measured == {(b, n) for b in ("reference", "sdpa") for n in (16, 32)}
    for point in record["points"]:
        assert point["tokens"] == 64 and point["forward_seconds"]["repeats"] == 3
        assert 0 < point["forward_seconds"]["min"] <= point["forward_seconds"]["median"]
    # Interpreted kernels are not timed; Flex cannot run its backward pass here.
    assert record["not_run"].keys() == {"triton", "flash", "FlexAttention"}
    assert record["copy_bytes_per_second"]["median"] > 0


def test_every_round_is_on_the_disk_and_rounds_end_with_the_time(tmp_path, monkeypatch):
    sizes = Sizes(64, (16,), 2, 16, torch.float32, 2**20, 64)
    record = Record("attention", tmp_path)
    record["copy_bytes_per_second"] = record["matmul_flops_per_second"] = {"median": 1e9}
    record["points"] = []
    seen = []

    def out_of_time(what):
        found = json.loads(record.path.read_bytes())
        assert found["complete"] is False and "ENDED BEFORE" in where(found)
        seen.append((what, [point["forward_seconds"]["repeats"] for point in found["points"]]))
        return len(seen) == 3

    monkeypatch.setattr(record, "out_of_time", out_of_time)
    monkeypatch.setattr(attention, "TURN_SECONDS", 0.0)
    attention.measure_length(record, sizes, ["reference", "sdpa"], 16)
    assert seen == [(f"rounds after {n} at 16 tokens", [n, n]) for n in (1, 2, 3)]
    assert all(point["first_call_seconds"] > 0 for point in record["points"])
