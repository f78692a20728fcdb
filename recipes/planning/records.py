"""What `benchmark.py throughput` has measured of a model on a GPU."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from recipes.common.errors import UserError
from recipes.common.json_content import Json


@dataclass(frozen=True)
class MeasuredRow:
    """Steps of one micro-batch and global batch on one GPU."""

    micro_batch: int
    accumulation: int
    seconds: float
    """Median of a step."""
    fastest: float
    slowest: float
    tokens_per_sequence: float
    """Real tokens, without padding."""


@dataclass(frozen=True)
class MeasuredModel:
    """What a record of `benchmark.py throughput` says of one model."""

    path: Path
    rows: tuple[MeasuredRow, ...]
    largest_micro_batch: int | None
    """Sequences that fitted, of twice as many did not."""


def find_record(
    given: Path | None, usual: Path, device: str, model: str, length: int, recompute: bool
) -> MeasuredModel | None:
    """Return the record of this GPU, model, sequence length and way of computing.

    Args:
        given: a record, or a directory of records; None for `usual`.
        usual: directory of records that need not be there.

    Returns:
        None where a directory has none.

    Raises:
        UserError: a file is no such record, or the one that was given is of something else.
    """
    if given is not None and not given.exists():
        raise UserError(f"--record {given}: no such file or directory")
    if given is not None and given.is_file():
        content = _read(given)
        refusals = _why_not(content, device, model, length, recompute)
        if refusals:
            raise UserError(f"--record {given}: {'; '.join(refusals)}")
        return _of_model(given, content, model)
    for path in sorted((given or usual).glob("throughput*.json")):
        content = _read(path)
        if not _why_not(content, device, model, length, recompute):
            return _of_model(path, content, model)
    return None


def _read(path: Path) -> Json:
    try:
        record: Json = json.loads(path.read_bytes())
        record["device"], record["settings"]["sequence_length"]
        record["settings"]["setups"].values()
        for row in record["rows"]:
            row["model"], row["micro_batch"], row["global_batch"]
            row["step_seconds"]["median"], row["sequences_per_step"], row["real_tokens_per_step"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no record of benchmark.py throughput ({error!r})") from None
    return record


def _why_not(record: Json, device: str, model: str, length: int, recompute: bool) -> list[str]:
    """Say in what the record differs from what is asked."""
    settings = record["settings"]
    found = []
    if record["device"] != device:
        found.append(f"is of {record['device']}, not of {device}")
    if settings["sequence_length"] != length:
        found.append(f"has sequences of {settings['sequence_length']} tokens, not of {length}")
    if not any(row["model"] == model for row in record["rows"]):
        found.append(f"has no row of {model}")
    elif settings["setups"].get(model, {}).get("recompute") != recompute:
        found.append(f"was measured {'without' if recompute else 'with'} --recompute")
    return found


def _of_model(path: Path, record: Json, model: str) -> MeasuredModel:
    rows = []
    for row in record["rows"]:
        if row["model"] == model:
            times = row["step_seconds"]
            rows.append(
                MeasuredRow(
                    row["micro_batch"],
                    row["global_batch"] // row["micro_batch"],
                    times["median"],
                    times.get("min", times["median"]),
                    times.get("max", times["median"]),
                    row["real_tokens_per_step"] / row["sequences_per_step"],
                )
            )
    fits = (record.get("largest_micro_batch") or {}).get(model) or {}
    return MeasuredModel(path, tuple(rows), fits.get("micro_batch"))
