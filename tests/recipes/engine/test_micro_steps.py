"""Replayed passes train as passes through the engine do, and nothing that fails ends a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_scenarios import (
    build,
    run_world,
    settings_of,
    values,
    weights,
    write_config,
    write_data,
)
from replays import Replays

from model.config import PRESETS
from recipes.engine import micro_steps
from recipes.engine.ds_config import read_config
from recipes.engine.engine import set_learning_rate, update_weights
from recipes.engine.micro_steps import GraphedPass, MicroSteps, Use, pass_through, shape_of, why_not
from recipes.engine.world import shut_down
from recipes.training.settings import Settings
from recipes.training.step import compute_gradients, fetch, training_batches
from recipes.training.stragglers import RankTimes

BASE = Path(__file__).resolve().parents[3] / "ds_configs" / "base.json"
IN_PLACE = {
    "bf16": {"enabled": True, "immediate_grad_update": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


@dataclass
class Trained:
    losses: list[float]
    weights: dict[str, torch.Tensor]
    shapes: dict[tuple[int, ...], int]
    lines: list[str]
    device: Replays


def train(
    settings: Settings, steps: int, use: Use, device: Replays, most: int | None = None
) -> Trained:
    """The loop of a run, as pretrain.py has it."""
    run, world, engine = build(settings)
    if most is not None:
        micro_steps.MOST_GRAPHS = most
    lines: list[str] = []
    device.engine = engine
    passes = MicroSteps(engine, use, device, lines.append)
    batches, times = training_batches(run, world, 0), RankTimes(world)
    shapes: dict[tuple[int, ...], int] = {}
    losses = []
    set_learning_rate(engine, 1e-3)
    for step in range(steps):
        batch = fetch(batches, run.plan.accumulation, {}, world)
        for each in batch.micro_batches:
            shapes[shape_of(each)] = shapes.get(shape_of(each), 0) + 1
        loss = compute_gradients(passes, batch, seed=17, step=step, times=times)
        assert update_weights(engine).applied
        losses.append(float(loss))
    device.forget()
    found = Trained(losses, weights(engine), shapes, lines, device)
    shut_down()
    return found


@pytest.fixture(scope="module")
def settings(data, tmp_path_factory) -> Settings:
    directory = tmp_path_factory.mktemp("run")
    config = write_config(directory, 16, 8, 1, **IN_PLACE)
    # Shapes of a seed with which some are captured in second micro-batches.
    return settings_of(data, directory / "run", config, model="dropout-tiny", seed=34)


@pytest.fixture(scope="module")
def engine_alone(settings) -> Trained:
    return values(run_world(1, train, settings, 200, "off", Replays()))[0]


def same(found: Trained, expected: Trained, steps: int = 200) -> None:
    assert found.losses == expected.losses[:steps]
    if steps == len(expected.losses):
        assert all(torch.equal(found.weights[n], w) for n, w in expected.weights.items())


def test_200_steps_of_replayed_passes_are_the_engines_to_the_bit(settings, engine_alone):
    [found] = values(run_world(1, train, settings, 200, "auto", Replays()))
    same(found, engine_alone)
    often = [count for count in found.shapes.values() if count > micro_steps.WARM_UP]
    assert 1 < len(often) < micro_steps.MOST_GRAPHS  # several graphs
    assert len(found.shapes) > len(often)  # and rare shapes
    assert found.device.recorded == 2 * len(often)  # both passes of each
    # Of steps of two micro-batches: the trial comes in a first one, later captures in either.
    assert found.device.micro_batches[:2] == [0, 0] and 1 in found.device.micro_batches
    # The trial's own replays are those of one and three rounds.
    assert found.device.replays > 2 * 200
    [line] = found.lines
    assert line == (
        "CUDA graphs: 500.00 ms a micro-batch, launched one by one 1000.00 ms; loss and gradient "
        "equal to the bit: used"
    )
    assert engine_alone.lines == [] and engine_alone.device.replays == 0


@pytest.mark.parametrize(
    ("use", "device", "says"),
    [
        ("auto", Replays(fails_at=0), "not used any more, RuntimeError: operation not permitted"),
        ("auto", Replays(fails_at=1), "not used any more, RuntimeError: operation not permitted"),
        ("on", Replays(wrong=True), "not used, since they differ"),
        ("auto", Replays(graph_seconds=0.99), "not used, since they save less than 2%"),
        ("on", Replays(free=54), "not used, since shapes without a graph need 0.0 GB"),
    ],
    ids=["no capture", "half a capture", "wrong", "slow", "no room"],
)
def test_what_a_trial_finds_ends_the_use_of_graphs_with_a_line(
    settings, engine_alone, use, device, says
):
    [found] = values(run_world(1, train, settings, 12, use, device))
    same(found, engine_alone, 12)
    [line] = found.lines
    assert says in line and "\n" not in line
    assert found.device.released == 1 and found.device.held == 0


@pytest.mark.parametrize(
    ("device", "says"),
    [(Replays(fails_at=4), "RuntimeError"), (Replays(free_later=0), "a rare shape needs")],
    ids=["a later capture", "no room left"],
)
def test_graphs_that_fail_later_leave_the_run_as_it_was(settings, engine_alone, device, says):
    [found] = values(run_world(1, train, settings, 40, "on", device))
    same(found, engine_alone, 40)
    assert found.device.released == 1 and found.device.replays > 0
    assert found.device.held == 0
    used, given_up = found.lines
    assert used.endswith(": used") and says in given_up


def test_graphs_are_limited(settings, engine_alone):
    [found] = values(run_world(1, train, settings, 40, "on", Replays(), 1))
    same(found, engine_alone, 40)
    assert found.device.recorded == 2


def test_replayed_gradients_are_averaged_over_the_ranks(data, tmp_path):
    config = write_config(tmp_path, 16, 4, 1, **IN_PLACE)
    settings = settings_of(data, tmp_path / "run", config, model="dropout-tiny")
    expected = values(run_world(2, train, settings, 12, "off", Replays()))
    found = values(run_world(2, train, settings, 12, "on", Replays()))
    for one, other in zip(found, expected, strict=True):
        same(one, other, 12)
        assert one.device.replays > 0


def test_where_passes_cannot_be_graphs():
    deepspeed = read_config(BASE)
    base = PRESETS["rapidbert-base"]
    assert why_not(base, deepspeed, 1) is None
    assert "random numbers" in why_not(PRESETS["bert-base"], deepspeed, 1)
    assert "talk to each other" in why_not(base, deepspeed, 2)
    for changed in ({"bf16": {"enabled": True}}, {"zero_optimization": {"stage": 2}}):
        assert "summed in place" in why_not(base, deepspeed | changed, 1)


class Looks:
    """Runs what it is to record, once, and counts the parameters that autograd has reached."""

    def __init__(self, engine: Any):
        self._parameters = {id(parameter) for parameter in engine.module.parameters()}
        self.found: list[tuple[int, int]] = []

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        loss = work.__self__._loss  # type: ignore[attr-defined]
        self.found.append(self.reached(loss))
        return work

    def reached(self, loss: torch.Tensor) -> tuple[int, int]:
        """The engine's parameters among the leaves of a loss, and all of its leaves."""
        todo, seen, leaves = [loss.grad_fn], set(), []
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                leaves.append(node.variable)
            todo += [following for following, _ in node.next_functions]
        return sum(id(leaf) in self._parameters for leaf in leaves), len(leaves)


