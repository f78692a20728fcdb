"""The lines that a start, and `--dry-run`, print about the run."""

from __future__ import annotations

from recipes.corpus.sequence_order import SequenceIndex
from recipes.engine.ds_config import precision
from recipes.training.run import Run

MANY_EPOCHS = 40
"""Times that BERT read its text; what more of them teach, nobody has measured for these models."""


def describe(run: Run) -> str:
    """Return the resolved run in a few lines."""
    identity, plan, model = run.identity, run.plan, run.model
    chosen = run.model_options
    gpus = run.settings.rehearsal.gpus
    stage = run.deepspeed.get("zero_optimization", {}).get("stage", 0)
    tokens = run.train.tokens
    epoch = len(SequenceIndex(run.train.shards, identity.sequence_length, run.documents))
    passes = (run.total_steps or 0) * plan.global_batch / epoch
    lines = {
        "model": f"{model.name}, {model.parameters() / 1e6:.1f}M parameters, "
        f"{chosen.attention} attention, {chosen.kernels} kernels"
        + (", layers recomputed" if chosen.recompute else ""),
        **({"start": str(run.initial)} if run.initial else {}),
        "data": f"{run.places.data}, {tokens:,} training tokens, {run.documents} documents, "
        f"{identity.sequence_length} tokens per sequence",
        "batch": str(plan),
        "duration": f"{run.total_steps:,} steps, {run.total_steps * plan.global_batch:,} sequences"
        if run.total_steps
        else f"{identity.minutes:g} minutes of training, as many steps as fit",
        "epochs": (f"{_rounded(passes)} of " if run.total_steps else "each ")
        + f"{epoch:,} sequences, "
        + ("the training text once" if run.documents == "split" else "one of each document"),
        **({"look out": _many_epochs(passes, epoch, run)} if passes > MANY_EPOCHS else {}),
        "optimizer": f"AdamW, peak lr {run.learning_rate:g}, betas {identity.beta1:g} "
        f"{identity.beta2:g}, eps {identity.eps:g}, weight decay {run.optimizer['weight_decay']:g} "
        f"(published convention: {identity.weight_decay:g})",
        "precision": f"{precision(run.deepspeed)}, ZeRO stage {stage}",
        **({"nodes": _nodes(gpus)} if gpus else {}),
        "device": f"{gpus} GPUs, not started"
        if gpus
        else f"{run.device_name}, {plan.data_parallel * identity.tensor_parallel} of them",
        "output": str(run.places.output),
    }
    return "\n".join(f"{name:>10}: {text}" for name, text in lines.items())


def _nodes(gpus: int) -> str:
    nodes = -(-gpus // 8)
    return f"{nodes} nodes x 8 GPUs" if gpus % 8 == 0 else f"{nodes} nodes, {gpus} GPUs"


def _rounded(passes: float) -> str:
    return f"{passes:,.0f}" if passes >= 100 else f"{passes:.3g}"


def _many_epochs(passes: float, epoch: int, run: Run) -> str:
    steps = max(1, MANY_EPOCHS * epoch // run.plan.global_batch)
    return (
        f"the run reads the same text {_rounded(passes)} times, BERT's read it {MANY_EPOCHS} "
        f"times; --duration {steps * run.plan.global_batch} would do that, in a new --output"
        + (", without --paper, which is for text like C4" if run.adjustable.paper else "")
    )
