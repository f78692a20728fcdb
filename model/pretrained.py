"""Loading an export: `config.json` and `model.safetensors`, of which nothing is ever unpickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .config import PLAIN, ModelConfig, ModelOptions
from .weights import Head, State, from_public, not_finite, scatter_state

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
OURS = "rapidbert"
"""Key of `config.json` under which what is ours stands; the others are transformers'."""


@dataclass(frozen=True)
class Export:
    """The contents of an export's directory."""

    directory: Path
    config: ModelConfig
    tensors: State
    """The weights under their public names (see `model.weights`)."""
    description: dict[str, Any]
    """What the run wrote down of itself in `config.json`: model, tokenizer, task, progress, ..."""

    def state(self, head: Head) -> State:
        """Return the weights under our names.

        Raises:
            ValueError: what the encoder or this head needs is missing or cannot be regrouped.
        """
        try:
            return from_public(self.tensors, self.config, head)
        except ValueError as error:
            raise ValueError(f"{self.directory}: {error}") from None

    def load_into(self, model: nn.Module, head: Head, prefix: str = "") -> None:
        """Load the weights into a model of this configuration, whole or of a tensor-parallel rank.

        Args:
            prefix: what names of the weights start with and names in `model` do not.

        Raises:
            ValueError: the weights do not fit; all faults are named.
        """
        state = {name.removeprefix(prefix): tensor for name, tensor in self.state(head).items()}
        try:
            scatter_state(model, state)
        except ValueError as error:
            raise ValueError(f"{self.directory}: {error}") from None


_DESCRIBED = {"model": dict, "tokenizer": dict, "task": dict, "sequence_length": int}
"""Types of those entries of a description that its readers take for granted."""
_CALLED = {dict: "an object", int: "a whole number"}


def read_description(directory: Path) -> dict[str, Any]:
    """Return what `config.json` says under our key; all of it where an older version wrote it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or not an export's.
    """
    whole = json.loads((directory / CONFIG).read_bytes())
    description = whole.get(OURS, whole) if isinstance(whole, dict) else None
    if not isinstance(description, dict) or "model" not in description:
        raise ValueError(f"{CONFIG} does not say which model the weights are")
    for name, kind in _DESCRIBED.items():
        if not isinstance(description.get(name, kind()), kind):
            raise ValueError(f"{CONFIG}: {name} is {description[name]!r}, not {_CALLED[kind]}")
    return description


def read_export(directory: str | Path) -> Export:
    """Read the configuration and the weights of an export.

    Raises:
        FileNotFoundError: `config.json` or `model.safetensors` is missing; all that are, are named.
        ValueError: one of them is damaged; all faults are named.
    """
    directory = Path(directory)
    missing = [name for name in (CONFIG, WEIGHTS) if not (directory / name).is_file()]
    if missing:
        inside = directory / "export"
        hint = f" (did you mean {inside}?)" if inside.is_dir() else ""
        raise FileNotFoundError(f"{directory}: no {' and no '.join(missing)} there{hint}")
    faults: list[str] = []
    description: dict[str, Any] = {}
    config: ModelConfig | None = None
    tensors: dict[str, Tensor] = {}
    try:
        description = read_description(directory)
        config = ModelConfig.from_dict(description["model"])
    except (ValueError, KeyError, TypeError) as error:
        faults.append(str(error))
    try:
        tensors = load_file(directory / WEIGHTS)
        if fault := not_finite(tensors):
            faults.append(f"{WEIGHTS}: {fault}")
    except (SafetensorError, ValueError) as error:
        faults.append(f"{WEIGHTS}: {error}")
    if config is None or faults:
        raise ValueError(f"{directory}: damaged export: {'; '.join(faults)}")
    return Export(directory, config, tensors, description)


class Exported(nn.Module):
    """Base of the six models of the library, which take their weights from an export."""

    HEAD: ClassVar[Head]
    PREFIX: ClassVar[str] = ""
    """What names in an export start with and names in the model do not."""

    @classmethod
    def from_pretrained(cls, directory: str | Path, options: ModelOptions = PLAIN) -> Self:
        """Load the model of an export, in evaluation mode. Another head than its own is left out.

        Raises:
            FileNotFoundError, ValueError: as `read_export`.
            ValueError: the weights are not those of the configuration, or the export is of a run
                that trained no head of this kind; all faults are named.
        """
        export = read_export(directory)
        classes = []
        if cls.HEAD in ("classifier", "token_classifier"):
            classes.append(export.state(cls.HEAD)["classifier.weight"].shape[0])
        model = cls(export.config, *classes, options)
        export.load_into(model, cls.HEAD, cls.PREFIX)
        return model.eval()
