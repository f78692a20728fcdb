"""What a run costs when it goes on with another number of GPUs, at another price."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from model.config import preset
from recipes.common.gpus import peak_flops
from recipes.engine.engine import Update
from recipes.engine.world import World
from recipes.reporting.leaderboard import line_of
from recipes.reporting.runs import load_runs
from recipes.reporting.scores import summarize
from recipes.training.bookkeeping import Bookkeeping
from recipes.training.checkpoints.manifest import progress_of
from recipes.training.progress import Progress
from recipes.training.throughput import ThroughputMeter

HOUR = 3600.0
COUNTS = {
    "sequences": 4,
    "real_tokens": 10**9,
    "padded_tokens": 10**9,
    "masked_tokens": 90,
    "token_pairs": 25_000,
}


@pytest.fixture
def clock(monkeypatch):
    """The hours of `clock.now` pass when a test says so; the device has nothing to wait for."""
    moved = SimpleNamespace(now=0.0)
    monkeypatch.setitem(ThroughputMeter.__init__.__kwdefaults__, "clock", lambda: moved.now * HOUR)
    for name in ("synchronize", "max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    return moved


def train(
    directory, clock, done: Progress, gpus: int, hours: float, price: float = 2.5, masked: int = 90
) -> tuple:
    """Train one step that takes so many hours; return the progress and the summary."""
    device = "NVIDIA H100 80GB HBM3"
    record = {"model": {"name": "rapidbert-base"}, "device": device, "world_size": gpus}
    directory.mkdir(exist_ok=True)
    record |= {"run": {"price_per_gpu_hour": price}, "identity": {}, "versions": {}}
    (directory / "config.json").write_text(json.dumps(record))
    run = SimpleNamespace(
        places=SimpleNamespace(output=directory),
        total_steps=100,
        budget_seconds=None,
        device_name=device,
        model=preset("rapidbert-base"),
        adjustable=SimpleNamespace(price_per_gpu_hour=price),
    )
    parallel = {"data_parallel_rank": 0, "data_parallel_size": gpus, "tensor_parallel_size": 1}
    world = World(rank=0, local_rank=0, world_size=gpus, device=torch.device("cuda"), **parallel)
    checkpoints, watchdog = SimpleNamespace(timings={}), SimpleNamespace()
    books = Bookkeeping(run, world, None, checkpoints, watchdog, done)
    # What other ranks would say: nothing is gathered.
    books.times = SimpleNamespace(step=lambda waited: None, window=dict)
    update = Update(applied=True, norm=torch.tensor(1.0))
    with books:
        clock.now += hours
        done = books.count(done, COUNTS, update, 0.0)
        counts = {**COUNTS, "masked_tokens": masked}
        books.log(done, counts, torch.tensor(5.0), 1e-3, update)
        return done, books.summary(done)


def test_a_run_that_goes_on_with_more_gpus_pays_each_hour_as_it_was(tmp_path, clock):
    """10 hours on 8 GPUs and one on 64 are 144 GPU-hours, not 11 hours on 64."""
    directory = tmp_path / "base"
    first, said = train(directory, clock, Progress(), 8, 10)
    assert (first.gpu_seconds, first.dollars) == pytest.approx((80 * HOUR, 200))
    assert "$200.00" in said
    done, said = train(directory, clock, first, 64, 1)
    assert (done.gpu_seconds, done.dollars) == pytest.approx((144 * HOUR, 360))
    assert "$360.00" in said
    # The utilisation is of the second start: one billion tokens in an hour on 64 GPUs.
    peak = peak_flops("NVIDIA H100 80GB HBM3")
    share = 6 * preset("rapidbert-base").parameters() * 1e9 / (HOUR * 64 * peak)
    assert f"MFU {share:.1%} since the restart" in said
    [run] = load_runs([directory])
    assert (run.gpu_hours, run.dollars) == pytest.approx((144, 360))
    one = {"task": "rte", "seed": 17, "score": 0.7, "metrics": {"accuracy": 0.7}, "notes": []}
    one |= {"stand_in": False, "checkpoint": "runs/base", "from_scratch": False, "seconds": 1.0}
    line = line_of("base", run, summarize("base", [one]), [one])
    assert (line["gpu_hours"], line["dollars"]) == pytest.approx((144, 360))


def test_steps_that_run_again_are_paid_twice_and_a_new_price_holds_from_now_on(tmp_path, clock):
    kept, _ = train(tmp_path / "base", clock, Progress(), 8, 1)
    train(tmp_path / "base", clock, kept, 8, 2)  # lost: no checkpoint came after it
    done, _ = train(tmp_path / "base", clock, kept, 4, 1, price=10.0)
    assert done.step == 2
    assert (done.gpu_seconds / HOUR, done.dollars) == pytest.approx((8 + 16 + 4, 60 + 40))


def test_a_step_in_which_nothing_is_masked_has_no_loss(tmp_path, clock, capsys):
    """Its sum of no losses had been logged as 0.0, the best loss there is."""
    first, _ = train(tmp_path / "base", clock, Progress(), 8, 1)
    train(tmp_path / "base", clock, first, 8, 1, masked=0)
    said = capsys.readouterr().out
    assert "step 2: none of its 1,000,000,000 tokens is masked, so it has no loss" in said
    assert "step   2/100  loss        -" in said
    [run] = load_runs([tmp_path / "base"])
    assert [step.get("loss/train") for step in run.steps] == [5.0, None]
    assert run.latest["step"] == 2 and run.last("loss/train") == 5.0


def test_a_checkpoint_of_an_earlier_version_was_made_by_the_gpus_that_wrote_it():
    manifest = {"progress": {"step": 3, "seconds": 100.0}, "facts": {"device": "NVIDIA H100"}}
    manifest["facts"]["world_size"] = "8"
    assert progress_of(manifest).gpu_seconds == 800
    manifest["facts"]["device"] = "cpu"
    assert progress_of(manifest).gpu_seconds == 0
    manifest = {
        "progress": {"seconds": 9.0, "gpu_seconds": 5.0},
        "facts": {"device": "NVIDIA H100"},
    }
    assert progress_of(manifest).gpu_seconds == 5
