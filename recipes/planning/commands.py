"""The lines to paste that start the planned run: a DeepSpeed JSON where none fits, and the job."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.common.places import ROOT
from recipes.engine.batch_plan import BatchPlan, plan_batches
from recipes.engine.ds_config import read_config
from recipes.planning.forecast import Forecast
from recipes.planning.network import node_shape
from recipes.planning.settings import Question
from recipes.training import settings as training

BATCH_KEY = "train_batch_size"
MICRO_BATCH_KEY = "train_micro_batch_size_per_gpu"
JOBS = ("rapidbert-base", "rapidbert-large")
"""Models that a script in slurm/ trains unless it is told otherwise."""
GPUS_PER_NODE = 8
"""What the scripts in slurm/ ask for unless they are told otherwise."""


@dataclass(frozen=True)
class Config:
    """A DeepSpeed JSON that makes pretraining cut the batch as planned."""

    path: str
    """As seen from the repository's root."""
    made_by: str | None
    """The line that writes it, None where the file is there."""


def config_for(question: Question, plan: BatchPlan) -> Config:
    """Return the file that there is, if it is right, or a copy with other batch sizes."""
    path = question.config_path
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    limit, batch = question.deepspeed[MICRO_BATCH_KEY], question.global_batch
    same = read_config(path)[BATCH_KEY] == batch
    if same and plan_batches(batch, limit, plan.data_parallel) == plan:
        return Config(str(shown), None)
    other = Path("runs/plan") / f"{path.stem}-{batch}-{plan.micro_batch}.json"
    content = {**question.deepspeed, BATCH_KEY: batch, MICRO_BATCH_KEY: plan.micro_batch}
    line = f"mkdir -p {other.parent} && echo {shlex.quote(json.dumps(content))} > {other}"
    return Config(str(other), line)


def job_line(question: Question, plan: BatchPlan) -> str:
    """Return the sbatch line of the run on so many GPUs."""
    model, config = question.model.name, config_for(question, plan)
    script, settings = job_script(model), {}
    if model not in JOBS:
        settings["MODEL"] = model
    if config.path != f"ds_configs/{script.removeprefix('pretrain_')}.json":
        settings["DEEPSPEED_CONFIG"] = config.path
    if options := pretrain_options(question):
        settings["PRETRAIN_OPTIONS"] = shlex.join(options)
    name = [] if model in JOBS else [f"--job-name=pretrain-{model}"]
    shape = node_shape(plan.data_parallel, question.gpu.gpus_per_node)
    return sbatch_line(script, settings, *shape, *name)


def job_script(model: str) -> str:
    """Return the script in slurm/, without its ending, whose nodes and hours suit a model."""
    return "pretrain_large" if model.endswith(("large", "xl")) else "pretrain_base"


def sbatch_line(
    script: str, settings: Mapping[str, str], nodes: int, per_node: int, *words: str
) -> str:
    """Return the line that submits a script of slurm/.

    Args:
        settings: for the script, from the environment.
        per_node: GPUs, and processes, of each node.
        words: more options of sbatch.
    """
    shape = [f"--nodes={nodes}"]
    if per_node != GPUS_PER_NODE:
        shape += [f"--ntasks-per-node={per_node}", f"--gpus-per-node={per_node}"]
    before = "".join(f"{name}={shlex.quote(value)} " for name, value in settings.items())
    return f"{before}sbatch {' '.join((*shape, *words))} slurm/{script}.sh"


def pretrain_options(question: Question) -> list[str]:
    """Return what pretrain.py has to be told of the plan beyond its defaults."""
    run, words = question.settings.run, []
    if run.duration is not None and run.duration != training.DEFAULT_DURATION:
        words += ["--duration", run.duration]
    if run.tokens is not None:
        words += ["--duration", str(question.lengths[0].sequences)]
    if run.sequence_length != 128:
        words += ["--sequence-length", str(run.sequence_length)]
    if run.mask_probability != training.DEFAULT_MASK_PROBABILITY:
        words += ["--mask-probability", f"{run.mask_probability:g}"]
    if run.recompute:
        words.append("--recompute")
    price = question.gpu.dollars_per_hour
    if price is not None and price != 2.5:
        words += ["--price-per-gpu-hour", f"{price:g}"]
    return words


def lines_to_paste(question: Question, forecasts: Sequence[Forecast]) -> list[str]:
    """Return the lines for every number of GPUs; files that they need first."""
    made = dict.fromkeys(config_for(question, each.plan).made_by for each in forecasts)
    jobs = [(job_line(question, each.plan), each.gpus) for each in forecasts]
    width = max(len(line) for line, _ in jobs)
    return [
        *(line for line in made if line),
        *(f"{line:{width}}  # {gpus} GPU{'s' * (gpus > 1)}" for line, gpus in jobs),
    ]
