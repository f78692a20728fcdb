"""Writing a checkpoint beside the training: every rank its file, rank 0 the manifest."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from recipes.common.errors import UserError
from recipes.common.files import PARTIAL, sync_directory, write_whole
from recipes.common.json_content import Json
from recipes.engine.world import World
from recipes.training.checkpoints.manifest import FORMAT, MANIFEST, file_name
from recipes.training.progress import Progress

POLL_SECONDS = 0.02
VISIBLE_SECONDS = 60
"""How long another node's file may take to show on a network file system."""


class Save(threading.Thread):
    """Writes one checkpoint beside the training.

    Args:
        final: the checkpoint's directory, once it is whole.
        token: of this start, in the name of the partial directory.
        tensors: this rank's pieces, in host memory.
        extents: where each piece begins, and how many elements it has.
        manifest: what the manifest says beside progress and files.
        publish: called on rank 0 with the whole partial directory and `final`; gives it its name.
        stall: seconds that training stood still for the copies.
    """

    def __init__(
        self,
        final: Path,
        token: str,
        world: World,
        progress: Progress,
        tensors: dict[str, Tensor],
        extents: dict[str, list[int]],
        manifest: Json,
        publish: Callable[[Path, Path], None],
        stall: float,
    ):
        super().__init__(name=f"checkpoint-{progress.step}", daemon=True)
        self.progress = progress
        self.fault: Exception | None = None
        self.timings: dict[str, float] = {}
        self.written = threading.Event()
        """This rank's file is there, or `fault` says why not."""
        self.all_written = threading.Event()
        """Every rank's file is there; a file that rank 0 does not see soon, it will never see."""
        self.published = threading.Event()
        """The whole checkpoint is there, or `fault` says why not; set on rank 0."""
        self.abandoned = threading.Event()
        """Another rank has failed, so there is nothing to wait for."""
        self._world = world
        self._tensors = tensors
        self._extents = extents
        self._manifest = manifest
        self._publish_at = publish
        self._stall = stall
        self._final = final
        self.partial = final.with_name(f"{final.name}.{token}{PARTIAL}")
        self.start()

    def run(self) -> None:
        world = self._world
        began = time.perf_counter()
        try:
            self._write(file_name(world))
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
        world = self._world
        descriptions = [
            self.partial / f"{file_name(world, rank)}.json" for rank in range(world.world_size)
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
            **self._manifest,
            "files": files,
        }
        write_whole(self.partial / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_directory(self.partial)
        self._bytes = sum(file["bytes"] for file in files.values())
        self._publish_at(self.partial, self._final)
        return True

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
