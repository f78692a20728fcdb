"""Replayed passes train as passes through the engine do, and nothing that fails ends a run.

A stand-in for the GPU replays what was recorded by calling it again, with its inputs where they
were at the recording.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

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

from model.config import PRESETS
from recipes.common.errors import UserError
from recipes.engine import micro_steps
from recipes.engine.ds_config import read_config
from recipes.engine.engine import set_learning_rate, update_weights
from recipes.engine.micro_steps import MicroSteps, Use, shape_of, why_not
from recipes.engine.world import shut_down
from recipes.training.run import resolve
from recipes.training.settings import Settings
from recipes.training.step import compute_gradients, fetch, training_batches
from recipes.training.stragglers import RankTimes

BASE = Path(__file__).resolve().parents[3] / "ds_configs" / "base.json"
IN_PLACE = {
    "bf16": {"enabled": True, "immediate_grad_update": True},
    "data_types": {"grad_accum_dtype": "fp32"},
}


@dataclass
class Replays:
    """A device whose recordings are the work itself. Fields: what goes wrong with it."""

    fails_at: int | None = None
    """Recording that raises, from 0."""
    wrong: bool = False
    graph_seconds: float = 0.5
    free: int = 100
    free_later: int | None = None
    recorded: int = 0
    replays: int = 0
    released: int = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.recorded == self.fails_at:
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA says more")
        self.recorded += 1

        def replay() -> None:
            self.replays += 1
            work()
            if self.wrong:
                work.__self__._result.mul_(1.01)

        return replay

    def seconds(self, work: Callable[[], object]) -> float:
        work()
        return self.graph_seconds if self.recorded else 1.0

    def peak_bytes(self, work: Callable[[], object]) -> int:
        work()
        return 50

    def free_bytes(self) -> int:
        if self.free_later is not None and self.recorded > 2:
            return self.free_later
        return self.free

    def release(self) -> None:
        self.released += 1


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
    found = Trained(losses, weights(engine), shapes, lines, device)
    shut_down()
    return found


@pytest.fixture(scope="module")
def settings(data, tmp_path_factory) -> Settings:
    directory = tmp_path_factory.mktemp("run")
    config = write_config(directory, 16, 8, 1, **IN_PLACE)
    return settings_of(data, directory / "run", config, model="dropout-tiny")


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
    # In steps of two micro-batches; the trial's own replays are those of one and three rounds.
    often = [count for count in found.shapes.values() if count > micro_steps.WARM_UP]
    assert len(often) > 1 and len(found.shapes) > len(often)  # several graphs, and rare shapes
    assert 2 <= found.device.recorded <= 2 * min(len(often), micro_steps.MOST_GRAPHS)
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
    assert found.device.released == 1


@pytest.mark.parametrize(
    ("device", "says"),
    [(Replays(fails_at=4), "RuntimeError"), (Replays(free_later=0), "a rare shape needs")],
    ids=["a later capture", "no room left"],
)
def test_graphs_that_fail_later_leave_the_run_as_it_was(settings, engine_alone, device, says):
    [found] = values(run_world(1, train, settings, 40, "on", device))
    same(found, engine_alone, 40)
    assert found.device.released == 1 and found.device.replays > 0
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


def test_graphs_that_cannot_be_are_a_fault_only_where_they_are_asked_for(settings):
    adjustable = settings.adjustable
    assert adjustable.cuda_graphs == "off"
    resolve(replace(settings, adjustable=replace(adjustable, cuda_graphs="auto")), 1)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--cuda-graphs on: there is no GPU; leave it out"):
            resolve(replace(settings, adjustable=replace(adjustable, cuda_graphs="on")), 1)
