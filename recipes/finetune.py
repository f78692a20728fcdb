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
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from model.classifier import SequenceClassifier
from model.parallel import initialize_parallel, seed_dropout
from model.weights import scatter_state
from recipes import engine
from recipes.classification_batches import ClassificationBatch, EncodedExamples
from recipes.classification_data import Examples
from recipes.cli import UserError, run
from recipes.engine import BatchPlan, World
from recipes.export import export
from recipes.finetune_options import (
    WARMUP_FRACTION,
    Finetuning,
    checksum,
    is_done,
    other_settings,
    parse_arguments,
    resolve,
)
from recipes.glue_tasks import Task
from recipes.metrics import compute
from recipes.predictions import write_predictions
from recipes.run_log import LOG_NAME, RunLog, shown_measure
from recipes.run_record import git_revision, versions
from recipes.schedule import adamw_weight_decay, learning_rate
from recipes.whole_files import write_whole

EVALUATION_BATCH = 256


def main() -> int:
    options = parse_arguments()
    work = resolve(options, engine.launched_world_size())
    if options.dry_run:
        try:
            initialize_parallel()
            build_model(work)
        finally:
            engine.shut_down()
        print(json.dumps({**work.settings, "notes": work.data.notes}, indent=1))
        return 0
    if is_done(work):
        print(f"{work.result}: done already with these settings")
        return 0
    world = engine.initialize_world()
    try:
        finetune(work, world)
    finally:
        engine.shut_down()
    return 0


def finetune(work: Finetuning, world: World) -> None:
    """Train, evaluate, and write `<task>-seed<k>.json`. Call on every rank."""
    options, task = work.options, work.task
    began = time.perf_counter()
    if world.rank == 0:
        print("".join(f"note: {note}\n" for note in work.data.notes), end="", flush=True)
        if different := other_settings(work):
            print(
                f"{work.result}: was computed with other settings ({', '.join(different)} differ), "
                "now replaced",
                flush=True,
            )
        (work.directory / LOG_NAME).unlink(missing_ok=True)  # a finetuning never goes on
    train = encode(work, learnt(work))
    dev = {name: encode(work, examples) for name, examples in work.data.dev.items()}
    torch.manual_seed(options.seed)
    model = build_model(work)
    per_rank = -(-task.batch_size // world.data_parallel_size)
    plan = BatchPlan(task.batch_size, per_rank, 1, world.data_parallel_size)
    trainer = engine.build_engine(model, work.deepspeed, plan, world, **optimizer(task))
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
                    raise UserError(
                        f"{work.name}, step {step} of {total_steps}: loss {loss:.4g}, gradient "
                        f"norm {norm:.4g}; stopped, a lower --learning-rate is the usual cure"
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
        result = describe(work, world, metrics, step, seconds)
        write_whole(work.result, (json.dumps(result, indent=1) + "\n").encode())
        shown = ", ".join(f"{name} {shown_measure(value)}" for name, value in flat.items())
        print(f"{work.name}: {shown}, {step} steps, {seconds:.0f} s, {work.result}")


def build_model(work: Finetuning) -> SequenceClassifier:
    """The classifier with the weights to start from; what they lack keeps its random ones.

    Raises:
        UserError: they are of other shapes than the model's; both are named.
    """
    model = SequenceClassifier(
        work.config,
        work.task.outputs,
        attention_backend=work.options.attention,
        kernels=work.options.kernels,
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
    engine.set_learning_rate(trainer, lr)
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
    update = engine.step(trainer)
    assert update is not None  # one micro-batch is a step
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total.item() / batch.global_examples, float(update.norm)


@torch.no_grad()
def predict(model: SequenceClassifier, examples: EncodedExamples, world: World) -> np.ndarray:
    """Class index int64 [examples], or value float32 [examples]. Call on every rank."""
    model.eval()
    mine: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in examples.evaluation_batches(
        EVALUATION_BATCH, rank=world.data_parallel_rank, world_size=world.data_parallel_size
    ):
        batch = batch.to(world.device)
        logits = model.logits(
            batch.input_ids,
            batch.sequence_offsets,
            batch.max_sequence_length,
            batch.token_type_ids,
        )
        best = logits.squeeze(-1) if model.outputs == 1 else logits.argmax(-1)
        mine.append((batch.rows, best[: len(batch.rows)].cpu().numpy()))
    model.train()
    gathered: list[Any] = [None] * world.world_size
    dist.all_gather_object(gathered, mine)
    predictions = np.zeros(len(examples), np.float32 if model.outputs == 1 else np.int64)
    for rows, values in (pair for part in gathered for pair in part):
        predictions[rows] = values
    return predictions


def evaluate(
    model: SequenceClassifier, work: Finetuning, sets: Mapping[str, EncodedExamples], world: World
) -> dict[str, dict[str, float]]:
    """The task's metrics for each development set, by its name. Call on every rank."""
    metrics = {}
    for name, examples in sets.items():
        assert examples.labels is not None
        predictions = predict(model, examples, world)
        if work.scale is not None:
            predictions = work.scale.own_units(predictions)
        metrics[name] = compute(work.task.metrics, predictions, examples.labels)
    return metrics


def predict_test(model: SequenceClassifier, work: Finetuning, world: World) -> None:
    """Files for the GLUE server in `<task>-seed<k>/predictions`. Call on every rank."""
    for name, examples in work.data.test.items():
        predictions = predict(model, encode(work, examples), world)
        if world.rank == 0:
            path = write_predictions(work.predictions, work.task, name, predictions)
            print(f"test predictions: {path}")


def learnt(work: Finetuning) -> Examples:
    """The training set, its labels on the scale on which they are learnt."""
    train = work.data.train
    if work.scale is None:
        return train
    assert train.labels is not None
    return replace(train, labels=work.scale.learnt(train.labels))


def encode(work: Finetuning, examples: Examples) -> EncodedExamples:
    return EncodedExamples(
        work.tokenizer,
        examples.first,
        examples.second,
        examples.labels,
        max_length=work.options.max_length,
    )


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
        "notes": data.notes,
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
