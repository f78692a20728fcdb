"""Reading the pieces of a checkpoint, however many ranks wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from recipes.common.errors import UserError
from recipes.common.json_content import Json
from recipes.training.checkpoints.manifest import key


class PieceReader:
    """Reads what one rank needs from a checkpoint, however many ranks wrote it.

    Args:
        checkpoint: directory of the checkpoint.
        manifest: its manifest.
        tensor_parallel_rank: whose parts of the parameters to read.
    """

    def __init__(self, checkpoint: Path, manifest: Json, tensor_parallel_rank: int = 0):
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
                piece = self._open(file).get_slice(key(kind, name, piece_start))
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
