"""Exchanges: what is sent, against a ring that is walked step by step; how long it takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recipes.common.errors import UserError
from recipes.common.gpus import SHORT_NAMES
from recipes.planning.forecast import UPDATE_BYTES, WHOLE_BYTES
from recipes.planning.network import (
    Collective,
    Fabric,
    collective_seconds,
    deepspeed_collectives,
    fabric,
    node_shape,
    staged_bytes,
    waiting_seconds,
)

ROOT = Path(__file__).resolve().parents[3]
COUNTED = json.loads((ROOT / "docs/results/step_counted.json").read_text())
BF16 = {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 50_000_000},
}


class Ring:
    """Every rank sends one of n parts to its neighbour, n - 1 times; twice for a reduction."""

    def __init__(self, ranks: int, size: int):
        part = size / ranks
        self.gather = sum(part for _ in range(ranks - 1))
        self.reduce = 2 * self.gather


def test_bytes_on_the_network_are_those_of_a_ring():
    for ranks in (2, 8, 200):
        fp32, bf16 = Ring(ranks, 4 * 1000), Ring(ranks, 2 * 1000)
        zero = {"zero_optimization": {"stage": 1}}
        two = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
        mixed = {**zero, "bf16": {"enabled": True}, "communication_data_type": "fp32"}
        sent = [
            sum(each.sent_bytes(ranks) for each in deepspeed_collectives(1000, config, 4))
            for config in ({}, zero, mixed, two)
        ]
        assert sent == pytest.approx(
            [
                fp32.reduce,
                fp32.reduce + fp32.gather,
                fp32.reduce + bf16.gather,
                4 * bf16.reduce + bf16.gather,
            ]
        )
    assert not any(each.sent_bytes(1) for each in deepspeed_collectives(1000, {}, 1))


@pytest.mark.parametrize("row", COUNTED["rows"], ids=lambda row: row["model"])
def test_collectives_are_those_that_our_engine_was_seen_to_start(row):
    """The real engine on fake CUDA tensors; the sums of loss and norm are single numbers."""
    config = json.loads((ROOT / row["deepspeed_config"]).read_text())
    counted = [each for each in row["collectives_per_step"] if each["elements"] > 1]
    reduced = [each for each in counted if each["name"] == "allreduce_"]
    reduce, gather = deepspeed_collectives(row["parameters"], config, 2)
    assert reduce.beside_backward and not gather.beside_backward
    assert reduce.bytes == sum(each["bytes"] for each in reduced)
    assert reduce.calls <= len(reduced) <= 2 * reduce.calls  # cut between parameters
    [last] = [each for each in reduced if not each["before_the_last_gradient"]]
    assert last == reduced[-1]
    assert row["bytes_that_can_overlap"] == reduce.bytes - last["bytes"] > 0.75 * reduce.bytes
    assert [gather.bytes] == [each["bytes"] for each in counted if each not in reduced]


def test_collectives_are_those_that_deepspeed_was_seen_to_start():
    """docs/log.md: with the exchange left to DeepSpeed, the real engine on fake CUDA tensors sent
    one all-reduce of 550 MB and one all-gather of 275 MB a step, whatever the buckets of the JSON
    and the accumulation."""
    for accumulation in (1, 8):
        reduce, gather = deepspeed_collectives(137_400_384, BF16, accumulation)
        assert (reduce.calls, round(reduce.bytes / 1e6)) == (1, 550)
        assert (gather.calls, round(gather.bytes / 1e6)) == (1, 275)
    large, _ = deepspeed_collectives(1_290_000_000, BF16, 8)
    assert large.calls == 3  # behind every 500 million
    two = {**BF16, "zero_optimization": {"stage": 2, "reduce_bucket_size": 50_000_000}}
    reduce, _ = deepspeed_collectives(137_400_384, two, 8)
    assert reduce.calls == 8 * 3 and reduce.bytes == pytest.approx(8 * 4 * 137_400_384)


def test_an_update_moves_the_bytes_that_were_counted():
    """By the real engine on fake CUDA tensors, with the gradients sent by us and by DeepSpeed."""
    updates = COUNTED["updates"]
    assert [each["bytes_per_parameter"] for each in updates] == [12.25, 28.25, 36.25]
    for each in updates:
        config = json.loads((ROOT / each["deepspeed_config"]).read_text()) | each["changes"]
        own = UPDATE_BYTES / COUNTED["ranks"] + WHOLE_BYTES
        assert own + staged_bytes(config, 2) == pytest.approx(each["bytes_per_parameter"])
    two = {**BF16, "zero_optimization": {"stage": 2}}
    assert staged_bytes(two, 8) == 8 * staged_bytes(two, 1)


def test_time_is_latency_then_bandwidth():
    links = fabric(SHORT_NAMES["h100"], 400, 0.8)
    # Large: 2 x 7/8 x 1 GB at 360 GB/s on NVLink; 2 x 63/64 at 8 x 40 GB/s between nodes.
    large = Collective("all-reduce", 1e9, 1)
    assert collective_seconds(large, 8, links) == pytest.approx(2 * 7 / 8 / 360, rel=0.02)
    assert collective_seconds(large, 64, links) == pytest.approx(2 * 63 / 64 / 320, rel=0.1)
    # Small: nothing but latency. A ring of 8 takes 14 steps of 3.4 us, a tree 14 of 4.0.
    assert collective_seconds(Collective("all-reduce", 1, 1), 8, links) == pytest.approx(
        8.4e-6 + 14 * 3.4e-6, rel=1e-3
    )
    # Of many nodes the tree is lower: 2 x (7 x 4.0 + log2(25) x 14) us beside 398 steps.
    assert collective_seconds(Collective("all-reduce", 1, 1), 200, links) == pytest.approx(
        8.4e-6 + 2 * (7 * 4.0e-6 + 4.644 * 14e-6), rel=1e-3
    )
    assert collective_seconds(Collective("all-gather", 1, 2), 8, links) == pytest.approx(
        2 * (8.4e-6 + 7 * 3.4e-6), rel=1e-3
    )
    assert collective_seconds(large, 1, links) == 0
    # Two cards of two nodes: each has one network card.
    assert links.bandwidth(2) == pytest.approx(360e9)
    one_each = Fabric(360e9, 40e9, 1)
    assert collective_seconds(large, 2, one_each) == pytest.approx(1 / 40, rel=0.01)


def test_a_step_waits_for_the_slowest_of_its_nodes():
    """Against draws: the mean of the largest of k exponential delays, one node's own taken off."""
    delays = np.random.default_rng(0).exponential(0.02, size=(200_000, 8))
    for nodes in (1, 2, 8):
        drawn = delays[:, :nodes].max(axis=1).mean() - 0.02
        assert waiting_seconds(0.02, nodes) == pytest.approx(drawn, rel=0.02, abs=2e-4)


def test_gpus_are_spread_evenly_over_as_few_nodes_as_possible():
    shapes = [node_shape(n, 8) for n in (1, 4, 7, 8, 12, 14, 21, 200)]
    assert shapes == [(1, 1), (1, 4), (1, 7), (1, 8), (2, 6), (2, 7), (3, 7), (25, 8)]
    for count, nearest in ((9, "8 or 10"), (13, "12 or 14"), (20, "18 or 21"), (199, "192 or 200")):
        with pytest.raises(UserError, match=f"{count} GPUs: .* take {nearest}"):
            node_shape(count, 8)


def test_nodes_that_are_not_full_have_fewer_cards():
    links = fabric(SHORT_NAMES["h100"], 40.0, 1.0)
    assert links.bandwidth(16) == 8 * links.network and links.bandwidth(12) == 6 * links.network
    assert links.bandwidth(6) == links.nvlink
