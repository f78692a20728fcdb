"""Masked-language-model pretraining of RapidBERT through DeepSpeed.

    deepspeed --quiet recipes/pretrain.py --model rapidbert-base --data data/c4 --output runs/base \
        --deepspeed_config ds_configs/base.json

Started again with the same --output, a run goes on from its newest whole checkpoint. Which
sequences make up a step, how they are masked and what dropout draws are functions of the seed and
the step, so an interrupted run and an uninterrupted one are the same run. With --minutes the
learning rate follows the clock, and is a function of the machine's speed.
"""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before the imports below, which take seconds
    from recipes.common.launcher import end_with_launcher
    from recipes.common.settings import explain
    from recipes.training import settings as options

    end_with_launcher()
    explain(options.Settings, __doc__)

import torch
from torch import Tensor

from model.masked_lm import RapidBertForMaskedLM
from recipes.common import entry
from recipes.common.errors import Faults, UserError
from recipes.common.settings import parse
from recipes.engine.cuda_graphs import CudaGraphs
from recipes.engine.engine import (
    build_engine,
    set_full_precision_parameters,
    set_learning_rate,
    update_weights,
)
from recipes.engine.interface import Engine
from recipes.engine.micro_steps import MicroSteps, why_not
from recipes.engine.rendezvous import launched_world_size
from recipes.engine.world import World, initialize_world, shut_down
from recipes.planning import memory
from recipes.training import run_record
from recipes.training.bookkeeping import Bookkeeping, due
from recipes.training.checkpoints.store import Checkpoints
from recipes.training.interruption import StopRequests, Watchdog, outlive_the_console
from recipes.training.progress import check_ending, on_skipped
from recipes.training.run import Run, resolve
from recipes.training.run_description import describe
from recipes.training.settings import Settings
from recipes.training.step import compute_gradients, fetch, training_batches

SHUTDOWN_SECONDS = 30


def main() -> int:
    faults = Faults()
    settings = parse(Settings, faults=faults, manual=__doc__)
    run = resolve(settings, settings.rehearsal.gpus or launched_world_size(), faults)
    needed, micro_batch = needed_memory(run), run.plan.micro_batch
    capacity = run.adjustable.gpu_memory_gb
    if settings.rehearsal.dry_run:
        print(describe(run))
        print(f"    memory: {needed}")
        room = 80.0 if capacity is None else capacity
        faults.attempt(lambda: run_record.check(run))
        faults.attempt(lambda: memory.check_fit(needed, micro_batch, room))
        faults.stop()
        return 0
    watchdog = Watchdog(run.adjustable.step_timeout)
    watchdog.pause()
    world = initialize_world(run.identity.tensor_parallel)
    try:
        memory.check_devices(needed, micro_batch, world, capacity)
        outlive_the_console()
        status = train(run, world, watchdog)
    except UserError:
        faulthandler.dump_traceback_later(SHUTDOWN_SECONDS, exit=True)  # others may not have failed
        shut_down()
        raise
    shut_down()
    watchdog.close()
    return status


def train(run: Run, world: World, watchdog: Watchdog) -> int:
    """Train until the run ends, or until it is asked to stop; returns the exit status."""
    output, seed, often = run.places.output, run.identity.seed, run.adjustable
    requests = StopRequests(output, world.rank)
    checkpointed = run_record.start(run, world)
    checkpoints = checkpoints_of(run, world)
    engine = build(run, world, start=not checkpointed)
    done = checkpoints.resume(engine, expected=checkpointed)
    micro_steps = micro_steps_of(run, world, engine)
    budget = run.budget(done.step, done.training_seconds)
    if world.rank == 0 and done.step:
        where = "finished already" if budget.spent else f"resumed at step {done.step}"
        print(f"{where}, {done.sequences:,} sequences so far")
    batches, micro = training_batches(run, world, done.step), run.plan.accumulation
    status = None
    with Bookkeeping(run, world, engine, checkpoints, watchdog, done) as books:
        coming = None if budget.spent else fetch(batches, micro, books.asked(requests), world)
        while coming and status is None:
            batch = coming
            books.begin_step(done)
            budget.begin_step(1e-6 * batch.asked["clock"])
            lr = budget.learning_rate(**run.schedule)
            set_learning_rate(engine, lr)
            loss = compute_gradients(
                micro_steps, batch, seed=seed, step=done.step, times=books.times
            )
            # While the device computes:
            coming = None if budget.spent else fetch(batches, micro, books.asked(requests), world)
            update = update_weights(engine)
            done = books.count(done, batch.counts, update, batch.waited)
            if not update.applied:
                on_skipped(done, float(loss), float(update.norm), world)

            last, shares = coming is None, budget.reached(often.export_at)
            if last or due(done.step, often.log_every):
                books.log(done, batch.counts, loss, lr, update)

            if last or shares or due(done.step, often.eval_every):
                books.evaluate(done, shares)

            asked = (coming or batch).asked
            status = None if last else requests.status(asked)
            ending = last or status is not None
            begin = ending or due(done.step, often.save_every)
            if begin or asked["save_failed"]:
                books.save(done, begin=begin, wait=ending, must=status is not None)
    watchdog.pause()
    if status is not None:
        requests.take_leave(status, done.step, run.total_steps)
        return status
    check_ending(done, books.evaluated.get("loss/eval", 0.0))
    exported = books.export(done, output)
    if world.rank == 0:
        print(f"{books.summary(done)}\n    exported to {exported}")
    return 0


def micro_steps_of(run: Run, world: World, engine: Engine) -> MicroSteps:
    """Return what does the passes, with CUDA graphs where they are wanted and possible."""

    def tell(line: str) -> None:
        print(f"rank {world.rank}: {line}", flush=True)

    use = run.adjustable.cuda_graphs
    if use == "off" or world.device.type != "cuda":
        return MicroSteps(engine)
    reason = why_not(run.model, run.deepspeed, run.identity.tensor_parallel)
    if reason:
        if world.rank == 0:
            tell(f"CUDA graphs: not used, since {reason}")
        return MicroSteps(engine)
    return MicroSteps(engine, use, CudaGraphs(), tell)


def checkpoints_of(run: Run, world: World) -> Checkpoints:
    """Return the checkpoints of the run, those to come and those that are there."""
    return Checkpoints(
        run.places.output / "checkpoints",
        world,
        keep=run.adjustable.keep,
        keep_every=run.adjustable.keep_every,
        facts=run_record.facts(run, world),
        identity=run_record.identity(run),
    )


def build(run: Run, world: World, *, start: bool) -> Engine:
    """Return the engine around a model with random weights, or, at the `start` of a run that begins
    from others, with those.
    """
    torch.manual_seed(run.identity.seed)
    model = RapidBertForMaskedLM(run.model, run.model_options)
    given: dict[str, Tensor] = {}
    if run.initial and start:
        run.initial.load_into(model, run.identity.seed)
        given = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    engine = build_engine(model, run.deepspeed, run.plan, world, **run.optimizer)
    if given:
        set_full_precision_parameters(engine, given)
    return engine


def needed_memory(run: Run) -> memory.MemoryEstimate:
    """Return what a GPU has to hold."""
    options = run.model_options
    return memory.estimate(
        run.model,
        run.deepspeed,
        run.plan,
        sequence_length=run.identity.sequence_length,
        mask_probability=run.mask_probability,
        tensor_parallel=run.identity.tensor_parallel,
        attention=options.attention,
        kernels=options.kernels,
        recompute=options.recompute,
    )


if __name__ == "__main__":
    entry.run(main)
