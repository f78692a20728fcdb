"""`config.json`: the resolved run, written down before it starts and checked when it goes on."""

from __future__ import annotations

import functools
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recipes.common.errors import UserError
from recipes.common.files import write_whole
from recipes.common.locks import lock
from recipes.corpus.sequence_order import SequenceIndex
from recipes.engine.ds_config import NUMERIC_KEYS, precision
from recipes.engine.world import World, on_first_rank
from recipes.training.checkpoint import has_checkpointed, identities
from recipes.training.schedule import adamw_weight_decay

if TYPE_CHECKING:
    from recipes.pretrain import Run

CONFIG = "config.json"
PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy", "sentencepiece", "triton")

# Of a manifest's tokenizer, for the export; the last two are missing in older ones.
TOKENIZER_FACTS = (
    *("fingerprint", "vocab_size", "lower_case", "special_ids"),
    *("normalizer", "keeps_text"),
)

# Options that a resumed run may change: what they change is speed, or rounding at most. What the
# DeepSpeed JSON decides is compared by content.
FREE_OPTIONS = {
    "paper",  # what it sets is compared
    "output",
    "data",
    "deepspeed_config",
    "attention",
    "kernels",
    "recompute",
    "loader_workers",
    "log_every",
    "eval_every",
    "eval_sequences",
    "save_every",
    "export_at",
    "keep",
    "keep_every",
    "on_save_failure",
    "step_timeout",
    "price_per_gpu_hour",
    "dry_run",
    "gpus",
    "gpu_memory_gb",
    "local_rank",
}

# Parts of the identity that the records of older versions lack.
LATER_IDENTITY = {"train_indexes", "validation_shards"}

# BERT's own passes over its text; what more of them teach, nobody has measured for these models.
MANY_EPOCHS = 40

FOLLOWS_THE_CLOCK = (
    "learning rate and number of steps are functions of the clock: the data order and the masks of "
    "a repeated or resumed run are the same, its losses are not to the bit"
)


def start(settings: Run, world: World) -> bool:
    """Write `config.json`, or compare with the one that is there. Call on every rank.

    Returns:
        Whether the run has checkpointed before, so that a missing checkpoint is an error.

    Raises:
        UserError: the directory holds a run with other settings, all differences named.
    """
    return on_first_rank(lambda: _start(settings, world), settings.options.output)


def _start(settings: Run, world: World) -> bool:
    output = settings.options.output
    output.mkdir(parents=True, exist_ok=True)
    lock(output, "training into it")
    path = output / CONFIG
    record = _record(settings, world)
    _check_identity(output, record["identity"])
    print(describe(settings))
    write_whole(path, (json.dumps(record, indent=1, default=str) + "\n").encode())
    # A first checkpoint that a crash left unfinished is no progress to go on from.
    return has_checkpointed(output) or (output / "export").exists()


def _check_identity(output: Path, now: dict[str, Any]) -> None:
    """Compare with what is there: with `config.json`, and with every checkpoint, which it may have
    lost, or which may have been copied there.

    Raises:
        UserError: it is another run's, or nobody can say whose; all differences named.
    """
    now = _as_read(now)
    config = output / CONFIG
    recorded = _read(config)["identity"] if config.exists() else None
    changed = _differences(recorded, now) if recorded else []
    checkpoints = identities(output / "checkpoints")
    known = {path: identity for path, identity in checkpoints.items() if identity is not None}
    foreign = {path: found for path, each in known.items() if (found := _differences(each, now))}
    if changed:
        if known and not foreign:
            raise UserError(
                f"{config} is another run's; the checkpoints beside it have the settings given "
                "now. Move it away, it is written again:",
                *changed,
            )
        raise UserError(
            f"{output} holds a run with other settings; give another --output, or the same:",
            *changed,
        )
    for path, differences in foreign.items():
        raise UserError(
            f"{path} belongs to a run with other settings; give another --output, or the same"
            + (f"; {config} is not that run's" if recorded else "")
            + ":",
            *differences,
        )
    if unknown := [path for path in checkpoints if path not in known]:
        if recorded is None:
            raise UserError(
                f"{unknown[0]} does not say which settings it was trained with (an earlier "
                f"version wrote it), and {config} is missing. Bring it back, or move the run's "
                "directory away to start again from zero."
            )
        if unknown[0] == next(iter(checkpoints)):
            print(f"{unknown[0]}: written by an earlier version, its settings are in {CONFIG} only")
    elif known and recorded is None:
        print(f"{config} was missing; the checkpoints have the settings given now")


def identity(settings: Run, world: World) -> dict[str, Any]:
    """What must not change between the parts of one run, as a file gives it back."""
    return _as_read(_record(settings, world)["identity"])


def _as_read(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value, default=str))


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
        record["identity"], record["versions"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not the record of a run; move the directory away") from None
    return record


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{name}: was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not (name in LATER_IDENTITY and name not in before)
    ]


