"""The model of a finetuning: built on the start's weights, trained by steps, exported."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.classifier import RapidBertForSequenceClassification
from model.config import ModelOptions
from model.weights import scatter_state
from recipes.common.errors import UserError
from recipes.engine import engine as engines
from recipes.engine.batch_plan import BatchPlan
from recipes.engine.interface import AdamW, Engine
from recipes.engine.world import World
from recipes.tasks.classification_batches import ClassificationBatch
from recipes.tasks.glue_tasks import Task
from recipes.tasks.work import Finetuning, Metrics
from recipes.training.export import export
from recipes.training.provenance import git_revision
from recipes.training.schedule import adamw_weight_decay


def adamw(task: Task) -> AdamW:
    return {
        "learning_rate": task.learning_rate,
        "betas": task.betas,
        "eps": task.eps,
        "weight_decay": adamw_weight_decay(task.weight_decay, task.learning_rate),
    }


def build_model(work: Finetuning) -> nn.Module:
    """Build the model with the weights to start from; what these lack stays random.

    Raises:
        UserError: they are of other shapes than the model's; both are named.
    """
    choice = work.settings.kernel_choice
    model = work.kind.build(work, ModelOptions(choice.attention, choice.kernels))
    fresh = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    # A start that was finetuned on classes has a pooler, for which other heads have no place.
    start = {n: w for n, w in work.weights.items() if n in fresh or not n.startswith("pooler.")}
    try:
        scatter_state(model, {**fresh, **start})
    except ValueError as error:
        raise UserError(f"{work.settings.checkpoint}: {error}") from None
    return model


def build_classifier(work: Finetuning, options: ModelOptions) -> RapidBertForSequenceClassification:
    """A model of classes or of a score."""
    return RapidBertForSequenceClassification(work.config, work.task.outputs, options)


def build_engine(model: nn.Module, work: Finetuning, world: World) -> Engine:
    """Put the model into a DeepSpeed engine. A micro-batch is a whole step."""
    task, ranks = work.task, world.data_parallel_size
    plan = BatchPlan(task.batch_size, -(-task.batch_size // ranks), 1, ranks)
    return engines.build_engine(model, work.deepspeed, plan, world, **adamw(task))


def train_step(
    engine: Engine, batch: ClassificationBatch, learning_rate: float, world: World
) -> tuple[float, float]:
    """Train on one batch.

    Returns:
        Mean loss over the whole batch's examples (or labelled tokens), and the 2-norm of its
        gradient. Where that is not finite on any rank, no rank has changed its weights.
    """
    engines.set_learning_rate(engine, learning_rate)
    loss = engine(
        batch.input_ids,
        batch.sequence_offsets,
        batch.max_sequence_length,
        batch.labels,
        batch.token_type_ids,
        batch.sequence_keys,
    )
    # DeepSpeed averages over the ranks; this makes it the mean over the whole batch.
    engine.backward(loss * (world.data_parallel_size / batch.global_losses), scale_wrt_gas=False)
    update = engines.update_weights(engine)
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total.item() / batch.global_losses, float(update.norm)


def save_model(engine: Engine, work: Finetuning, metrics: Metrics) -> None:
    """Write `<task>-seed<k>/export`, for other tasks to start from and for use on new data.

    Call on every rank.

    Args:
        metrics: those of the last epoch, for the export to say.
    """
    facts = {
        "task": {
            "name": work.task.name,
            "kind": work.settings.kind,
            "labels": work.task.labels,
            "text_columns": work.task.text_columns,
            "max_length": work.settings.max_length,
            "metrics": metrics,
            "stand_in": work.data.stand_in,
            "seed": work.settings.seed,
            "train_examples": len(work.data.train),
            "from_scratch": work.settings.from_scratch,
            "checkpoint_sha256": work.identity["checkpoint_sha256"],
            **work.kind.facts(work),
        },
        "tokenizer": work.identity["tokenizer"],
        "git_revision": git_revision(),
    }

    def in_own_units(state: dict[str, Tensor]) -> None:
        """Make the head compute labels as they stand in the data: a reader of the export need not
        know on which scale they were learnt.
        """
        if work.scale is not None:
            weight, bias = state["classifier.weight"], state["classifier.bias"]
            state["classifier.weight"] = (weight.double() * work.scale.deviation).float()
            state["classifier.bias"] = torch.from_numpy(
                work.scale.own_units(bias.numpy()).astype(np.float32)
            )

    export(
        *(engine, work.config, work.tokenizer.path.parent, work.directory, facts),
        head=work.kind.head,
        finish=in_own_units,
    )
