"""Resume state and export: a checkpoint is whole or it does not exist.

DeepSpeed writes every rank's shard into `step-N.partial`; rank 0 then records size and checksum
of every file in a manifest, brings all of it to the disk and renames the directory. Only a
directory with its final name and a manifest that its files match is ever loaded, the newest first.
DeepSpeed's own `latest` is not used: it is written before the other ranks have finished.

The resume state is pickle (DeepSpeed's format) and only for the run that wrote it. What leaves the
run is the export: safetensors, configuration and tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.config import ModelConfig
from model.masked_lm import MaskedLM
from model.public_layout import from_public, gather_state, scatter_state, to_public
from recipes.cli import UserError
from recipes.engine import World, full_precision_parameters
from recipes.run_log import write_whole

MANIFEST = "manifest.json"
PARTIAL = ".partial"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.vocab")


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Optimizer steps done."""
    sequences: int = 0
    """Sequences trained on, over all ranks."""
    tokens: int = 0
    """Real tokens trained on, over all ranks."""
    seconds: float = 0.0
    """Wall time up to here, earlier runs included."""


def save(engine: Any, directory: Path, progress: Progress, world: World, keep: int) -> Path:
    """Write a checkpoint and drop all but the newest `keep`. Call on every rank.

    Raises:
        UserError: the file system refused (full, read-only); older checkpoints are untouched.
    """
    final = directory / f"step-{progress.step:09d}"
    partial = final.with_name(final.name + PARTIAL)
    fault: Exception | None = None
    try:
        if world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
    except OSError as error:
        fault = error
    _agree(fault, world, directory)
    try:
        engine.save_checkpoint(str(directory), tag=partial.name, save_latest=False)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as the latter
        fault = error
    _agree(fault, world, directory)
    try:
        if world.rank == 0:
            _publish(partial, final, progress, world)
            for old in _published(directory)[keep:]:
                shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        fault = error
    _agree(fault, world, directory)
    return final


def _agree(fault: Exception | None, world: World, directory: Path) -> None:
    """Raise on every rank when one failed, so that none waits for another for ever."""
    faults: list[str | None] = [None] * world.world_size
    dist.all_gather_object(faults, str(fault) if fault else None)
    named = [f"rank {rank}: {text}" for rank, text in enumerate(faults) if text]
    if named:
        raise UserError(
            *(f"{directory}: the checkpoint could not be written: {text}" for text in named)
        )


