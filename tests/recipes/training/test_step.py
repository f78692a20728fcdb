"""The next step's batch is fetched while the device computes, and this changes no number."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pretrain_scenarios import (
    build,
    command_line,
    pretraining,
    run_world,
    settings_of,
    trained,
    values,
    write_config,
    write_data,
)

from recipes import pretrain
from recipes.engine.engine import set_learning_rate, update_weights
from recipes.engine.micro_steps import MicroSteps
from recipes.engine.world import shut_down
from recipes.training import step as steps
from recipes.training.interruption import INTERRUPTED
from recipes.training.settings import Settings
from recipes.training.stragglers import RankTimes


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


def recorded(arguments: list[str], signal_in: int | None) -> tuple[int | None, list[str]]:
    """Pretrain; return the exit status and what the host did, in order.

    Args:
        signal_in: a step (from 1) in which a signal comes after its batch was computed on.
    """
    events: list[str] = []

    def note(name: str, owner: Any, attribute: str) -> None:
        original = getattr(owner, attribute)

        def noted(*args: Any, **named: Any) -> Any:
            events.append(name)
            return original(*args, **named)

        setattr(owner, attribute, noted)

    note("loader", steps, "_stopwatch")  # asked right before the loader
    note("exchange", steps, "_exchange")
    note("update", pretrain, "update_weights")
    note("log", pretrain.Bookkeeping, "log")
    build_engine = pretrain.build_engine

    def noted_engine(*args: Any, **named: Any) -> Any:
        engine = build_engine(*args, **named)
        note("backward", engine, "backward")
        return engine

    pretrain.build_engine = noted_engine
    compute_gradients = pretrain.compute_gradients

    def interrupted(*args: Any, **named: Any) -> Any:
        loss = compute_gradients(*args, **named)
        if named["step"] + 1 == signal_in:
            os.kill(os.getpid(), signal.SIGUSR1)
        return loss

    pretrain.compute_gradients = interrupted
    return pretraining(arguments), events


FETCH = ["loader", "exchange"]
PASSES = ["backward"] * 2  # micro-batches


def test_a_batch_is_fetched_between_the_passes_of_the_step_before_and_its_first_result(
    data, tmp_path
):
    config = write_config(tmp_path, 8, 4)
    arguments = command_line(data, tmp_path / "run", config, duration=24, log_every=1)
    [(status, events)] = values(run_world(1, recorded, arguments, None))
    ahead = [*PASSES, *FETCH, "update", "log"]
    # Nothing is fetched beyond the end.
    assert events == [*FETCH, *ahead, *ahead, *PASSES, "update", "log"]
    assert status == 0


def stepped(settings: Settings, count: int) -> list[tuple[float, float]]:
    """Losses and gradients' norms where each batch is fetched when the step before is over."""
    run, world, engine = build(settings)
    batches, budget = steps.training_batches(run, world, 0), run.budget(0, 0.0)
    found = []
    for step in range(count):
        batch = steps.fetch(batches, run.plan.accumulation, {}, world)
        budget.begin_step(0.0)
        set_learning_rate(engine, budget.learning_rate(**run.schedule))
        seed = run.identity.seed
        loss = steps.compute_gradients(
            MicroSteps(engine), batch, seed=seed, step=step, times=RankTimes(world)
        )
        found.append((float(loss), float(update_weights(engine).norm)))
    shut_down()
    return found


def test_fetching_ahead_changes_no_bit_and_an_interruption_loses_nothing(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    options = dict(duration=40, model="dropout-tiny", log_every=1)
    settings = settings_of(data, tmp_path / "behind", config, **options)
    [expected] = values(run_world(1, stepped, settings, 5))
    arguments = command_line(data, tmp_path / "run", config, **options)
    [(status, events)] = values(run_world(1, recorded, arguments, 2))
    # The signal is in the exchange of that step, and the batch of the third is thrown away.
    assert status == INTERRUPTED
    assert events.count("exchange") == 3 and events.count("update") == 2
    assert values(run_world(1, pretraining, arguments)) == [0]
    records, _ = trained(tmp_path / "run")
    found = [(r["loss/train"], r["optimizer/grad_norm"]) for r in records if "loss/train" in r]
    assert found == expected


def evaluated(settings: Settings) -> tuple[dict[str, float], dict[str, float]]:
    """What is measured as ever, and where chance masks none of the tokens."""
    run, world, engine = build(settings)
    usual = steps.evaluate(engine.module, run, world)
    steps.EvaluationBatches = partial(steps.EvaluationBatches, mask_probability=1e-12)
    return usual, steps.evaluate(engine.module, run, world)


def test_held_out_text_without_a_masked_token_measures_nothing(data, tmp_path):
    settings = settings_of(data, tmp_path / "run", write_config(tmp_path, 8, 8), duration=8)
    [(usual, nothing)] = values(run_world(1, evaluated, settings))
    assert usual.keys() == {"loss/eval", "accuracy/eval"} and nothing == {}
