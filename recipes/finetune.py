"""Finetune a pretrained encoder on one task with one seed, and write its scores down.

    deepspeed --quiet recipes/finetune.py --task rte --checkpoint runs/base --output runs/base/glue
    deepspeed --quiet recipes/finetune.py --train-file mine.csv --dev-file dev.csv \
        --text-columns text --label-column label --checkpoint runs/base --output runs/base/mine

Hyper-parameters come from the table of tasks (`tasks/glue_tasks.py`). The score is that of the last
epoch: no epoch and no seed is picked by looking at the development set.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before the imports below, which take seconds
    from recipes.common.launcher import end_with_launcher

    end_with_launcher()

import torch

from model.parallel import initialize_parallel, seed_dropout
from recipes.common.entry import run
from recipes.common.errors import Faults
from recipes.common.settings import parse
from recipes.engine.rendezvous import launched_world_size
from recipes.engine.world import World, initialize_world, on_first_rank, shut_down
from recipes.tasks.classifier import build_engine, build_model, save_model, train_step
from recipes.tasks.evaluation import cut_notes, encode_all, evaluate, predict_test
from recipes.tasks.finetune_log import FinetuneLog, by_set
from recipes.tasks.finetune_memory import check_memory
from recipes.tasks.finetune_result import (
    is_done,
    remove_earlier,
    take_directory,
    write_files,
    write_result,
)
from recipes.tasks.finetune_settings import Settings
from recipes.tasks.finetuning import resolve
from recipes.tasks.work import Finetuning
from recipes.training.console import shown_measure


def main(words: Sequence[str] | None = None) -> int:
    refused = Faults()
    settings = parse(Settings, words, faults=refused, manual=__doc__)
    work = resolve(settings, launched_world_size(), refused)
    if settings.dry_run:
        show(work)
        return 0
    if is_done(work):
        print(f"{work.result}: done already with these settings")
        return 0
    world = initialize_world()
    try:
        finetune(work, world)
    finally:
        shut_down()
    return 0


def show(work: Finetuning) -> None:
    """Build the model and read the data without training, and print what the settings come to."""
    try:
        initialize_parallel()
        build_model(work)
    finally:
        shut_down()
    train, dev = encode_all(work)
    notes = [*work.start_notes, *work.data.notes, *cut_notes(work, {"training": train, **dev})]
    print(json.dumps({**work.identity, "notes": notes}, indent=1))


def finetune(work: Finetuning, world: World) -> None:
    """Train, evaluate after every epoch, and write the result. Call on every rank."""
    began = time.perf_counter()
    seed, epochs, batch_size = work.settings.seed, work.task.epochs, work.task.batch_size
    train, dev = encode_all(work)
    check_memory(work, train, world)
    on_first_rank(lambda: take_directory(work), work.directory)
    notes = [*work.data.notes, *cut_notes(work, {"training": train, **dev})]
    if world.rank == 0:
        said = [*work.start_notes, *notes]
        print("".join(f"note: {note}\n" for note in said), end="", flush=True)
    torch.manual_seed(seed)
    engine = build_engine(build_model(work), work, world)
    total_steps = epochs * train.batches_per_epoch(batch_size)
    share = {"rank": world.data_parallel_rank, "world_size": world.data_parallel_size}
    with FinetuneLog(work, world, total_steps, began) as log:
        for epoch in range(epochs):
            for batch in train.training_batches(batch_size, seed=seed, epoch=epoch, **share):
                learning_rate = log.learning_rate
                seed_dropout(seed, log.step, 0, world.data_parallel_rank)
                loss, norm = train_step(engine, batch.to(world.device), learning_rate, world)
                log.trained(batch, learning_rate, loss, norm)
            metrics, predictions = evaluate(engine.module, work, dev, world)
            log.evaluated(metrics)
    if world.rank == 0:
        remove_earlier(work)
        write_files(work.predictions, predictions)
    if work.saves_model:
        save_model(engine, work, metrics)
    if work.settings.predict_test:
        predict_test(engine.module, work, world)
    if world.rank == 0:
        steps, seconds = log.step, log.seconds
        write_result(work, world, metrics, notes=notes, steps=steps, seconds=seconds)
        shown = ", ".join(
            f"{name} {shown_measure(value)}" for name, value in by_set(metrics).items()
        )
        print(f"{work.name}: {shown}, {steps} steps, {seconds:.0f} s, {work.result}")


if __name__ == "__main__":
    run(main)
