"""What a run survives: other world sizes, interruptions, bad numbers, hangs, kills at any time."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_scenarios import (
    build,
    command_line,
    one_step,
    pretraining,
    run_world,
    settings_of,
    trained,
    values,
    weights,
    write_config,
    write_data,
)

from recipes import pretrain
from recipes.common.errors import UserError
from recipes.engine.engine import check_replicas
from recipes.engine.world import shut_down
from recipes.training.checkpoints import manifest
from recipes.training.checkpoints.store import Checkpoints
from recipes.training.interruption import INTERRUPTED, STOPPED
from recipes.training.progress import Progress, check_ending
from recipes.training.settings import Settings
from recipes.training.stragglers import slow_ranks

BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


def interrupted(arguments: list[str], step: int, rank: int, *numbers: int) -> Any:
    """Pretrain; `rank` gets the signals in the middle of step `step` (from 1)."""
    compute_gradients = pretrain.compute_gradients

    def signalled(*args: Any, **named: Any) -> Any:
        if named["step"] == step - 1 and int(os.environ["RANK"]) == rank:
            for number in numbers:
                os.kill(os.getpid(), number)
        return compute_gradients(*args, **named)

    pretrain.compute_gradients = signalled
    return pretraining(arguments)


# Worlds that one run goes through, a few steps in each: processes, ZeRO stage.
JOURNEYS = [
    ([(1, 0), (2, 1), (4, 2), (8, 1)], {}),
    ([(8, 2), (4, 0), (2, 2), (1, 1)], {}),
    ([(2, 1), (1, 1), (4, 1)], BF16),
]


@pytest.mark.parametrize(("journey", "keys"), JOURNEYS, ids=["growing", "shrinking", "bf16"])
def test_a_run_goes_on_with_any_number_of_processes_at_any_stage(data, tmp_path, journey, keys):
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    options = dict(duration=16 * 2 * len(journey), save_every=100, model="dropout-tiny")
    stage = journey[0][1]
    config = write_config(tmp_path, 16, 16, stage, **keys)
    values(run_world(1, pretraining, command_line(data, straight, config, **options)))
    for number, (world_size, stage) in enumerate(journey):
        config = write_config(tmp_path, 16, 2, stage, **keys)
        arguments = command_line(data, moved, config, **options)
        step = 2 * number + 2  # known to all, and acted on, in this very step
        last = number == len(journey) - 1
        outcomes = (
            run_world(world_size, pretraining, arguments)
            if last
            else run_world(world_size, interrupted, arguments, step, world_size - 1, signal.SIGUSR1)
        )
        assert values(outcomes) == [0 if last else INTERRUPTED] * world_size
        if number:
            assert f"resuming with world_size {world_size}" in outcomes[0].output
    records, state = trained(straight)
    moved_records, moved_state = trained(moved)
    assert len(records) == len(moved_records)
    tolerance = dict(rel=2e-2) if keys else dict(rel=1e-5)
    for record, other in zip(records, moved_records, strict=True):
        for name in ("step", "sequences", "tokens"):
            assert other[name] == record[name]
        for name in record.keys() & other.keys():
            assert other[name] == pytest.approx(record[name], **tolerance), name
    limits = dict(rtol=2e-2, atol=4e-3) if keys else dict(rtol=1e-5, atol=4e-6)
    torch.testing.assert_close(moved_state, state, **limits)


def state_after(settings: Settings, save_at: int, steps: int) -> tuple[dict, dict]:
    """Weights and moments by name, straight and through a checkpoint of step `save_at`."""
    run, world, engine = build(settings)
    checkpoints = Checkpoints(run.places.output / "checkpoints", world)
    for step in range(save_at):
        one_step(run, world, engine, step)
    checkpoints.save(engine, Progress(save_at))
    for step in range(save_at, steps):  # written beside these steps: none of them may be in it
        one_step(run, world, engine, step)
    checkpoints.wait()
    straight = weights(engine)
    checkpoints.resume(engine, expected=True)
    for step in range(save_at, steps):
        one_step(run, world, engine, step)
    again = weights(engine)
    shut_down()
    return straight, again


@pytest.mark.parametrize(("stage", "keys"), [(0, {}), (1, {}), (2, {}), (1, BF16), (2, BF16)])
def test_what_is_written_beside_the_training_is_the_state_of_its_step(data, tmp_path, stage, keys):
    config = write_config(tmp_path, 8, 2, stage, **keys)
    arguments = settings_of(data, tmp_path / "run", config, duration=80, model="dropout-tiny")
    for straight, again in values(run_world(2, state_after, arguments, 2, 5)):
        assert all(torch.equal(straight[name], again[name]) for name in straight)


@pytest.mark.parametrize(
    ("step", "rank", "numbers"),
    [
        pytest.param(2, 1, [signal.SIGUSR1], id="one rank"),
        pytest.param(4, 0, [signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1], id="twice"),
        pytest.param(3, 1, [signal.SIGINT], id="in a step that saves anyway"),
    ],
)
def test_an_interrupted_run_equals_the_straight_one_to_the_bit(data, tmp_path, step, rank, numbers):
    config = write_config(tmp_path, 8, 4)
    options = dict(duration=40, model="dropout-tiny")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    values(run_world(2, pretraining, command_line(data, straight, config, **options)))
    arguments = command_line(data, stopped, config, **options)
    outcomes = run_world(2, interrupted, arguments, step, rank, *numbers)
    assert values(outcomes) == [INTERRUPTED] * 2
    assert f"ended by a signal after step {step} of 5, with a checkpoint" in outcomes[0].output
    assert not (stopped / "export").exists()
    assert values(run_world(2, pretraining, arguments)) == [0, 0]
    records, state = trained(straight)
    again, state_again = trained(stopped)
    assert again == records
    assert all(torch.equal(state[name], state_again[name]) for name in state)


def test_a_signal_in_the_last_step_changes_nothing(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    arguments = command_line(data, tmp_path / "run", config, duration=24)
    assert values(run_world(2, interrupted, arguments, 3, 1, signal.SIGTERM)) == [0, 0]
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()


def signalled_while_saving(arguments: list[str]) -> Any:
    save = Checkpoints.save

    def signalled(self: Checkpoints, *args: Any) -> None:
        save(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    Checkpoints.save = signalled
    return pretraining(arguments)


def test_a_signal_during_a_save(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    arguments = command_line(data, tmp_path / "run", config, duration=80, save_every=2)
    assert values(run_world(2, signalled_while_saving, arguments)) == [INTERRUPTED] * 2
    newest = manifest.published(tmp_path / "run" / "checkpoints")[0]
    assert newest.name == "step-000000003" and not list(manifest.damage(newest))


def signalled_at_once(arguments: list[str]) -> Any:
    fetch = pretrain.fetch

    def signalled(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return fetch(*args)

    pretrain.fetch = signalled
    return pretraining(arguments)


def test_a_stop_file_ends_the_run_whatever_else_asks_and_is_used_up(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    arguments = command_line(data, tmp_path / "run", config, duration=80)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()
    assert values(run_world(2, signalled_at_once, arguments)) == [STOPPED] * 2
    assert not (tmp_path / "run" / "stop").exists()
    outcomes = run_world(2, pretraining, arguments)
    assert values(outcomes) == [0, 0]
    assert "resumed at step 1" in outcomes[0].output


def poisoned(arguments: list[str], rank: int, where: str, steps: list[int]) -> Any:
    """Pretrain; in some steps (from 1) one rank's loss is infinite, or only its gradient is."""
    compute_gradients = pretrain.compute_gradients

    def bad(steps_of_engine: Any, *args: Any, **named: Any) -> Any:
        if named["step"] + 1 not in steps or int(os.environ["RANK"]) != rank:
            return compute_gradients(steps_of_engine, *args, **named)

        def forward(module: Any, inputs: Any, loss: torch.Tensor) -> torch.Tensor | None:
            if where == "loss":
                return loss + torch.inf
            loss.register_hook(lambda gradient: gradient * torch.nan)
            return None

        handle = steps_of_engine.engine.module.register_forward_hook(forward)
        try:
            return compute_gradients(steps_of_engine, *args, **named)
        finally:
            handle.remove()

    pretrain.compute_gradients = bad
    return pretraining(arguments)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize(("stage", "keys"), [(0, {}), (1, {}), (2, {}), (1, BF16)])