def _record(settings: Run, world: World) -> dict[str, Any]:
    options, plan = settings.options, settings.plan
    values = {name: _plain(value) for name, value in vars(options).items()}
    train = settings.train.manifest
    return {
        "model": {**settings.model.to_dict(), "parameters": settings.model.parameters()},
        "run": values,
        "deepspeed": settings.deepspeed,
        "precision": precision(settings.deepspeed),
        "adamw_weight_decay": adamw_weight_decay(options.weight_decay, options.learning_rate),
        "world_size": world.world_size,
        "device": settings.device_name,
        "versions": versions(),
        "git_revision": git_revision(),
        "requested_global_batch": plan.requested,
        "global_batch": plan.global_batch,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "total_steps": settings.total_steps,
        "sequences": settings.total_steps and settings.total_steps * plan.global_batch,
        **({} if settings.total_steps else {"follows_the_clock": FOLLOWS_THE_CLOCK}),
        "data": {
            "tokenizer_fingerprint": train["tokenizer"]["fingerprint"],
            "train_tokens": settings.train.tokens,
            "unigram_entropy_nats": settings.validation.unigram_entropy_nats,
        },
        # What must not change between the parts of one run.
        "identity": {
            **{name: value for name, value in values.items() if name not in FREE_OPTIONS},
            **{f"model.{name}": value for name, value in settings.model.to_dict().items()},
            "global_batch": plan.global_batch,
            **{f"deepspeed.{key}": settings.deepspeed.get(key) for key in NUMERIC_KEYS},
            "tokenizer": train["tokenizer"]["fingerprint"],
            "train_shards": [shard["bin_sha256"] for shard in train["splits"]["train"]["shards"]],
            "train_indexes": [shard["idx_sha256"] for shard in train["splits"]["train"]["shards"]],
            "validation_shards": [
                digest
                for shard in train["splits"]["validation"]["shards"]
                for digest in (shard["bin_sha256"], shard["idx_sha256"])
            ],
        },
    }


def facts(settings: Run, world: World) -> dict[str, str]:
    """What a checkpoint says about who wrote it, and a resume announces when it has changed."""
    stage = settings.deepspeed.get("zero_optimization", {}).get("stage", 0)
    return {
        **versions(),
        "git_revision": git_revision(),
        "device": settings.device_name,
        "world_size": str(world.world_size),
        "micro_batch": str(settings.plan.micro_batch),
        "ZeRO stage": str(stage),
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def versions() -> dict[str, str]:
    """Versions of what computes, and of the CUDA runtime and driver where there are any."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        nccl = torch.cuda.nccl.version()
        found["nccl"] = ".".join(map(str, nccl))
    return found


@functools.cache
def git_revision() -> str:
    """Commit of this repository, with `+changes` on a dirty tree; "unknown" outside of git.

    As it was at the first call: what is committed while a run goes on is not what it runs.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def export_facts(settings: Run) -> dict[str, Any]:
    """What an export says about its origin, beside the model."""
    return {
        "tokenizer": {
            key: value
            for key, value in settings.train.manifest["tokenizer"].items()
            if key in TOKENIZER_FACTS
        },
        "sequence_length": settings.options.sequence_length,
        "git_revision": git_revision(),
    }


def _nodes(gpus: int) -> str:
    nodes = -(-gpus // 8)
    return f"{nodes} nodes x 8 GPUs" if gpus % 8 == 0 else f"{nodes} nodes, {gpus} GPUs"


def _rounded(passes: float) -> str:
    return f"{passes:,.0f}" if passes >= 100 else f"{passes:.3g}"


def _many_epochs(passes: float, epoch: int, settings: Run) -> str:
    steps = max(1, MANY_EPOCHS * epoch // settings.plan.global_batch)
    return (
        f"the run reads the same text {_rounded(passes)} times, BERT's read it {MANY_EPOCHS} "
        f"times; --duration {steps * settings.plan.global_batch} would do that, in a new --output"
        + (", without --paper, which is for text like C4" if settings.options.paper else "")
    )


def describe(settings: Run) -> str:
    """The resolved run in a few lines."""
    options, plan, model = settings.options, settings.plan, settings.model
    stage = settings.deepspeed.get("zero_optimization", {}).get("stage", 0)
    decay = adamw_weight_decay(options.weight_decay, options.learning_rate)
    tokens = settings.train.tokens
    epoch = len(SequenceIndex(settings.train.shards, options.sequence_length, options.documents))
    passes = (settings.total_steps or 0) * plan.global_batch / epoch
    lines = {
        "model": f"{model.name}, {model.parameters() / 1e6:.1f}M parameters, "
        f"{options.attention} attention, {options.kernels} kernels"
        + (", layers recomputed" if options.recompute else ""),
        "data": f"{options.data}, {tokens:,} training tokens, {options.documents} documents, "
        f"{options.sequence_length} tokens per sequence",
        "batch": str(plan),
        "duration": f"{settings.total_steps:,} steps, "
        f"{settings.total_steps * plan.global_batch:,} sequences"
        if settings.total_steps
        else f"{options.minutes:g} minutes of training, as many steps as fit",
        "epochs": (f"{_rounded(passes)} of " if settings.total_steps else "each ")
        + f"{epoch:,} sequences, "
        + ("the training text once" if options.documents == "split" else "one of each document"),
        **({"look out": _many_epochs(passes, epoch, settings)} if passes > MANY_EPOCHS else {}),
        "optimizer": f"AdamW, peak lr {options.learning_rate:g}, betas {options.beta1:g} "
        f"{options.beta2:g}, eps {options.eps:g}, weight decay {decay:g} "
        f"(published convention: {options.weight_decay:g})",
        "precision": f"{precision(settings.deepspeed)}, ZeRO stage {stage}",
        **({"nodes": _nodes(options.gpus)} if options.gpus else {}),
        "device": f"{options.gpus} GPUs, not started"
        if options.gpus
        else f"{settings.device_name}, {plan.data_parallel * options.tensor_parallel} of them",
        "output": str(options.output),
    }
    return "\n".join(f"{name:>10}: {text}" for name, text in lines.items())
