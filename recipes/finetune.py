"""Finetune a pretrained encoder on one task with one seed, and write its scores down.

    deepspeed recipes/finetune.py --task rte --checkpoint runs/base --output runs/base/glue
    deepspeed recipes/finetune.py --train-file mine.csv --dev-file dev.csv --text-columns text \
        --label-column label --checkpoint runs/base --output runs/base/mine

Hyper-parameters come from the table of tasks (`glue_tasks.py`). The score is the last epoch's: no
epoch and no seed is picked by looking at the development set.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from model.attention import BACKENDS
from model.classifier import SequenceClassifier
from model.config import ModelConfig
from model.parallel import seed_dropout
from model.public_layout import from_public, scatter_state
from recipes import engine
from recipes.classification_batches import EncodedExamples
from recipes.classification_data import Examples, TaskData, load_files, load_task
from recipes.cli import ArgumentParser, Faults, UserError, run
from recipes.engine import BatchPlan, World
from recipes.export import export, export_directory, read_tensors
from recipes.glue_tasks import TASKS, Task, find_task
from recipes.metrics import compute
from recipes.predictions import write_predictions
from recipes.run_log import RunLog
from recipes.run_record import git_revision, versions
from recipes.schedule import adamw_weight_decay, learning_rate
from recipes.tokenizer import Tokenizer
from recipes.whole_files import sha256, write_whole

WARMUP_FRACTION = 0.06
EVALUATION_BATCH = 256
# For data of one's own, unless told: between the table's small and large tasks.
CUSTOM = dict(learning_rate=3e-5, weight_decay=3e-6, epochs=3, batch_size=32)


@dataclass(frozen=True)
class Finetuning:
    """Everything a finetuning is, resolved and checked."""

    options: Any
    task: Task
    data: TaskData
    config: ModelConfig
    weights: dict[str, Tensor]
    """Encoder, and the pooler of a finetuned start; empty from scratch."""
    tokenizer: Tokenizer
    deepspeed: dict[str, Any]
    settings: dict[str, Any]
    """What decides the result; a result with the same settings is not computed again."""

    @property
    def name(self) -> str:
        return f"{self.task.name}-seed{self.options.seed}"

    @property
    def result(self) -> Path:
        return self.options.output / f"{self.name}.json"


def main() -> int:
    options = parse_arguments()
    world_size = engine.launched_world_size()
    work = resolve(options, world_size)
    if options.dry_run:
        print(json.dumps(work.settings, indent=1))
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


def finetune(work: Finetuning, world: World) -> dict[str, Any]:
    """Train, evaluate, write the result; returns what `<task>-seed<k>.json` says."""
    options, task = work.options, work.task
    began = time.perf_counter()
    train = encode(work, work.data.train)
    torch.manual_seed(options.seed)
    model = SequenceClassifier(work.config, task.outputs, attention_backend=options.attention)
    start_from(model, work.weights)
    per_rank = -(-task.batch_size // world.data_parallel_size)
    plan = BatchPlan(task.batch_size, per_rank, 1, world.data_parallel_size)
    trainer = engine.build_engine(model, work.deepspeed, plan, world, **optimizer(task))
    total_steps = task.epochs * train.batches_per_epoch(task.batch_size)
    directory = options.output / work.name
    log = RunLog(directory, total_steps=total_steps, rank=world.rank, hparams=work.settings)
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
                batch = batch.to(world.device)
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
                scale = world.data_parallel_size / batch.global_examples
                trainer.backward(loss * scale, scale_wrt_gas=False)
                total = loss.detach().clone()
                dist.all_reduce(total)
                mean = total.item() / batch.global_examples
                if not math.isfinite(mean):
                    raise UserError(
                        f"{work.name}, step {step + 1}: the loss is {mean}; stopped before the "
                        "update"
                    )
                trainer.step()
                step += 1
                examples += batch.global_examples
                tokens += batch.global_tokens
                if step % options.log_every == 0 or step == total_steps:
                    now = time.perf_counter()
                    rate = (tokens - window[1]) / (now - window[0])
                    window = (now, tokens)
                    scalars = {
                        "loss/train": mean,
                        "optimizer/lr": lr,
                        "throughput/tokens_per_sec": rate,
                    }
                    log.log(step, examples, tokens, now - began, scalars)
            metrics, predictions = evaluate(trainer.module, work, work.data.dev, world)
            flat = {f"{s}/{m}": value for s, of in metrics.items() for m, value in of.items()}
            log.eval(step, examples, tokens, time.perf_counter() - began, flat)
        result = {
            "task": task.name,
            "seed": options.seed,
            "score": float(np.mean([of[task.score] for of in metrics.values()])),
            "score_metric": task.score,
            "metrics": metrics if len(metrics) > 1 else next(iter(metrics.values())),
            "stand_in": work.data.stand_in,
            **described(work, world),
            "train_examples": len(work.data.train.first),
            "dev_examples": sum(len(dev.first) for dev in work.data.dev.values()),
            "steps": step,
            "notes": work.data.notes,
        }
        log.summarize(work.settings, flat)
    finally:
        log.close()
    if options.save_model:
        save_model(trainer, work, directory)
    if options.predict_test:
        predict_test(trainer.module, work, world)
    seconds = time.perf_counter() - began
    result["seconds"] = seconds
    on_gpu = world.device.type == "cuda"
    hours = world.world_size * seconds / 3600
    result["dollars"] = options.price_per_gpu_hour * hours if on_gpu else 0.0
    if world.rank == 0:
        write_whole(work.result, (json.dumps(result, indent=1, default=str) + "\n").encode())
        shown = ", ".join(f"{name} {value:.4f}" for name, value in flat.items())
        print(f"{work.name}: {shown}, {step} steps, {seconds:.0f} s, {work.result}")
    return result


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
    model: SequenceClassifier, work: Finetuning, sets: dict[str, Examples], world: World
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Metrics and predictions for each labelled set, by its name."""
    predictions = {
        name: predict(model, encode(work, examples), world) for name, examples in sets.items()
    }
    metrics = {
        name: compute(work.task.metrics, predictions[name], examples.labels)
        for name, examples in sets.items()
        if examples.labels is not None
    }
    return metrics, predictions


