"""Resume state: a checkpoint is whole or it does not exist.

Every rank copies its pieces of the state (`optimizer_state.py`) to host memory, which is all that
training waits for; a thread then writes them, as safetensors, into `step-N.<run>.partial`. When
every rank's file is there, rank 0 records sizes and checksums in a manifest and renames the
directory. Only a directory with its final name and a manifest that its files match is ever loaded,
the newest first. There is no pointer that could be stale: the name is the pointer.

A process of an earlier start that was thought dead (a stopped node that wakes up) cannot do harm:
every start has a token of its own, its partial directories carry the token, and rank 0 publishes
nothing when the `owner` file names another one.

Beside the directory lies `checkpointed` since the first checkpoint: where it is and no checkpoint
is, they were lost, and the run must not quietly begin again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from model.weights import not_finite
from recipes.common.errors import SaveError, UserError, refused
from recipes.common.files import PARTIAL, sha256, sync_directory, write_whole
from recipes.engine.world import World, agree
from recipes.training import optimizer_state
from recipes.training.progress import Progress

MANIFEST = "manifest.json"
OWNER = "owner"
CHECKPOINTED = "checkpointed"
FORMAT = 2
POLL_SECONDS = 0.02
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
VISIBLE_SECONDS = 60
"""How long another node's file may take to show on a network file system."""


