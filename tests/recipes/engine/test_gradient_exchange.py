"""Gradients that travel behind the backward pass are averaged as DeepSpeed averages them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from pretrain_scenarios import (
    build,
    run_world,
    settings_of,
    values,
    weights,
    write_config,
    write_data,
)

from model.masked_lm import RapidBertForMaskedLM
from recipes.engine import gradient_exchange
from recipes.engine.engine import build_engine, set_learning_rate, update_weights
from recipes.engine.gradient_exchange import GradientExchange, cut, is_possible
from recipes.engine.micro_steps import MicroSteps
from recipes.engine.world import initialize_world, shut_down
from recipes.training.settings import Settings
from recipes.training.step import compute_gradients, fetch, training_batches
from recipes.training.stragglers import RankTimes

SLICE = 3000
"""Elements: the tiny model has 15 thousand and an embedding of some thousands."""
KEYS: dict[str, Any] = {
    "bf16": {"enabled": True, "immediate_grad_update": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
    "zero_optimization": {"stage": 1, "reduce_bucket_size": SLICE},
}
STEPS, NOT_FINITE = 4, 1
"""Steps, and the one whose gradient is not finite on the last rank."""


@dataclass
class Trained:
    losses: list[float]
    norms: list[float]
    applied: list[bool]
    weights: dict[str, torch.Tensor]
    sent: list[tuple[int, int, int]]
    """Of each message: micro-batches done before in the step, parameters summed, and elements."""
    parameters: int


def train(settings: Settings, *changes: dict[str, Any]) -> list[Trained]:
    """The same run with DeepSpeed's exchange and then, for each of `changes`, with ours."""
    run, world, first = build(settings)
    first.destroy()
    found = []
    for change in ({"deepspeeds": True}, *changes):
        torch.manual_seed(run.identity.seed)
        options = replace(run.model_options, recompute=change.get("recompute", False))
        model = RapidBertForMaskedLM(run.model, options)
        with mock.patch.object(
            gradient_exchange,
            "is_possible",
            lambda *given, ours="deepspeeds" not in change: ours and is_possible(*given),
        ):
            engine = build_engine(model, run.deepspeed, run.plan, world, **run.optimizer)
        found.append(_trained(run, world, engine))
        engine.destroy()
    shut_down()
    return found


def _trained(run: Any, world: Any, engine: Any) -> Trained:
    sent: list[tuple[int, int, int]] = []
    send = GradientExchange._send

    def noted(exchange: GradientExchange) -> None:
        elements = exchange._slices[len(exchange._messages)].sums.numel()
        done = engine.micro_steps % engine.gradient_accumulation_steps()
        sent.append((done, len(exchange._summed), elements))
        send(exchange)

    result = Trained([], [], [], {}, sent, len(list(engine.module.parameters())))
    batches, times = training_batches(run, world, 0), RankTimes(world)
    set_learning_rate(engine, 1e-3)
    with mock.patch.object(GradientExchange, "_send", noted):
        for step in range(STEPS):
            batch = fetch(batches, run.plan.accumulation, {}, world)
            if step == NOT_FINITE and world.rank == world.world_size - 1:
                engine.optimizer.fp32_groups_gradients[0][5][0] = float("nan")
            steps = MicroSteps(engine)
            result.losses.append(
                float(compute_gradients(steps, batch, seed=17, step=step, times=times))
            )
            update = update_weights(engine)
            result.applied.append(update.applied)
            result.norms.append(float(update.norm))
            for sums in engine.optimizer.fp32_groups_gradients_flat:
                assert not sums.any()
    result.weights = weights(engine)
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


def settings_with(data: Path, directory: Path, micro_batch: int, **keys: Any) -> Settings:
    config = write_config(directory, 16, micro_batch, **KEYS | keys)
    return settings_of(data, directory / "run", config, model="dropout-tiny")


@pytest.mark.parametrize("micro_batch", [8, 4], ids=["one micro-batch", "two micro-batches"])
def test_two_ranks_train_as_with_deepspeeds_exchange_to_the_bit(data, tmp_path, micro_batch):
    settings = settings_with(data, tmp_path, micro_batch)
    ranks = values(run_world(2, train, settings, {}, {"recompute": True}))
    for expected, *others in ranks:
        assert expected.sent == []
        assert expected.applied == [True, False, True, True]
        for found in others:
            assert found.losses == expected.losses and found.norms == expected.norms
            assert found.applied == expected.applied
            assert all(torch.equal(found.weights[n], w) for n, w in expected.weights.items())
            assert found.sent == ranks[0][1].sent


def test_messages_leave_during_the_last_backward_pass(data, tmp_path):
    settings = settings_with(data, tmp_path, 4)
    _, found = values(run_world(2, train, settings, {}))[0]
    each = len(found.sent) // STEPS
    assert each > 2 and len(found.sent) == each * STEPS
    for step in range(STEPS):
        *early, last = found.sent[step * each : (step + 1) * each]
        assert all(done == 1 for done, *_ in [*early, last])  # of two micro-batches
        assert all(summed < found.parameters for _, summed, _ in early)
        assert [summed for _, summed, _ in early] == sorted(summed for _, summed, _ in early)
        assert early[0][1] < found.parameters / 2
        assert last[1] == found.parameters
        elements = [elements for *_, elements in [*early, last]]
        assert sum(elements) == sum(weight.numel() for weight in found.weights.values())
        # What can hide is all but the last slice, which has the embedding.
        assert sum(elements[:-1]) > 0.5 * sum(elements)


