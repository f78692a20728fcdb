"""What a checkpoint is on the disk: its names, its manifest, and whether it is whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from recipes.common.files import sha256
from recipes.common.json_content import Json
from recipes.engine.world import World
from recipes.training.progress import Progress

MANIFEST = "manifest.json"
CHECKPOINTED = "checkpointed"
FORMAT = 2
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def has_checkpointed(run: Path) -> bool:
    """Whether the run in this directory has made a checkpoint, even one that is gone."""
    # The mark follows the checkpoint, and a crash may have come between the two.
    return (run / CHECKPOINTED).exists() or bool(published(run / "checkpoints"))


def published(directory: Path) -> list[Path]:
    """Checkpoints with a final name, newest first."""
    found = [path for path in directory.glob("step-*") if re.fullmatch(r"step-\d{9,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def identities(directory: Path) -> dict[Path, Json | None]:
    """The settings of the run that each checkpoint belongs to, newest first; damaged ones left out.

    None where a version has written it that did not record them.
    """
    found = {}
    for path in published(directory):
        with suppress(*UNREADABLE):
            found[path] = read_manifest(path).get("identity")
    return found


def damage(checkpoint: Path, part: tuple[int, int] = (0, 1)) -> Iterator[str]:
    """Everything that keeps `checkpoint` from being whole.

    Args:
        part: (k, n): of the files, look at k, k + n, k + 2n, ... only.
    """
    try:
        manifest = read_manifest(checkpoint)
    except UNREADABLE as error:
        yield f"{checkpoint / MANIFEST}: unreadable ({error})"
        return
    for name, facts in list(manifest["files"].items())[part[0] :: part[1]]:
        path = checkpoint / name
        try:
            if (size := path.stat().st_size) != facts["bytes"]:
                yield f"{path}: {size} bytes, the manifest has {facts['bytes']}"
            elif sha256(path) != facts["sha256"]:
                yield f"{path}: checksum differs from the manifest's"
        except OSError as error:
            yield f"{path}: {error.strerror}"


def read_manifest(checkpoint: Path) -> Json:
    manifest: Json = json.loads((checkpoint / MANIFEST).read_bytes())
    if manifest["format"] != FORMAT:
        raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
    progress_of(manifest)
    for facts in manifest["files"].values():
        facts["bytes"], facts["sha256"], facts["pieces"].items()
    manifest["facts"].items(), manifest["tensor_parallel_size"]
    return manifest


def progress_of(manifest: Mapping[str, Any]) -> Progress:
    """Return how far the run was that wrote a manifest.

    A version that did not count GPU-seconds is taken to have run on the GPUs that wrote it.
    """
    recorded, facts = manifest["progress"], manifest["facts"]
    if "gpu_seconds" not in recorded and facts.get("device", "cpu") != "cpu":
        gpus = int(facts.get("world_size", 0))
        recorded = {**recorded, "gpu_seconds": gpus * recorded.get("seconds", 0.0)}
    return Progress(**recorded)


def file_name(world: World, rank: int | None = None) -> str:
    """Return the name of a rank's file; this rank's if no other is given."""
    # Megatron's order: tensor-parallel ranks are neighbours.
    rank = world.rank if rank is None else rank
    data_parallel, tensor_parallel = divmod(rank, world.tensor_parallel_size)
    return f"tp{tensor_parallel:02}-dp{data_parallel:05}.safetensors"


def key(kind: str, name: str, start: int) -> str:
    """Return the name of a piece of a kind, which begins at element `start`, in a file."""
    return f"{kind}/{name}/{start}"
