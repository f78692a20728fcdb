"""Finetune a pretrained encoder on one task with one seed, and write its scores down.

    deepspeed recipes/finetune.py --task rte --checkpoint runs/base --output runs/base/glue
    deepspeed recipes/finetune.py --train-file mine.csv --dev-file dev.csv --text-columns text \
        --label-column label --checkpoint runs/base --output runs/base/mine

Hyper-parameters come from the table of tasks (`glue_tasks.py`). The score is the last epoch's: no
epoch and no seed is picked by looking at the development set.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before the imports below, which take seconds
    from recipes.common.launcher import end_with_launcher

    end_with_launcher()

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelOptions
from model.parallel import initialize_parallel, seed_dropout
from model.weights import scatter_state
from recipes.common.entry import run
from recipes.common.errors import UserError
from recipes.common.files import write_whole
from recipes.common.locks import lock
from recipes.engine.batch_plan import BatchPlan
from recipes.engine.engine import build_engine, set_learning_rate, update_weights
from recipes.engine.rendezvous import launched_world_size
from recipes.engine.world import World, initialize_world, on_first_rank, shut_down
from recipes.tasks.classification_batches import ClassificationBatch
from recipes.tasks.evaluation import check_memory, cut_notes, encode_all, evaluate, predict_test
from recipes.tasks.finetune_options import (
    WARMUP_FRACTION,
    Finetuning,
    checksum,
    is_done,
    other_settings,
    parse_arguments,
    resolve,
)
from recipes.tasks.glue_tasks import Task
from recipes.training.export import export
from recipes.training.run_log import LOG_NAME, RunLog, shown_measure
from recipes.training.run_record import git_revision, versions
from recipes.training.schedule import adamw_weight_decay, learning_rate


def main() -> int:
    options = parse_arguments()
    work = resolve(options, launched_world_size())
    if options.dry_run:
        try:
            initialize_parallel()
            build_model(work)
        finally:
            shut_down()
        train, dev = encode_all(work)
        notes = [*work.start_notes, *work.data.notes, *cut_notes(work, {"training": train, **dev})]
        print(json.dumps({**work.settings, "notes": notes}, indent=1))
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


def finetune(work: Finetuning, world: World) -> None:
    """Train, evaluate, and write `<task>-seed<k>.json`. Call on every rank."""
    options, task = work.options, work.task
    began = time.perf_counter()
    train, dev = encode_all(work)
    check_memory(work, train, world)
    on_first_rank(lambda: take_directory(work), work.directory)
    notes = [*work.data.notes, *cut_notes(work, {"training": train, **dev})]
    if world.rank == 0:
        said = [*work.start_notes, *notes]
        print("".join(f"note: {note}\n" for note in said), end="", flush=True)
    torch.manual_seed(options.seed)
    model = build_model(work)
    per_rank = -(-task.batch_size // world.data_parallel_size)
    plan = BatchPlan(task.batch_size, per_rank, 1, world.data_parallel_size)
    trainer = build_engine(model, work.deepspeed, plan, world, **optimizer(task))
    total_steps = task.epochs * train.batches_per_epoch(task.batch_size)
    log = RunLog(work.directory, total_steps=total_steps, rank=world.rank, hparams=work.settings)
    step = examples = tokens = 0
    window = (time.perf_counter(), 0)
    try:
        for epoch in range(task.epochs):
            for batch in train.training_batches(
                task.batch_size,
                seed=options.seed,
                epoch=epoch,
                rank=world.data_parallel_rank,
                world_size=world.data_parallel_size,
            ):
                lr = learning_rate(
                    step,
                    total_steps,
                    peak=task.learning_rate,
                    warmup_fraction=WARMUP_FRACTION,
                    final_fraction=0.0,
                )
                seed_dropout(options.seed, step, 0, world.data_parallel_rank)
                loss, norm = train_step(trainer, batch.to(world.device), lr, world)
                step += 1
                examples += batch.global_examples
                tokens += batch.global_tokens
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    cure = "a lower --learning-rate is the usual cure"
                    if step == 1:
                        cure = (
                            f"no weight has changed yet, so look at those in {options.checkpoint}"
                        )
                    raise UserError(
                        f"{work.name}, step {step} of {total_steps}: loss {loss:.4g}, gradient "
                        f"norm {norm:.4g}; stopped, {cure}"
                    )
                if step % options.log_every == 0 or step == total_steps:
                    now = time.perf_counter()
                    rate = (tokens - window[1]) / (now - window[0])
                    window = (now, tokens)
                    scalars = {
                        "loss/train": loss,
                        "optimizer/lr": lr,
                        "optimizer/grad_norm": norm,
                        "throughput/tokens_per_sec": rate,
                    }
                    log.log(step, examples, tokens, now - began, scalars)
            metrics = evaluate(trainer.module, work, dev, world)
            flat = {f"{s}/{m}": value for s, of in metrics.items() for m, value in of.items()}
            log.eval(step, examples, tokens, time.perf_counter() - began, flat)
        log.summarize(work.settings, flat)
    finally:
        log.close()
    if world.rank == 0:
        remove_earlier(work)
    if work.saves_model:
        save_model(trainer, work)
    if options.predict_test:
        predict_test(trainer.module, work, world)
    if world.rank == 0:
        seconds = time.perf_counter() - began
        result = describe(work, world, metrics, notes, step, seconds)
        write_whole(work.result, (json.dumps(result, indent=1) + "\n").encode())
        shown = ", ".join(f"{name} {shown_measure(value)}" for name, value in flat.items())
        print(f"{work.name}: {shown}, {step} steps, {seconds:.0f} s, {work.result}")


def take_directory(work: Finetuning) -> None:
    """Keep other processes out of it, and prepare it for a finetuning, which never goes on."""
    work.directory.mkdir(parents=True, exist_ok=True)
    lock(work.directory, "finetuning into it")
    if different := other_settings(work):
        print(
            f"{work.result}: was computed with other settings ({', '.join(different)} differ), "
            "now replaced",
            flush=True,
        )
    (work.directory / LOG_NAME).unlink(missing_ok=True)


def build_model(work: Finetuning) -> RapidBertForSequenceClassification:
    """The classifier with the weights to start from; what they lack keeps its random ones.

    Raises:
        UserError: they are of other shapes than the model's; both are named.
    """
    model = RapidBertForSequenceClassification(
        work.config,
        work.task.outputs,
        ModelOptions(work.options.attention, work.options.kernels),
    )
    fresh = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    try:
        scatter_state(model, {**fresh, **work.weights})
    except ValueError as error:
        raise UserError(f"{work.options.checkpoint}: {error}") from None
    return model


def train_step(
    trainer: Any, batch: ClassificationBatch, lr: float, world: World
) -> tuple[float, float]:
    """One optimizer step.

    Returns:
        Mean loss over the whole batch's examples, and the 2-norm of its gradient. Where that is not
        finite on any rank, no rank has changed its weights.
    """
    set_learning_rate(trainer, lr)
    loss = trainer(
        batch.input_ids,
        batch.sequence_offsets,
        batch.max_sequence_length,
        batch.labels,
        batch.token_type_ids,
        batch.sequence_keys,
    )
    # DeepSpeed averages over the ranks; this makes it the mean over the whole batch.
    trainer.backward(loss * (world.data_parallel_size / batch.global_examples), scale_wrt_gas=False)
    update = update_weights(trainer)
    assert update is not None  # one micro-batch is a step
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total.item() / batch.global_examples, float(update.norm)


def remove_earlier(work: Finetuning) -> None:
    """A result of other settings goes with its model and predictions: they are not this one's."""
    work.result.unlink(missing_ok=True)
    for directory in (work.directory / "export", work.predictions):
        shutil.rmtree(directory, ignore_errors=True)