def predict_test(model: SequenceClassifier, work: Finetuning, world: World) -> None:
    """Prediction files for the GLUE server, next to the result."""
    for split, examples in work.data.test.items():
        predictions = predict(model, encode(work, examples), world)
        if world.rank == 0:
            path = write_predictions(
                work.options.output / f"{work.name}-test", work.task, split, predictions
            )
            print(f"test predictions: {path}")


def encode(work: Finetuning, examples: Examples) -> EncodedExamples:
    return EncodedExamples(
        work.tokenizer,
        examples.first,
        examples.second,
        examples.labels,
        max_length=work.options.max_length,
    )


def start_from(model: SequenceClassifier, weights: dict[str, Tensor]) -> None:
    """Load what `weights` has; what it lacks keeps its random initialisation."""
    fresh = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    scatter_state(model, {**fresh, **weights})


def starting_weights(checkpoint: Path) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Encoder of an export (and the pooler of a finetuned one), and its `config.json`.

    A finetuned start keeps its pooler, as published; the classification head is always new.
    """
    config, public, description = read_tensors(checkpoint)
    try:
        weights = from_public(public, config, "none")
    except ValueError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    for part in ("weight", "bias"):
        if (pooler := public.get(f"bert.pooler.dense.{part}")) is not None:
            weights[f"pooler.{part}"] = pooler
    return config, weights, description


def save_model(trainer: Any, work: Finetuning, directory: Path) -> None:
    """`<task>-seed<k>/export`, from which other tasks can start. Call on every rank."""
    facts = {
        "task": {"name": work.task.name, "labels": work.task.labels},
        "tokenizer": work.settings["tokenizer"],
        "git_revision": git_revision(),
    }
    source = work.tokenizer.path.parent
    export(trainer, work.config, source, directory, facts, head="classifier")


def optimizer(task: Task) -> dict[str, Any]:
    return {
        "learning_rate": task.learning_rate,
        "betas": task.betas,
        "eps": task.eps,
        "weight_decay": adamw_weight_decay(task.weight_decay, task.learning_rate),
    }


def described(work: Finetuning, world: World) -> dict[str, Any]:
    """Where the result came from."""
    return {
        "checkpoint": str(work.options.checkpoint),
        "checkpoint_sha256": work.settings["checkpoint_sha256"],
        "from_scratch": work.options.from_scratch,
        "settings": work.settings,
        "adamw_weight_decay": optimizer(work.task)["weight_decay"],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "world_size": world.world_size,
        "versions": versions(),
        "git_revision": git_revision(),
        "tensorboard": str(work.options.output / work.name / "tensorboard"),
    }


def is_done(work: Finetuning) -> bool:
    """Whether the result is there, computed with the same settings."""
    try:
        settings = json.loads(work.result.read_bytes())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    model = work.options.output / work.name / "export" / "config.json"
    missing = work.options.save_model and not model.exists()
    return settings == work.settings and not missing and not work.options.predict_test


def resolve(options: Any, world_size: int) -> Finetuning:
    """Check everything that can be checked before training.

    Raises:
        UserError: all faults at once.
    """
    faults = Faults(_option_faults(options))
    collect = faults.attempt
    task = collect(lambda: find_task(options.task)) if options.train_file is None else None
    started = collect(lambda: starting_weights(options.checkpoint))
    tokenizer = started and collect(
        lambda: Tokenizer(export_directory(options.checkpoint) / "tokenizer.model")
    )
    default = "finetune.json" if torch.cuda.is_available() else "finetune_cpu.json"
    root = Path(__file__).resolve().parents[1]
    path = options.deepspeed_config or root / "ds_configs" / default
    deepspeed = collect(lambda: engine.read_config(path, batch_sizes=False))
    data = None
    if not faults:
        data = collect(lambda: _load(options, task))
    if tokenizer and started:
        expected = started[2].get("tokenizer", {}).get("fingerprint")
        if expected != tokenizer.fingerprint:
            faults.append(
                f"{tokenizer.path}: its fingerprint is {tokenizer.fingerprint}, the weights were "
                f"trained with {expected}"
            )
    faults.stop()
    assert started and tokenizer and data and deepspeed is not None
    config, weights, description = started
    if task is None:
        task = _custom_task(options, data)
    task = _with_overrides(task, options)
    if options.max_train is not None:
        data.train = _front(data.train, options.max_train)
    _check_fit(task, data, config, options, world_size)
    if options.from_scratch:
        weights = {}
    weights_path = export_directory(options.checkpoint) / "model.safetensors"
    settings = {
        "task": task.name,
        "data": str(options.data or options.train_file or "hub"),
        "checkpoint_sha256": sha256(weights_path),
        "from_scratch": options.from_scratch,
        "examples_sha256": data_checksum(data),
        "seed": options.seed,
        "learning_rate": task.learning_rate,
        "betas": list(task.betas),
        "eps": task.eps,
        "weight_decay": task.weight_decay,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "max_length": options.max_length,
        "warmup_fraction": WARMUP_FRACTION,
        "train_examples": len(data.train.first),
        "precision": engine.precision(deepspeed),
        "tokenizer": description["tokenizer"],
        "model": config.to_dict(),
    }
    return Finetuning(options, task, data, config, weights, tokenizer, deepspeed, settings)


def data_checksum(data: TaskData) -> str:
    """Of every text and label that is trained or scored on: other data are other work."""
    digest = hashlib.sha256()
    for name, examples in (("train", data.train), *sorted(data.dev.items())):
        digest.update(repr((name, examples.first, examples.second)).encode())
        digest.update(b"" if examples.labels is None else examples.labels.tobytes())
    return digest.hexdigest()


def _load(options: Any, task: Task | None) -> TaskData:
    if task is not None:
        return load_task(task, options.data, with_test=options.predict_test)
    return load_files(
        options.train_file,
        options.dev_file,
        text_columns=options.text_columns,
        label_column=options.label_column,
        regression=options.regression,
    )


def _custom_task(options: Any, data: TaskData) -> Task:
    metrics = ("spearman", "pearson") if options.regression else ("accuracy",)
    if not options.regression and len(data.labels or ()) == 2:
        metrics = ("accuracy", "f1")
    return Task(
        name=options.task,
        folder=options.task,
        text_columns=tuple(options.text_columns),
        labels=data.labels,
        metrics=metrics,
        train_count=len(data.train.first),
        dev_counts={name: len(dev.first) for name, dev in data.dev.items()},
        test_counts={},
        server_files={},
        **CUSTOM,  # type: ignore[arg-type]
    )


def _with_overrides(task: Task, options: Any) -> Task:
    names = ("learning_rate", "weight_decay", "epochs", "batch_size")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return replace(task, **given)


def _front(examples: Examples, count: int) -> Examples:
    second, labels = examples.second, examples.labels
    return Examples(
        examples.first[:count],
        None if second is None else second[:count],
        None if labels is None else labels[:count],
    )


def _check_fit(
    task: Task, data: TaskData, config: ModelConfig, options: Any, world_size: int
) -> None:
    faults = []
    if not data.train.first:
        faults.append(f"{task.name}: no training examples")
    if task.batch_size < world_size:
        faults.append(f"batch of {task.batch_size} examples on {world_size} processes: use fewer")
    if config.positions == "learned" and options.max_length > config.max_positions:
        faults.append(
            f"--max-length {options.max_length}: {config.name} has learned positions for "
            f"{config.max_positions} tokens at most"
        )
    if options.predict_test and not data.test:
        faults.append(f"--predict-test: no test set of {task.name} there")
    if faults:
        raise UserError(*faults)


def _option_faults(options: Any) -> list[str]:
    custom = options.train_file is not None or options.dev_file is not None
    checks: list[tuple[Any, str]] = [
        (
            custom or options.task in TASKS or options.task is not None,
            "give --task or --train-file",
        ),
        (options.max_length >= 8, f"--max-length {options.max_length}: at least 8 tokens"),
        (
            options.output.is_dir() or not options.output.exists(),
            f"--output {options.output}: is a file; name a directory",
        ),
        (0 <= options.seed < 2**63, f"--seed {options.seed}: 0 to 2**63 - 1"),
        (options.epochs is None or options.epochs >= 1, "--epochs: at least 1"),
        (options.batch_size is None or options.batch_size >= 1, "--batch-size: at least 1"),
        (options.learning_rate is None or options.learning_rate > 0, "--learning-rate: positive"),
        (options.weight_decay is None or options.weight_decay >= 0, "--weight-decay: not negative"),
        (options.max_train is None or options.max_train >= 1, "--max-train: at least 1"),
        (options.log_every >= 1, "--log-every: at least 1 step"),
        (options.price_per_gpu_hour >= 0, "--price-per-gpu-hour: not negative"),
    ]
    if custom:
        both = options.train_file is not None and options.dev_file is not None
        checks += [
            (both, "--train-file and --dev-file belong together"),
            (options.text_columns, "--text-columns: name one column, or two for pairs"),
            (len(options.text_columns or []) <= 2, "--text-columns: two at most"),
            (options.label_column, "--label-column: name the column of the labels"),
            (options.data is None, "--data is for GLUE tasks; these files are the data"),
            (not options.predict_test, "--predict-test is for GLUE tasks"),
            (
                options.task is None or options.task not in TASKS,
                f"--task {options.task} is a GLUE task: give your own data another name",
            ),
        ]
        options.task = options.task or "custom"
    if options.save_model is None:
        # Others start from MNLI's; and a model on one's own data is what one came for.
        options.save_model = custom or options.task == "mnli"
    return [message for holds, message in checks if not holds]


def parse_arguments(arguments: list[str] | None = None) -> Any:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--task", help=f"one of {', '.join(TASKS)}; with --train-file the name of the result")
    add("--checkpoint", type=Path, required=True, help="a run, a finetuned task, or an export/")
    add("--output", type=Path, required=True, help="directory of the results")
    add("--data", type=Path, help="directory with GLUE; the hub's nyu-mll/glue unless given")
    add("--train-file", type=Path, help="own data: .csv, .tsv or .jsonl, also .gz")
    add("--dev-file", type=Path, help="own data to evaluate on")
    add("--text-columns", nargs="+", help="own data: column of the text, two for pairs")
    add("--label-column", help="own data: column of the label")
    add("--regression", action="store_true", help="own data: labels are numbers to predict")
    add("--seed", type=int, default=17, help="of the new head, the order and dropout")
    add("--from-scratch", action="store_true", help="control: random weights, same architecture")
    add("--deepspeed-config", type=Path, help="DeepSpeed JSON; by device unless given")
    add("--max-length", type=int, default=256, help="tokens, special ones included")
    add("--learning-rate", type=float, help="peak, instead of the task's")
    add("--weight-decay", type=float, help="published convention, instead of the task's")
    add("--epochs", type=int, help="instead of the task's")
    add(
        "--batch-size", type=int, help="examples per step over all processes, instead of the task's"
    )
    add("--max-train", type=int, help="use so many training examples only")
    add("--attention", choices=tuple(BACKENDS), default="sdpa", help="attention backend")
    add(
        "--save-model",
        action="store_true",
        default=None,
        help="keep the finetuned model, as is always done for MNLI and for own data",
    )
    add("--predict-test", action="store_true", help="write prediction files for the GLUE server")
    add("--log-every", type=int, default=50, help="steps")
    add("--price-per-gpu-hour", type=float, default=2.5, help="dollars (appendix E)")
    add("--dry-run", action="store_true", help="print the resolved settings or faults, and exit")
    add("--local-rank", type=int, default=0, help="set by the deepspeed launcher; not used")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