def test_four_ranks_train_as_with_deepspeeds_exchange(data, tmp_path):
    settings = settings_with(data, tmp_path, 2)
    for expected, found in values(run_world(4, train, settings, {})):
        assert found.applied == expected.applied and len(found.sent) > 2 * STEPS
        assert found.losses == pytest.approx(expected.losses, rel=1e-4)
        # A sum of four numbers rounds as they are added; a bf16 weight may round the other way.
        for name, weight in expected.weights.items():
            torch.testing.assert_close(found.weights[name], weight, rtol=1e-3, atol=2e-3)


def test_one_rank_sends_nothing_and_scales_nothing(data, tmp_path):
    [(expected, found)] = values(run_world(1, train, settings_with(data, tmp_path, 8), {}))
    assert found.sent == [] and found.losses == expected.losses
    assert all(torch.equal(found.weights[n], w) for n, w in expected.weights.items())


SIZES = [[7, 1, 300, 20, 5, 64, 90], [3, 40]]


def alone(group: dist.ProcessGroup, flat: list[torch.Tensor]) -> Any:
    """What the exchange needs of an engine."""
    sums = [list(torch.split(f[: sum(s)], s)) for f, s in zip(flat, SIZES, strict=True)]
    return SimpleNamespace(
        optimizer=SimpleNamespace(
            dp_process_group=group, fp32_groups_gradients=sums, fp32_groups_gradients_flat=flat
        ),
        zero_reduce_bucket_size=lambda: 100,
        inside_no_sync_ctxt=False,
        is_gradient_accumulation_boundary=lambda: True,
    )


def disorderly() -> tuple[list[list[int]], list[int]]:
    """Five steps whose gradients come in each rank's own order: elements of the messages of each,
    and how many gradients were there when a message left."""
    world = initialize_world(1)
    generator, sent = random.Random(world.rank), []
    padded = [torch.zeros(sum(sizes) + 3) for sizes in SIZES]
    exchange = GradientExchange(alone(world.data_parallel_group, padded))
    members = [(group, i) for group, sizes in enumerate(SIZES) for i in range(len(sizes))]
    send = exchange._send

    def noted() -> None:
        sent[-1].append(exchange._slices[len(exchange._messages)].sums.numel())
        moments.append(len(exchange._summed))
        send()

    exchange._send = noted
    moments: list[int] = []
    for step in range(5):
        sent.append([])
        for flat, sizes in zip(padded, SIZES, strict=True):
            flat[: sum(sizes)] = torch.arange(float(sum(sizes))) * (1 + world.rank)
        generator.shuffle(members)
        for member in members[step:]:  # some have no gradient
            exchange.summed(*member)
        exchange.finish()
        for flat, sizes in zip(padded, SIZES, strict=True):
            torch.testing.assert_close(
                flat[: sum(sizes)], torch.arange(float(sum(sizes))) * 1.5, rtol=0, atol=0
            )
            assert not flat[sum(sizes) :].any()
    sent.append([])
    exchange.summed(1, 1)
    exchange.summed(1, 0)
    with pytest.raises(RuntimeError, match="parameter 0 of group 1 got a second gradient"):
        exchange.summed(1, 0)
    exchange.finish()
    shut_down()
    return sent[:5], moments[:25]


def test_ranks_send_in_one_order_however_their_gradients_come():
    (first, moments), (second, others) = values(run_world(2, disorderly))
    assert first == second == [[43, 90, 89, 300, 8]] * 5
    assert moments != others and min(moments) < 7


@pytest.mark.parametrize("most", [1, 64, 100, 10**9])
def test_slices_have_every_sum_once_and_are_cut_between_parameters(most):
    flat = [torch.arange(sum(sizes) + 5) + 1000 * g for g, sizes in enumerate(SIZES)]
    slices = list(cut(flat, SIZES, most))
    for each in slices:
        expected = [flat[g][sum(SIZES[g][:i]) :][: SIZES[g][i]] for g, i in sorted(each.members)]
        assert torch.equal(each.sums, torch.cat(expected))
        assert each.sums.numel() <= most or len(each.members) == 1
    members = [member for each in slices for member in sorted(each.members, reverse=True)]
    assert members == [(1, 1), (1, 0), *((0, i) for i in reversed(range(7)))]


def test_where_the_exchange_is_left_to_deepspeed():
    def engine(**changes: Any) -> Any:
        sums = {"immediate_grad_update": True, "grad_acc_dtype": torch.float32}
        return SimpleNamespace(
            optimizer=SimpleNamespace(
                **{name: changes.get(name, value) for name, value in sums.items()}
            ),
            communication_data_type=changes.get("communication", torch.float32),
            postscale_gradients=lambda: changes.get("postscale", True),
            gradient_predivide_factor=lambda: changes.get("factor", 1.0),
        )

    assert is_possible(engine(), 1)
    assert not is_possible(engine(), 2)
    for change in (
        {"immediate_grad_update": False},
        {"grad_acc_dtype": torch.bfloat16},
        {"communication": torch.bfloat16},
        {"postscale": False},
        {"factor": 2.0},
    ):
        assert not is_possible(engine(**change), 1)
    assert not is_possible(SimpleNamespace(optimizer=torch.optim.SGD([torch.zeros(1)])), 1)
