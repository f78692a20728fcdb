"""Notes what of a preparation is finished, and decides whether a directory may be continued.

A directory belongs to one set of options and inputs. With the same ones it is continued, or left
alone if it is complete; other ones are refused, and the difference is named, unless the user asks
to start again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from recipes.common.errors import UserError
from recipes.common.files import write_whole
from recipes.common.json_content import Json
from recipes.corpus.encode_shards import Encoded
from recipes.corpus.preparation_plan import Plan
from recipes.corpus.text_records import Skipped
from recipes.corpus.token_shards import MANIFEST_NAME, ShardInfo

PROGRESS_NAME = "progress.json"

_OUR_FILES = re.compile(
    r"((train|validation)-\d{5}\.(bin|idx)|tokenizer\.(model|vocab|json)|"
    r"tokenizer_config\.json|vocab\.txt)(\.partial)?"
)

# Values that describe preparations which were made before these options were there.
_LATER_OPTIONS: Json = {"format": None, "documents_per": "paragraph"}


class Finished(TypedDict):
    """The record of a finished portion: its shards by split, and what they cost."""

    shards: dict[str, ShardInfo]
    text_bytes: int
    cpu_seconds: float
    skipped: Json


@dataclass
class Progress:
    """What is finished, kept in `progress.json` until the manifest replaces it.

    Attributes:
        options, input_digest, input_times: the plan's.
        fingerprint: the tokenizer's.
        finished: the record of each finished portion by the name of its shard.
        token_counts: occurrences of each id by split, [vocab_size].
    """

    options: Mapping[str, Any]
    input_digest: str
    input_times: str
    fingerprint: str
    finished: dict[str, Finished] = field(default_factory=dict)
    token_counts: dict[str, list[int]] = field(default_factory=dict)

    def add(self, encoded: Encoded) -> None:
        """Note a finished portion."""
        for split, counts in encoded.token_counts.items():
            total = np.array(self.token_counts.get(split, 0)) + counts
            self.token_counts[split] = total.tolist()
        self.finished[encoded.name] = {
            "shards": encoded.shards,
            "text_bytes": encoded.text_bytes,
            "cpu_seconds": encoded.cpu_seconds,
            "skipped": asdict(encoded.skipped),
        }

    def save(self, output: Path) -> None:
        """Write `progress.json`, whole or not at all."""
        write_whole(output / PROGRESS_NAME, json.dumps(asdict(self)).encode())

    def total(self, key: Literal["text_bytes", "cpu_seconds"]) -> float:
        """Sum up `text_bytes` or `cpu_seconds` over the finished portions."""
        return sum(record[key] for record in self.finished.values())

    def skipped(self) -> Skipped:
        """Sum up what was skipped in the finished portions."""
        total = Skipped()
        for name in sorted(self.finished):
            total.merge(Skipped(**self.finished[name]["skipped"]))
        return total


def start_progress(output: Path, plan: Plan, fingerprint: str) -> Progress:
    """Note that a preparation has begun, with the tokenizer of this fingerprint."""
    progress = Progress(plan.options, plan.input_digest, plan.input_times, fingerprint)
    progress.save(output)
    return progress


def is_prepared(output: Path, plan: Plan) -> bool:
    """Find out whether a directory is completely prepared.

    Raises:
        UserError: it was prepared with other options or inputs, or files are missing or
            of the wrong size.
    """
    path = output / MANIFEST_NAME
    if not path.exists():
        return False
    manifest = _read_json(path)
    source = manifest["source"]
    found = (manifest["options"], source["input_digest"], source.get("input_times"))
    _refuse_other(output, found, plan)
    infos = (info for split in manifest["splits"].values() for info in split["shards"])
    _refuse_damaged(output, infos)
    return True


def read_progress(output: Path, plan: Plan) -> Progress | None:
    """Read what is finished of a preparation to continue; None where none has begun.

    Raises:
        UserError: it was started with other options or inputs, or finished shards are
            missing or of the wrong size.
    """
    path = output / PROGRESS_NAME
    if not path.exists():
        if output.is_dir() and (ours := [p.name for p in output.iterdir() if _is_ours(p)]):
            raise UserError(
                f"{output}: holds {min(ours)} but neither {MANIFEST_NAME} nor {PROGRESS_NAME}: "
                "name another --output, or --overwrite"
            )
        return None
    progress = Progress(**{"input_times": None, **_read_json(path)})
    found = (progress.options, progress.input_digest, progress.input_times)
    _refuse_other(output, found, plan)
    infos = (info for done in progress.finished.values() for info in done["shards"].values())
    _refuse_damaged(output, infos)
    return progress


def _read_json(path: Path) -> Json:
    try:
        content: Json = json.loads(path.read_bytes())
        return content
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); start again with --overwrite") from None


def _refuse_other(
    output: Path, found: tuple[Mapping[str, Any], str, str | None], plan: Plan
) -> None:
    """Refuse other options or inputs; what older versions did not note is not compared."""
    options, digest, times = found
    if "normalizer" not in options:
        trained = "nmt_nfkc" if options.get("cased") else "nmt_nfkc_cf"
        options = {**options, "normalizer": None if options.get("tokenizer") else trained}
    options = _LATER_OPTIONS | dict(options)
    faults = [
        f"{output}: was started with {name} = {options.get(name)!r}, now it is {value!r}"
        for name, value in plan.options.items()
        if options.get(name) != value
    ]
    if not faults and digest != plan.input_digest:
        faults = [f"{output}: the input files have changed since (other names or sizes)"]
    if not faults and times not in (None, plan.input_times):
        faults = [f"{output}: the input files were written again since, with the same sizes"]
    if faults:
        raise UserError(*faults, "name another --output, or start again with --overwrite")


def _refuse_damaged(output: Path, infos: Iterable[ShardInfo]) -> None:
    faults = []
    for info in infos:
        for suffix, size in (("bin", info["bin_bytes"]), ("idx", info["idx_bytes"])):
            path = output / f"{info['prefix']}.{suffix}"
            found = path.stat().st_size if path.exists() else None
            if found != size:
                faults.append(f"{path}: {found} bytes, {size} were written")
    if faults:
        raise UserError(*faults, "start again with --overwrite")


def remove_partial_files(output: Path) -> None:
    """Remove what a killed preparation was writing."""
    for path in filter(_is_ours, list(output.glob("*.partial"))):
        path.unlink()


def _is_ours(path: Path) -> bool:
    return _OUR_FILES.fullmatch(path.name) is not None


def clear(output: Path) -> None:
    """Remove the files of a preparation, and no others."""
    if output.is_dir():
        # The manifest goes first: a directory that is half cleared must not look prepared.
        (output / MANIFEST_NAME).unlink(missing_ok=True)
        (output / PROGRESS_NAME).unlink(missing_ok=True)
        for path in filter(_is_ours, sorted(output.iterdir())):
            path.unlink()
