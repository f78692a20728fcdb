"""Resume state: a checkpoint is whole or it does not exist.

Every rank copies its pieces of the state (`state.py`) to host memory, which is all that
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

import json
import os
import secrets
import shutil
import socket
import time
from pathlib import Path

from model.weights import not_finite
from recipes.common.errors import SaveError, UserError, refused
from recipes.common.files import PARTIAL, sync_directory, write_whole
from recipes.common.json_content import Json
from recipes.engine.interface import Engine
from recipes.engine.world import World, agree, told_by_all, told_by_first
from recipes.training.checkpoints import state, writer
from recipes.training.checkpoints.manifest import (
    CHECKPOINTED,
    damage,
    key,
    progress_of,
    published,
    read_manifest,
)
from recipes.training.checkpoints.reader import PieceReader
from recipes.training.checkpoints.writer import Save
from recipes.training.progress import Progress

OWNER = "owner"


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
        facts: Json | None = None,
        identity: Json | None = None,
    ):
        self.directory = directory
        self.keep = keep
        self.keep_every = keep_every
        self.facts = facts or {}
        self.identity = identity
        self.timings: dict[str, float] = {}
        """Of the newest save: seconds that training stood still, seconds of writing, gigabytes."""
        self._world = world
        self._save: Save | None = None
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

    def save(self, engine: Engine, progress: Progress) -> None:
        """Begin a checkpoint; training may go on at once. Waits for the one before.

        Raises:
            SaveError: the one before could not be written; this one has then not been begun.
            UserError: the state holds numbers that are not finite; nothing goes on from them.
        """
        self.wait()
        began = time.perf_counter()
        pieces = list(state.pieces(engine, self._world))
        fault = not_finite(
            {f"{p.name} ({kind})": tensor for p in pieces for kind, tensor in p.tensors.items()}
        )
        what = f"{self.directory}: the checkpoint of step {progress.step}"
        agree(UserError(fault) if fault else None, what)
        copies = {
            key(kind, piece.name, piece.start): tensor.detach().to("cpu", copy=True)
            for piece in pieces
            for kind, tensor in piece.tensors.items()
        }
        extents = {piece.name: [piece.start, piece.numel] for piece in pieces}
        stall = time.perf_counter() - began
        self._save = Save(
            self.directory / f"step-{progress.step:09d}",
            self._token,
            self._world,
            progress,
            copies,
            extents,
            {"facts": self.facts, "identity": self.identity},
            self._publish,
            stall,
        )

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

    def resume(self, engine: Engine, *, expected: bool) -> Progress:
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
        manifest = read_manifest(self.directory / name)
        wrote, here = manifest["tensor_parallel_size"], self._world.tensor_parallel_size
        if wrote != here:
            raise UserError(
                f"{self.directory / name} was written by tensor-parallel groups of {wrote}, this "
                f"run has {here}: resume with --tensor-parallel {wrote}"
            )
        progress = progress_of(manifest)
        tensor_parallel_rank = self._world.rank % here
        reader = PieceReader(self.directory / name, manifest, tensor_parallel_rank)
        state.load(engine, reader, progress.step - progress.skipped)
        if self._world.rank == 0:
            _announce(manifest["facts"], self.facts)
        return progress

    def _take_over(self) -> str:
        """Become the run that writes here; returns this start's token."""
        fault: Exception | None = None
        token = secrets.token_hex(4)  # rank 0's counts
        if self._world.rank == 0:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                for leftover in self.directory.glob(f"step-*{PARTIAL}"):
                    shutil.rmtree(leftover, ignore_errors=True)
                owner = {"token": token, "host": socket.gethostname(), "pid": os.getpid()}
                write_whole(self.directory / OWNER, json.dumps(owner).encode())
            except OSError as error:
                fault = refused(error, error.filename or self.directory)
        agree(fault, str(self.directory))
        token = told_by_first(token)
        deadline = time.monotonic() + writer.VISIBLE_SECONDS
        while self._owner() != token and time.monotonic() < deadline:
            time.sleep(writer.POLL_SECONDS)
        if self._owner() != token:
            fault = UserError(
                f"{socket.gethostname()} does not see what rank 0 wrote there; --output must be on "
                "a file system that all nodes share"
            )
        agree(fault, str(self.directory))
        return token

    def _owner(self) -> str | None:
        try:
            return str(json.loads((self.directory / OWNER).read_bytes())["token"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _newest_whole(self) -> tuple[str | None, list[str], list[str]]:
        """Name of the newest whole checkpoint; what is wrong with newer ones; their names.

        Rank 0 names the candidates: ranks that see different files must not load different steps.
        All ranks share the reading.
        """
        # No other rank looks: what failed there would leave all of them waiting.
        seen = published(self.directory) if self._world.rank == 0 else []
        names = told_by_first([path.name for path in seen])
        faults: list[str] = []
        for number, name in enumerate(names):
            part = (self._world.rank, self._world.world_size)
            everyones = told_by_all(list(damage(self.directory / name, part)), self._world)
            found = list(dict.fromkeys(fault for faults in everyones for fault in faults))
            if not found:
                return name, faults, names[:number]
            faults += found
        return None, faults, names

    def _publish(self, partial: Path, final: Path) -> None:
        """Give a whole checkpoint its name, and drop those that are not kept."""
        if self._owner() != self._token:
            raise UserError("another start of this run has taken over; this one must end")
        if final.exists():  # saved at this step before, and found damaged on resuming
            shutil.rmtree(final)
            self._damaged.discard(final.name)
        os.replace(partial, final)
        sync_directory(final.parent)
        mark = final.parent.with_name(CHECKPOINTED)
        if not mark.exists():
            write_whole(mark, b"Without its checkpoints this run does not start again.\n")
        self._drop_old()

    def _drop_old(self) -> None:
        every, damaged = self.keep_every, self._damaged
        found = published(self.directory)
        whole = [path for path in found if path.name not in damaged]
        for path in found:
            kept = every and int(path.name.removeprefix("step-")) % every == 0
            # A damaged one, newer than what was resumed from, must not take a good one's place.
            if path.name in damaged or (path in whole[self.keep :] and not kept):
                shutil.rmtree(path, ignore_errors=True)


def _announce(before: Json, now: Json) -> None:
    """Say what is not as it was when the checkpoint was written."""
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            print(f"resuming with {name} {now.get(name)}, before {before.get(name)}", flush=True)