def save_model(trainer: Any, work: Finetuning) -> None:
    """`<task>-seed<k>/export`, from which other tasks can start. Call on every rank."""
    facts = {
        "task": {"name": work.task.name, "labels": work.task.labels},
        "tokenizer": work.settings["tokenizer"],
        "git_revision": git_revision(),
    }
    source = work.tokenizer.path.parent

    def in_own_units(state: dict[str, Tensor]) -> None:
        """What reads the export computes scores, and need not know how they were learnt."""
        if work.scale is not None:
            weight, bias = state["classifier.weight"], state["classifier.bias"]
            state["classifier.weight"] = (weight.double() * work.scale.deviation).float()
            state["classifier.bias"] = torch.from_numpy(
                work.scale.own_units(bias.numpy()).astype(np.float32)
            )

    export(
        trainer, work.config, source, work.directory, facts, head="classifier", finish=in_own_units
    )


def optimizer(task: Task) -> dict[str, Any]:
    return {
        "learning_rate": task.learning_rate,
        "betas": task.betas,
        "eps": task.eps,
        "weight_decay": adamw_weight_decay(task.weight_decay, task.learning_rate),
    }


def describe(
    work: Finetuning,
    world: World,
    metrics: dict[str, dict[str, float]],
    notes: list[str],
    steps: int,
    seconds: float,
) -> dict[str, Any]:
    """What the result's file says: scores, where they come from, time in seconds and cost."""
    options, task, data = work.options, work.task, work.data
    on_gpu = world.device.type == "cuda"
    gpu_hours = world.world_size * seconds / 3600 if on_gpu else 0.0
    return {
        "task": task.name,
        "seed": options.seed,
        "score": float(np.mean([of[task.score] for of in metrics.values()])),
        "score_metric": task.score,
        "metrics": metrics if len(metrics) > 1 else next(iter(metrics.values())),
        "stand_in": data.stand_in,
        "checkpoint": str(options.checkpoint),
        "checkpoint_sha256": work.settings["checkpoint_sha256"],
        "from_scratch": options.from_scratch,
        "data": str(options.data or options.train_file or "hub"),
        "settings": work.settings,
        "adamw_weight_decay": optimizer(task)["weight_decay"],
        "test_examples_sha256": checksum(data.test),
        "train_examples": len(data.train),
        "dev_examples": sum(len(dev) for dev in data.dev.values()),
        "steps": steps,
        "notes": notes,
        "seconds": seconds,
        "dollars": options.price_per_gpu_hour * gpu_hours,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "world_size": world.world_size,
        "attention": work.options.attention,
        "kernels": work.options.kernels,
        "versions": versions(),
        "git_revision": git_revision(),
        "tensorboard": str(work.directory / "tensorboard"),
    }


if __name__ == "__main__":
    run(main)