class Checkpoints:
    """The checkpoints of one run. Make it, and call its methods, on every rank at the same time.

    Args:
        directory: of the checkpoints; all ranks must see the same one.
        keep: how many of the newest stay.
        keep_every: those of every so many steps stay as well; 0: none.
        facts: what wrote them (versions, world size, ...); a later start announces what differs.
        identity: the settings of the run they belong to, for `identities`.

    Raises:
        UserError: the directory cannot be written, or not every rank sees it.
    """

    def __init__(
        self,
        directory: Path,
        world: World,
        *,
        keep: int = 2,
        keep_every: int = 0,
        facts: dict[str, Any] | None = None,
        identity: dict[str, Any] | None = None,
    ):
        self.directory = directory
        self.keep = keep
        self.keep_every = keep_every
        self.facts = facts or {}
        self.identity = identity
        self.timings: dict[str, float] = {}
        """Of the newest save: seconds that training stood still, seconds of writing, bytes."""
        self._world = world
        self._save: _Save | None = None
        self._damaged: set[str] = set()
        self._token = self._take_over()

    @property
    def writing(self) -> bool:
        """Whether this rank still works on the checkpoint begun last."""
        return self._save is not None and self._save.is_alive()

    @property
    def failed(self) -> bool:
        """Whether this rank could not write its part; `wait` tells everybody."""
        return self._save is not None and self._save.fault is not None

    def save(self, engine: Any, progress: Progress) -> None:
        """Begin a checkpoint; training may go on at once. Waits for the one before.

        Raises:
            SaveError: the one before could not be written; this one has then not been begun.
            UserError: the state holds numbers that are not finite; nothing goes on from them.
        """
        self.wait()
        began = time.perf_counter()
        pieces = list(optimizer_state.pieces(engine, self._world))
        fault = not_finite(
            {f"{p.name} ({kind})": tensor for p in pieces for kind, tensor in p.tensors.items()}
        )
        what = f"{self.directory}: the checkpoint of step {progress.step}"
        agree(UserError(fault) if fault else None, what)
        copies = {
            _key(kind, piece.name, piece.start): tensor.detach().to("cpu", copy=True)
            for piece in pieces
            for kind, tensor in piece.tensors.items()
        }
        extents = {piece.name: [piece.start, piece.numel] for piece in pieces}
        stall = time.perf_counter() - began
        self._save = _Save(self, progress, copies, extents, stall)

    def wait(self) -> None:
        """Return when the checkpoint begun last is published.

        Raises:
            SaveError: it could not be written, with each rank's reason.
        """
        save, self._save = self._save, None
        if save is None:
            return
        what = f"{self.directory}: the checkpoint of step {save.progress.step}"
        save.written.wait()
        try:
            agree(save.fault, what)
            save.all_written.set()
            if self._world.rank == 0:
                save.published.wait()
            agree(save.fault, what)
        except UserError as error:
            save.abandoned.set()
            save.join()
            if self._world.rank == 0:  # every rank has finished writing into it
                shutil.rmtree(save.partial, ignore_errors=True)
            raise SaveError(*error.faults) from None
        save.join()
        if self._world.rank == 0:
            self.timings = save.timings

    def resume(self, engine: Any, *, expected: bool) -> Progress:
        """Load the newest whole checkpoint, or start at zero where there is none.

        Args:
            expected: the run has checkpointed before, so that finding none is an error and not a
                fresh start.

        Raises:
            UserError: checkpoints exist and none is whole; or the model, or the number of
                tensor-parallel ranks, is another.
        """
        name, faults, damaged = self._newest_whole()
        self._damaged = set(damaged)
        if self._world.rank == 0:
            for fault in faults:
                print(f"damaged checkpoint, going back to the one before: {fault}", flush=True)
        if name is None:
            if faults or expected:
                raise UserError(
                    f"{self.directory}: no whole checkpoint to resume from, but the run has made "
                    "progress. Bring its checkpoints back, or move the run's directory away to "
                    "start again from zero.",
                    *faults,
                )
            return Progress()
        manifest = _read_manifest(self.directory / name)
        wrote, here = manifest["tensor_parallel_size"], self._world.tensor_parallel_size
        if wrote != here:
            raise UserError(
                f"{self.directory / name} was written by tensor-parallel groups of {wrote}, this "
                f"run has {here}: resume with --tensor-parallel {wrote}"
            )
        progress = Progress(**manifest["progress"])
        tensor_parallel_rank = self._world.rank % here
        reader = PieceReader(self.directory / name, manifest, tensor_parallel_rank)
        optimizer_state.load(engine, reader, progress.step - progress.skipped)
        if self._world.rank == 0:
            _announce(manifest["facts"], self.facts)
        return progress

    def _take_over(self) -> str:
        """Become the run that writes here; returns this start's token."""
        fault: Exception | None = None
        token: list[Any] = [None]
        if self._world.rank == 0:
            token = [secrets.token_hex(4)]
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                for leftover in self.directory.glob(f"step-*{PARTIAL}"):
                    shutil.rmtree(leftover, ignore_errors=True)
                owner = {"token": token[0], "host": socket.gethostname(), "pid": os.getpid()}
                write_whole(self.directory / OWNER, json.dumps(owner).encode())
            except OSError as error:
                fault = refused(error, error.filename or self.directory)
        agree(fault, str(self.directory))
        dist.broadcast_object_list(token, src=0)
        deadline = time.monotonic() + VISIBLE_SECONDS
        while self._owner() != token[0] and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self._owner() != token[0]:
            fault = UserError(
                f"{socket.gethostname()} does not see what rank 0 wrote there; --output must be on "
                "a file system that all nodes share"
            )
        agree(fault, str(self.directory))
        return token[0]

    def _owner(self) -> str | None:
        try:
            return json.loads((self.directory / OWNER).read_bytes())["token"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _newest_whole(self) -> tuple[str | None, list[str], list[str]]:
        """Name of the newest whole checkpoint; what is wrong with newer ones; their names.

        Rank 0 names the candidates: ranks that see different files must not load different steps.
        All ranks share the reading.
        """
        names: list[Any] = [None]
        if self._world.rank == 0:
            names = [[path.name for path in published(self.directory)]]
        dist.broadcast_object_list(names, src=0)
        faults: list[str] = []
        for number, name in enumerate(names[0]):
            part = (self._world.rank, self._world.world_size)
            everyones: list[list[str]] = [[]] * self._world.world_size
            dist.all_gather_object(everyones, list(damage(self.directory / name, part)))
            found = list(dict.fromkeys(fault for faults in everyones for fault in faults))
            if not found:
                return name, faults, names[0][:number]
            faults += found
        return None, faults, names[0]


class _Save(threading.Thread):
    """Writes one checkpoint beside the training."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        progress: Progress,
        tensors: dict[str, Tensor],
        extents: dict[str, list[int]],
        stall: float,
    ):
        super().__init__(name=f"checkpoint-{progress.step}", daemon=True)
        self.progress = progress
        self.fault: Exception | None = None
        self.timings: dict[str, float] = {}
        self.written = threading.Event()
        """This rank's file is there, or `fault` says why not."""
        self.all_written = threading.Event()
        """So is every other rank's: what rank 0 does not see soon, it will never see."""
        self.published = threading.Event()
        """The whole checkpoint is there, or `fault` says why not; set on rank 0."""
        self.abandoned = threading.Event()
        """Another rank has failed, so there is nothing to wait for."""
        self._checkpoints = checkpoints
        self._tensors = tensors
        self._extents = extents
        self._stall = stall
        name = f"step-{progress.step:09d}"
        self._final = checkpoints.directory / name
        self.partial = self._final.with_name(f"{name}.{checkpoints._token}{PARTIAL}")
        self.start()

    def run(self) -> None:
        world = self._checkpoints._world
        began = time.perf_counter()
        try:
            self._write(_file_name(world))
        except Exception as error:  # a thread that just ended would leave all ranks waiting
            self._fail(error)
        self.written.set()
        if world.rank == 0:
            try:
                if self.fault is None and self._publish():
                    self._report(time.perf_counter() - began)
            except Exception as error:
                self._fail(error)
            self.published.set()

    def _fail(self, error: Exception) -> None:
        self.fault = error
        # The others learn of it between two steps; a long step should not hide it till then.
        print(f"{self._final}: could not be written: {error}", flush=True)

    def _write(self, name: str) -> None:
        self.partial.mkdir(exist_ok=True)
        parts = list(safetensors_parts(self._tensors))
        write_whole(self.partial / name, *parts)
        checksum = hashlib.sha256()  # of what was to be written, not of what is on the disk
        for part in parts:
            checksum.update(part)
        facts = {
            "bytes": sum(part.nbytes for part in parts),
            "sha256": checksum.hexdigest(),
            "pieces": self._extents,
        }
        self._tensors = {}
        write_whole(self.partial / f"{name}.json", json.dumps(facts).encode())

    def _publish(self) -> bool:
        """Wait for every rank's file, then give the checkpoint its name; False if abandoned."""
        world = self._checkpoints._world
        descriptions = [
            self.partial / f"{_file_name(world, rank)}.json" for rank in range(world.world_size)
        ]
        patience: float = VISIBLE_SECONDS
        for path in descriptions:
            while not path.exists():
                if self.abandoned.wait(POLL_SECONDS):
                    return False
                patience -= POLL_SECONDS if self.all_written.is_set() else 0
                if patience < 0:
                    missing = ", ".join(p.stem for p in descriptions if not p.exists())
                    raise UserError(
                        f"{socket.gethostname()} does not see {missing}, which other ranks wrote; "
                        "--output must be on a file system that all nodes share"
                    )
        files = {path.stem: json.loads(path.read_bytes()) for path in descriptions}
        for path in descriptions:
            path.unlink()
        manifest = {
            "format": FORMAT,
            "tensor_parallel_size": world.tensor_parallel_size,
            "progress": asdict(self.progress),
            "facts": self._checkpoints.facts,
            "identity": self._checkpoints.identity,
            "files": files,
        }
        write_whole(self.partial / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_directory(self.partial)
        self._bytes = sum(file["bytes"] for file in files.values())
        if self._checkpoints._owner() != self._checkpoints._token:
            raise UserError("another start of this run has taken over; this one must end")
        if self._final.exists():  # saved at this step before, and found damaged on resuming
            shutil.rmtree(self._final)
            self._checkpoints._damaged.discard(self._final.name)
        os.replace(self.partial, self._final)
        sync_directory(self._final.parent)
        mark = self._final.parent.with_name(CHECKPOINTED)
        if not mark.exists():
            write_whole(mark, b"Without its checkpoints this run does not start again.\n")
        self._drop_old()
        return True

    def _drop_old(self) -> None:
        checkpoints = self._checkpoints
        every, damaged = checkpoints.keep_every, checkpoints._damaged
        found = published(checkpoints.directory)
        whole = [path for path in found if path.name not in damaged]
        for path in found:
            kept = every and int(path.name.removeprefix("step-")) % every == 0
            # A damaged one, newer than what was resumed from, must not take a good one's place.
            if path.name in damaged or (path in whole[checkpoints.keep :] and not kept):
                shutil.rmtree(path, ignore_errors=True)

    def _report(self, seconds: float) -> None:
        self.timings = {
            "checkpoint/stall_seconds": self._stall,
            "checkpoint/write_seconds": seconds,
            "checkpoint/gigabytes": self._bytes / 1e9,
        }
        print(
            f"{self._final}: {self._bytes / 1e6:,.1f} MB in {seconds:.2f} s "
            f"({self._bytes / 1e6 / seconds:,.0f} MB/s), training stood still {self._stall:.3f} s",
            flush=True,
        )


def safetensors_parts(tensors: dict[str, Tensor]) -> Iterator[memoryview]:
    """A safetensors file of fp32 tensors in main memory: its header, then each tensor's own memory.

    The library's writer would copy everything once more, and stop all Python threads meanwhile.
    """
    header, position = {}, 0
    for name, tensor in tensors.items():
        end = position + tensor.nbytes
        offsets = [position, end]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous()
        yield tensor.numpy().data.cast("B")


class PieceReader:
    """Reads what one rank needs from a checkpoint, however many ranks wrote it.

    Args:
        checkpoint: directory of the checkpoint.
        manifest: its manifest.
        tensor_parallel_rank: whose parts of the parameters to read.
    """

    def __init__(self, checkpoint: Path, manifest: dict[str, Any], tensor_parallel_rank: int = 0):
        self._checkpoint = checkpoint
        self._files: dict[str, Any] = {}
        self._index: dict[str, list[tuple[int, int, str]]] = {}
        for file, facts in manifest["files"].items():
            if file.startswith(f"tp{tensor_parallel_rank:02}-"):
                for name, (start, numel) in facts["pieces"].items():
                    self._index.setdefault(name, []).append((start, numel, file))

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor:
        """Elements `start` to `start + numel` of a flattened parameter: fp32 [numel].

        Raises:
            UserError: the checkpoint does not have all of them.
        """
        end, position, parts = start + numel, start, []
        for piece_start, piece_numel, file in sorted(self._index.get(name, [])):
            first, last = max(position, piece_start), min(end, piece_start + piece_numel)
            if first == position and first < last:
                piece = self._open(file).get_slice(_key(kind, name, piece_start))
                parts.append(piece[first - piece_start : last - piece_start])
                position = last
        if position != end:
            raise UserError(
                f"{self._checkpoint}: has {position - start} of the {numel} elements of {name} "
                f"from {start} on; it is another model's"
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _open(self, file: str) -> Any:
        if file not in self._files:
            self._files[file] = safe_open(self._checkpoint / file, "pt")
        return self._files[file]


def has_checkpointed(run: Path) -> bool:
    """Whether the run in this directory has made a checkpoint, even one that is gone."""
    # The mark follows the checkpoint, and a crash may have come between the two.
    return (run / CHECKPOINTED).exists() or bool(published(run / "checkpoints"))


def published(directory: Path) -> list[Path]:
    """Checkpoints with a final name, newest first."""
    found = [path for path in directory.glob("step-*") if re.fullmatch(r"step-\d{9,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def identities(directory: Path) -> dict[Path, dict[str, Any] | None]:
    """The settings of the run that each checkpoint belongs to, newest first; damaged ones left out.

    None where a version has written it that did not record them.
    """
    found = {}
    for path in published(directory):
        with suppress(*_UNREADABLE):
            found[path] = _read_manifest(path).get("identity")
    return found


def damage(checkpoint: Path, part: tuple[int, int] = (0, 1)) -> Iterator[str]:
    """Everything that keeps `checkpoint` from being whole.

    Args:
        part: (k, n): of the files, look at k, k + n, k + 2n, ... only.
    """
    try:
        manifest = _read_manifest(checkpoint)
    except _UNREADABLE as error:
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


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    manifest = json.loads((checkpoint / MANIFEST).read_bytes())
    if manifest["format"] != FORMAT:
        raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
    Progress(**manifest["progress"])
    for facts in manifest["files"].values():
        facts["bytes"], facts["sha256"], facts["pieces"].items()
    manifest["facts"].items(), manifest["tensor_parallel_size"]
    return manifest


def _announce(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say what is not as it was when the checkpoint was written."""
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            print(f"resuming with {name} {now.get(name)}, before {before.get(name)}", flush=True)


def _file_name(world: World, rank: int | None = None) -> str:
    # Megatron's order: tensor-parallel ranks are neighbours.
    rank = world.rank if rank is None else rank
    data_parallel, tensor_parallel = divmod(rank, world.tensor_parallel_size)
    return f"tp{tensor_parallel:02}-dp{data_parallel:05}.safetensors"


def _key(kind: str, name: str, start: int) -> str:
    return f"{kind}/{name}/{start}"
