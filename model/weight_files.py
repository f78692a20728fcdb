"""Tensors of a directory that others wrote: safetensors or `pytorch_model.bin`, whole or in parts.

A `.bin` file is a pickle. It is read by torch's reader of weights alone (`weights_only`), which
knows tensors and plain containers and refuses everything else before it could run.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .pretrained import WEIGHTS

PICKLED = "pytorch_model.bin"
INDEX = ".index.json"
SOURCES = (WEIGHTS, WEIGHTS + INDEX, PICKLED, PICKLED + INDEX)
"""Names that weights are looked for under; the first that is there is read."""

READ_AS_FLOAT = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_REFUSED_BY_READER = re.compile(r"unsupported (?:global|class|operand)[: ]*(?:GLOBAL )?(\S+)", re.I)


def read_weights(directory: Path, faults: list[str]) -> tuple[dict[str, Tensor], str]:
    """Read all tensors of a directory, on the CPU; numbers of lower precision become fp32.

    Args:
        faults: what is wrong is added here, each with the name of its file.

    Returns:
        The tensors by the names in the files, and the name of the file that they were found by.
        Both are empty where nothing could be read.
    """
    source = next((name for name in SOURCES if (directory / name).is_file()), "")
    if not source:
        faults.append(f"no weights there: none of {', '.join(SOURCES)}")
        return {}, ""
    tensors: dict[str, Tensor] = {}
    for name in _parts(directory / source, faults) if source.endswith(INDEX) else [source]:
        for key, tensor in _read_file(directory / name, faults).items():
            if key in tensors:
                faults.append(f"{name}: {key} is in another part as well")
            tensors[key] = tensor
    precise: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if tensor.dtype in READ_AS_FLOAT:
            precise[key] = tensor.float()
        elif not tensor.is_floating_point() and key.endswith(("position_ids", "token_type_ids")):
            precise[key] = tensor
        else:
            kind = str(tensor.dtype).removeprefix("torch.")
            faults.append(f"{source}: {key} holds {kind}; weights are read in fp32, fp16 and bf16")
    return precise, source


def _parts(index: Path, faults: list[str]) -> list[str]:
    """Return the files that an index names and that are there."""
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        names = sorted({str(name) for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        faults.append(f"{index.name}: not an index of weights (it needs a weight_map)")
        return []
    # A name with a folder in it could lead out of the directory.
    outside = [name for name in names if Path(name).name != name]
    faults += [f"{index.name}: {name!r} is not the name of a file beside it" for name in outside]
    inside = [name for name in names if name not in outside]
    missing = [name for name in inside if not (index.parent / name).is_file()]
    faults += [f"{name}: missing, {index.name} names it" for name in missing]
    return [name for name in inside if name not in missing]


def _read_file(path: Path, faults: list[str]) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            faults.append(f"{path.name}: damaged: {error}")
            return {}
    try:
        return _unpickle(path)
    except ValueError as error:
        faults.append(f"{path.name}: {error}")
        return {}


def _unpickle(path: Path) -> dict[str, Tensor]:
    """Read a `.bin` file without executing anything that it says.

    Raises:
        ValueError: it is damaged, holds more than tensors, or is no mapping of names to tensors.
    """
    archive = zipfile.is_zipfile(path)  # older files are one pickle, which cannot be mapped
    try:
        if archive:
            with zipfile.ZipFile(path) as members:
                if wrong := members.testzip():
                    raise ValueError(f"damaged: the checksum of {wrong} is another")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a pickle's protocol, before it is refused
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        refused = _REFUSED_BY_READER.search(str(error))
        what = f" ({refused[1]})" if refused else ""
        raise ValueError(
            f"holds more than tensors{what}: code may be hidden in it, so none of it was executed "
            "or read"
        ) from None
    except ValueError:
        raise
    # Damaged bytes are read as anything, and the reader meets them with anything.
    except Exception as error:
        said = str(error).partition(".")[0]
        raise ValueError(f"damaged: {type(error).__name__} {said}".rstrip()) from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise ValueError("not a mapping of names to tensors, as save_pretrained writes")
    return dict(found)