def look(settings: Settings) -> tuple[list[tuple[int, int]], tuple[int, int], bool]:
    run, world, engine = build(settings)
    looks = Looks(engine)
    batch = next(training_batches(run, world, 0))
    arguments, named = micro_steps._arguments(batch)
    engines = looks.reached(engine.module(*arguments, **named))
    own = dict(engine.module.named_parameters())
    passes = GraphedPass(engine, batch, looks)
    sums = [total.clone() for total in engine.optimizer.fp32_groups_gradients_flat]
    engine.optimizer.clear_hp_grads()
    passes(batch, 1.0, contextlib.nullcontext)
    again = [total.clone() for total in engine.optimizer.fp32_groups_gradients_flat]
    engine.optimizer.clear_hp_grads()
    pass_through(engine, batch, 1.0, contextlib.nullcontext)
    expected = engine.optimizer.fp32_groups_gradients_flat
    equal = all(map(torch.equal, again, expected)) and any(total.any() for total in expected)
    assert not any(total.any() for total in sums)  # recorded with a factor of 0
    unchanged = all(own[name] is each for name, each in engine.module.named_parameters())
    shut_down()
    return looks.found, engines, equal and unchanged


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_recordings_reach_no_parameter_of_the_engine_and_their_gradients_are_the_engines(
    settings, recompute
):
    """DeepSpeed keeps each one's node in autograd, and torch refuses its stream in a capture."""
    adjustable = replace(settings.adjustable, recompute=recompute)
    [(found, engines, equal)] = values(run_world(1, look, replace(settings, adjustable=adjustable)))
    reached, leaves = engines
    assert reached == leaves > 10
    assert found == [(0, leaves)] * 2
    assert equal
