"""Resume state: a checkpoint is whole or it does not exist.

DeepSpeed writes every rank's shard into `step-N.partial`; rank 0 then records size and checksum
of every file in a manifest, brings all of it to the disk and renames the directory. Only a
directory with its final name and a manifest that its files match is ever loaded, the newest first.
DeepSpeed's own `latest` is not used: it is written before the other ranks have finished.

The resume state is pickle (DeepSpeed's format) and only for the run that wrote it. What leaves the
run is the export (`export.py`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from recipes.cli import UserError
from recipes.engine import World, agree
from recipes.whole_files import PARTIAL, sha256, sync_directory, write_whole

MANIFEST = "manifest.json"


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
    agree(fault, f"{directory}: the checkpoint")
    agree(_write_shard(engine, partial), f"{directory}: the checkpoint")
    try:
        if world.rank == 0:
            _publish(partial, final, progress, world)
            for old in _published(directory)[keep:]:
                shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        fault = error
    agree(fault, f"{directory}: the checkpoint")
    return final


def _write_shard(engine: Any, partial: Path) -> Exception | None:
    """Let DeepSpeed write this rank's part into `partial`; returns what went wrong.

    Its `save_checkpoint` has barriers inside. A rank that left it with an exception would leave the
    others waiting in them, so a failed write is kept until all are through.
    """
    fault: Exception | None = None
    writer = engine.checkpoint_engine
    write = writer.save

    def attempt(*args: Any, **kwargs: Any) -> None:
        nonlocal fault
        try:
            write(*args, **kwargs)
        except (OSError, RuntimeError) as error:  # torch's zip writer raises the latter
            fault = error

    writer.save = attempt
    # Conversion scripts, copied into every checkpoint, that look for the `latest` nobody writes.
    engine._copy_recovery_script = lambda directory: None
    try:
        engine.save_checkpoint(str(partial.parent), tag=partial.name, save_latest=False)
    finally:
        writer.save = write
    return fault


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
    sync_directory(partial)
    if final.exists():  # saved at this step before, and found damaged on resuming
        shutil.rmtree(final)
    os.replace(partial, final)
    sync_directory(final.parent)


def _fingerprint(path: Path, sync: bool = False) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path, sync=sync)}


def _published(directory: Path) -> list[Path]:
    """Directories with a final name, newest first."""
    return sorted(
        (path for path in directory.glob("step-*") if path.suffix != PARTIAL), reverse=True
    )


def damage(checkpoint: Path) -> Iterator[str]:
    """Everything that keeps `checkpoint` from being whole."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        sizes = {name: expected["bytes"] for name, expected in manifest["files"].items()}
        Progress(**manifest["progress"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{checkpoint / MANIFEST}: unreadable ({error})"
        return
    for name, expected_size in sizes.items():
        path = checkpoint / name
        try:
            size = path.stat().st_size
            if size != expected_size:
                yield f"{path}: {size} bytes, the manifest has {expected_size}"
            elif _fingerprint(path) != manifest["files"][name]:
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