def test_a_number_that_is_not_finite_skips_the_step_everywhere(data, tmp_path, stage, keys, where):
    config = write_config(tmp_path, 8, 2, stage, **keys)
    arguments = command_line(data, tmp_path / "run", config, duration=32, save_every=1, keep=9)
    outcomes = run_world(2, poisoned, arguments, 1, where, [3])
    assert values(outcomes) == [0, 0]
    assert "step 3: " in outcomes[0].output and "no update (1 skipped so far)" in outcomes[0].output
    records, state = trained(tmp_path / "run")
    steps = [record for record in records if "loss/train" in record]
    assert [record["optimizer/skipped_steps"] for record in steps] == [0, 0, 1, 1]
    assert all(torch.isfinite(value).all() for value in state.values())
    saved = tmp_path / "run" / "checkpoints"
    before, after = (
        {path.name: path.read_bytes() for path in (saved / f"step-00000000{n}").glob("tp*")}
        for n in (2, 3)
    )
    assert before == after  # weights and moments, to the bit

    # Adam's count of updates leaves the skipped step out, after a resume too.
    shutil.rmtree(saved / "step-000000004")
    shutil.rmtree(tmp_path / "run" / "export")
    assert values(run_world(2, pretraining, arguments)) == [0, 0]
    again, state_again = trained(tmp_path / "run")
    assert again == records
    assert all(torch.equal(state[name], state_again[name]) for name in state)


