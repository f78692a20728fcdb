"""Graphs on a GPU: they train as the engine does, and a capture that fails leaves no trace.

Skipped where there is none: `test_micro_steps.py` shows the rest with a stand-in.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
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

from model.config import PRESETS
from model.parallel import seed_dropout
from recipes.engine.cuda_graphs import CudaGraphs
from recipes.engine.engine import set_learning_rate, update_weights
from recipes.engine.micro_steps import WARM_UP, GraphedPass, MicroSteps, pass_through
from recipes.engine.world import World, shut_down
from recipes.training.run import Run
from recipes.training.settings import Settings
from recipes.training.step import GlobalBatch, compute_gradients, fetch, training_batches
from recipes.training.stragglers import RankTimes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU"),
]

SIZES = dict(num_layers=1, hidden_size=64, num_heads=1, ffn_size=128)
STEPS = WARM_UP + 5
"""Of one batch, of a shape, of two micro-batches: graphs are used from the third step on."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    directory = tmp_path_factory.mktemp("graphs")
    data = write_data(directory / "data")
    config = write_config(
        *(directory, 16, 8, 1),
        bf16={"enabled": True, "immediate_grad_update": True},
        data_types={"grad_accum_dtype": "fp32"},
        communication_data_type="fp32",
    )
    return settings_of(data, directory / "run", config, model="probe-tiny")


def one_layer(settings: Settings) -> Settings:
    PRESETS["layer-tiny"] = replace(PRESETS["rapidbert-base"], name="layer-tiny", **SIZES)
    return replace(settings, identity=replace(settings.identity, model="layer-tiny"))


def first_batch(run: Run, world: World) -> GlobalBatch:
    """The first micro-batch twice."""
    batch = fetch(training_batches(run, world, 0), run.plan.accumulation, {}, world)
    return replace(batch, micro_batches=[batch.micro_batches[0]] * 2)


def train(settings: Settings, graphs: bool) -> tuple[Any, ...]:
    run, world, engine = build(one_layer(settings))
    lines: list[str] = []
    device = CudaGraphs() if graphs else None
    passes = MicroSteps(engine, "on" if graphs else "off", device, lines.append)
    batch, times, losses = first_batch(run, world), RankTimes(world), []
    set_learning_rate(engine, 1e-3)
    for step in range(STEPS):
        loss = compute_gradients(passes, batch, seed=17, step=step, times=times)
        assert update_weights(engine).applied
        losses.append(float(loss))
    found = losses, {name: each.cpu() for name, each in weights(engine).items()}, lines
    shut_down()
    return found


def test_graphs_train_as_the_engine_does(settings):
    [(expected, weights_expected, _)] = values(run_world(1, train, settings, False))
    [(losses, weights_found, lines)] = values(run_world(1, train, settings, True))
    assert len(lines) == 1 and lines[0].endswith(": used"), lines
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0]
    for name, weight in weights_expected.items():
        torch.testing.assert_close(weights_found[name], weight, rtol=1e-3, atol=1e-4)


class Waits(GraphedPass):
    """Waits for the device in its forward pass, which no capture allows."""

    def _record_forward(self) -> None:
        super()._record_forward()
        self._result.item()


def after_a_failure(settings: Settings) -> tuple[str, bool, float, bool, bool]:
    run, world, engine = build(one_layer(settings))
    batch = first_batch(run, world).micro_batches[0]
    device = CudaGraphs()
    stream = torch.cuda.current_stream()
    expected = float(pass_through(engine, batch, 1.0, contextlib.nullcontext))
    engine.optimizer.clear_hp_grads()
    try:
        Waits(engine, batch, device)
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
    else:
        failed = ""
    device.release()
    same_stream = torch.cuda.current_stream() == stream
    seed_dropout(17, 0, 0, 0)
    copied = torch.arange(1000).pin_memory().to(world.device, non_blocking=True)
    loss = float(pass_through(engine, batch, 1.0, contextlib.nullcontext))
    engine.optimizer.clear_hp_grads()
    drawn = bool(torch.rand(8, device=world.device).isfinite().all())
    # And a capture works where one has failed.
    passes = GraphedPass(engine, batch, device)
    replayed = float(passes(batch, 1.0, contextlib.nullcontext))
    shut_down()
    usable = drawn and torch.equal(copied.cpu(), torch.arange(1000))
    return failed, same_stream, abs(loss - expected), usable, abs(replayed - expected) < 1e-4


def test_a_capture_that_fails_leaves_the_device_as_it_was(settings):
    [(failed, same_stream, apart, usable, replayed)] = values(
        run_world(1, after_a_failure, settings)
    )
    assert failed and same_stream and usable and replayed
    assert apart < 1e-4