def _publish(partial: Path, final: Path, progress: Progress, world: World) -> None:
    files = {
        str(path.relative_to(partial)): _fingerprint(path, sync=True)
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "format": 1,
        "world_size": world.world_size,
        "tensor_parallel_size": world.tensor_parallel_size,
        "progress": progress.__dict__,
        "files": files,
    }
    write_whole(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
    _sync_directory(partial)
    if final.exists():  # saved at this step before, and found damaged on resuming
        shutil.rmtree(final)
    os.replace(partial, final)
    _sync_directory(final.parent)


def _fingerprint(path: Path, sync: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _published(directory: Path) -> list[Path]:
    """Directories with a final name, newest first."""
    return sorted(
        (path for path in directory.glob("step-*") if path.suffix != PARTIAL), reverse=True
    )


def damage(checkpoint: Path) -> Iterator[str]:
    """Everything that keeps `checkpoint` from being whole."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{checkpoint / MANIFEST}: unreadable ({error})"
        return
    for name, expected in files:
        path = checkpoint / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                yield f"{path}: {size} bytes, the manifest has {expected['bytes']}"
            elif _fingerprint(path) != expected:
                yield f"{path}: checksum differs from the manifest's"
        except OSError as error:
            yield f"{path}: {error.strerror}"


def resume(engine: Any, directory: Path, world: World, *, expected: bool) -> Progress:
    """Load the newest whole checkpoint, or start at zero where there is none. Call on every rank.

    Args:
        expected: the run has made progress before, so that finding no checkpoint at all is an
            error and not a fresh start.

    Raises:
        UserError: checkpoints exist and none is whole; or another world size wrote them.
    """
    # Rank 0 decides for all: two ranks that see different files must not load different steps.
    choice: list[Any] = [None]
    if world.rank == 0:
        choice = [_choose(directory)]
    dist.broadcast_object_list(choice, src=0)
    found, faults = choice[0]
    if world.rank == 0:
        for fault in faults:
            print(f"damaged checkpoint, going back to the one before: {fault}", flush=True)
    if found is None:
        if faults or expected:
            raise UserError(
                f"{directory}: no whole checkpoint to resume from, but the run has made progress. "
                "Move the run's directory away to start again from zero.",
                *faults,
            )
        return Progress()
    manifest = json.loads((directory / found / MANIFEST).read_bytes())
    wrote = (manifest["world_size"], manifest["tensor_parallel_size"])
    if wrote != (world.world_size, world.tensor_parallel_size):
        raise UserError(
            f"{directory / found} was written by {wrote[0]} processes (tensor-parallel "
            f"{wrote[1]}), this run has {world.world_size} (tensor-parallel "
            f"{world.tensor_parallel_size}): resume with {wrote[0]}."
        )
    loaded, _ = engine.load_checkpoint(str(directory), tag=found)
    if loaded is None:
        raise UserError(f"{directory / found}: DeepSpeed could not load it (its log says why)")
    return Progress(**manifest["progress"])


def _choose(directory: Path) -> tuple[str | None, list[str]]:
    """Name of the newest whole checkpoint, and what is wrong with newer ones."""
    faults: list[str] = []
    for candidate in _published(directory):
        found = list(damage(candidate))
        if not found:
            return candidate.name, faults
        faults += found
    return None, faults


def export(engine: Any, config: ModelConfig, data_dir: Path, output: Path, facts: dict) -> Path:
    """Write `output/export`: weights under their public names, configuration, tokenizer.

    Weights are the optimizer's fp32 master weights. Call on every rank.

    Args:
        facts: what else `config.json` should say (tokenizer fingerprint, sequence length).
    """
    precise = dict(full_precision_parameters(engine))
    state = gather_state(engine.module, lambda name, parameter: precise[name])
    final = output / "export"
    if dist.get_rank() == 0:
        write_export(final, state, config, data_dir, facts)
    dist.barrier()
    return final


def write_export(
    final: Path, state: dict[str, Tensor], config: ModelConfig, tokenizer_dir: Path, facts: dict
) -> None:
    """Publish whole weights (as `MaskedLM` names them) with configuration and tokenizer."""
    partial = final.with_name(final.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    public = {name: value.contiguous() for name, value in to_public(state, config).items()}
    save_file(public, str(partial / "model.safetensors"), metadata={"format": "pt"})
    description = {"model": config.to_dict(), **facts}
    write_whole(partial / "config.json", json.dumps(description, indent=1).encode())
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_dir / name, partial / name)
    for path in partial.iterdir():
        _fingerprint(path, sync=True)
    previous = final.with_name(final.name + ".previous")
    shutil.rmtree(previous, ignore_errors=True)
    if final.exists():
        os.replace(final, previous)
    os.replace(partial, final)
    _sync_directory(final.parent)
    shutil.rmtree(previous, ignore_errors=True)


def export_directory(checkpoint: Path) -> Path:
    """The export of a run's directory; any other directory is taken for an export itself."""
    return checkpoint / "export" if (checkpoint / "export").is_dir() else checkpoint


def read_export(checkpoint: Path) -> tuple[ModelConfig, dict[str, Tensor], dict]:
    """Configuration, weights (as `MaskedLM` names them) and `config.json` of an export.

    Args:
        checkpoint: an export, or the directory of a run that has one.

    Raises:
        UserError: no export there, or a damaged one.
    """
    directory = export_directory(checkpoint)
    try:
        description = json.loads((directory / "config.json").read_bytes())
        config = ModelConfig.from_dict(description["model"])
        state = from_public(load_file(directory / "model.safetensors"), config)
    except FileNotFoundError as error:
        raise UserError(
            f"{checkpoint}: no export there ({error.filename} is missing); a run writes its "
            "export/ when it has finished"
        ) from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory}: damaged export: {error}") from None
    return config, state, description


def load_model(checkpoint: Path, attention_backend: str = "reference") -> MaskedLM:
    """The exported model in evaluation mode. Raises `UserError` as `read_export` does."""
    config, state, _ = read_export(checkpoint)
    model = MaskedLM(config, attention_backend)
    load_weights(model, state)
    return model.eval()


def load_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole weights into this rank's part of the model."""
    try:
        scatter_state(model, state)
    except ValueError as error:
        raise UserError(str(error)) from None