def test_a_run_that_ends_in_skipped_steps_does_not_end_well(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    arguments = command_line(data, tmp_path / "run", config, duration=32)
    outcomes = run_world(2, poisoned, arguments, 1, "loss", [3, 4])
    outcomes += run_world(2, pretraining, arguments)  # started again, it says the same
    for outcome in outcomes:
        assert isinstance(outcome.error, UserError)
        assert "2 of 4 steps were without effect, 2 of them at the very end" in str(outcome.error)
    assert not (tmp_path / "run" / "export").exists()


@pytest.mark.parametrize(
    ("steps", "skipped", "last", "well"),
    [(4, 1, 1, True), (4, 2, 0, False), (70_000, 7_000, 1, True), (70_000, 7_001, 0, False)]
    + [(70_000, 2, 2, False), (1, 1, 1, True)],
)
def test_how_many_steps_without_effect_a_run_may_have(steps, skipped, last, well):
    done = Progress(steps, skipped=skipped, skipped_in_a_row=last)
    if well:
        check_ending(done, 5.0)
        with pytest.raises(UserError, match="held-out text is nan. Nothing is exported"):
            check_ending(done, float("nan"))
    else:
        with pytest.raises(UserError, match=f"{skipped} of {steps} steps.*--learning-rate"):
            check_ending(done, 5.0)


def test_too_many_skipped_steps_in_a_row_end_the_run(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    arguments = command_line(data, tmp_path / "run", config, duration=8 * 30, save_every=100)
    for outcome in run_world(2, poisoned, arguments, 0, "loss", list(range(4, 31))):
        assert isinstance(outcome.error, UserError)
        assert "step 13: " in str(outcome.error)
        assert "the last 10 steps were all without effect" in str(outcome.error)


def corrupted(settings: Settings) -> None:
    _run, world, engine = build(settings)
    check_replicas(engine, world)
    if world.rank == 2:
        parameter = next(engine.module.parameters())
        bits = parameter.data.view(torch.int32).view(-1)
        bits[5] ^= 1
    try:
        check_replicas(engine, world)
    finally:
        shut_down()


def test_one_flipped_bit_in_one_ranks_parameters_is_noticed(data, tmp_path):
    config = write_config(tmp_path, 8, 4, 0)
    arguments = settings_of(data, tmp_path / "run", config, duration=8)
    for outcome in run_world(4, corrupted, arguments):
        assert isinstance(outcome.error, RuntimeError)
        assert "the parameters of rank 2 (" in str(outcome.error)


def test_slow_ranks_are_named():
    ranks = [(f"rank {n}", 0.040 + 0.001 * n, 0.0) for n in range(8)]
    assert slow_ranks(ranks) == {}
    ranks[5] = ("rank 5 (node7, cuda:5)", 0.080, 0.0)
    assert list(slow_ranks(ranks).values()) == [
        "rank 5 (node7, cuda:5) is slow: forward 80.0 ms a step, median 43.0 ms"
    ]


def start_world(world_size: int, arguments: list[str]) -> list[multiprocessing.Process]:
    """A world that is not waited for; its ranks end by themselves or are killed."""
    from pretrain_scenarios import _fork_server, free_port

    port = free_port()
    ranks = []
    for rank in range(world_size):
        environment = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world_size, MASTER_PORT=port)
        process = _fork_server().Process(target=_run_quietly, args=(environment, arguments))
        process.start()
        ranks.append(process)
    return ranks


def _run_quietly(environment: dict[str, Any], arguments: list[str]) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    sys.exit(pretraining(arguments))


def end(ranks: list[multiprocessing.Process]) -> None:
    for process in ranks:
        process.kill()
    for process in ranks:
        process.join()


def test_a_stopped_rank_ends_the_others(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    arguments = command_line(data, tmp_path / "run", config, duration=8 * 100_000, step_timeout=3)
    ranks = start_world(2, arguments)
    try:
        wait_for_steps(tmp_path / "run", 4)
        os.kill(ranks[1].pid, signal.SIGSTOP)
        ranks[0].join(30)
        assert ranks[0].exitcode == 1
    finally:
        end(ranks)


def wait_for_steps(run: Path, steps: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (run / "log.jsonl").exists() and len(
            (run / "log.jsonl").read_text().splitlines()
        ) > steps:
            return
        time.sleep(0.005)
    raise TimeoutError("no progress")


CHAOS_SEED = 2011
KILLS = 20


@pytest.mark.slow
def test_killed_at_random_points_the_losses_are_those_of_an_unbroken_run(data, tmp_path):
    """SIGKILL, to one rank or all, at any moment: start-up, steps, saves, the export."""
    config = write_config(tmp_path, 8, 4)
    options = dict(model="dropout-tiny", duration=8 * 150, save_every=4, keep=2, eval_sequences=8)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    values(run_world(2, pretraining, command_line(data, straight, config, **options)))

    chance = random.Random(CHAOS_SEED)
    arguments = command_line(data, killed, config, **options)
    outcomes = []
    for number in range(KILLS):
        before = manifest.published(killed / "checkpoints") if killed.exists() else []
        ranks = start_world(2, arguments)
        target = len(records(killed)) + chance.randint(1, 12)
        victims = chance.choice([ranks, ranks[:1], ranks[1:]])
        try:
            if chance.random() < 0.8:
                while len(records(killed)) < target and all(rank.is_alive() for rank in ranks):
                    time.sleep(0.001)
            time.sleep(chance.random() * 0.1)
            for rank in victims:
                rank.kill()
        finally:
            time.sleep(0.05)
            end(ranks)
        after = manifest.published(killed / "checkpoints") if killed.exists() else []
        newest = int(after[0].name.removeprefix("step-")) if after else 0
        outcomes.append((number, len(victims), target, newest))
        print(f"kill {number} (seed {CHAOS_SEED}): {len(victims)} ranks, newest step {newest}")
        if before:  # what was complete stays
            assert newest >= int(before[0].name.removeprefix("step-"))
        assert not any(list(manifest.damage(path)) for path in after[:1])
    assert values(run_world(2, pretraining, arguments)) == [0, 0]
    expected, state = trained(straight)
    again, state_again = trained(killed)
    assert again == expected
    assert all(torch.equal(state[name], state_again[name]) for name in state)


def records(run: Path) -> list[Any]:
    log = run / "log.jsonl"
    if not log.exists():
        return []
    lines = log.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]
