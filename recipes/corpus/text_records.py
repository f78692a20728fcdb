"""Records of input: stretches of files that can be read alone, and the documents in records.

Faults are of two kinds. A record that cannot be used (broken JSON, no text, not UTF-8) is skipped,
counted by reason and remembered with its place. A file that cannot be read to its end (a truncated
gzip, a damaged Parquet footer) is an error that names it: nobody knows what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from recipes.common.compressed import COMPRESSIONS, open_binary
from recipes.common.errors import UserError

MAX_RECORD_BYTES = 16 << 20
"""Longer lines and documents are skipped, so that a file without newlines cannot fill memory."""

BAD_RECORDS_TOLERATED = 1000
"""Bad records of one portion before their share is looked at: they often come in a row."""

EMPTY = "empty"
"""The reason for skipping a document without text, which is no fault of the input."""

HELD_OUT = "in the validation input"
"""The reason for leaving out a training document, which is no fault of the input either."""

TEXTUAL = ("jsonl", "json", "csv", "tsv", "text", "text-line", "text-file")
"""Kinds of files of bytes, which may be compressed.

`json` is a row of JSON values or one array of them, laid out in any way. A document is what stands
between blank lines of a `text`, a line of a `text-line`, all of a `text-file`.
"""


@dataclass(frozen=True)
class Span:
    """A stretch of one input that can be read alone.

    Attributes:
        kind: one of `TEXTUAL`, `parquet`, `hub` or `python-docs`.
        name: path, dataset name, or `python-docs`.
        start, stop: bytes of an uncompressed file, row groups, or shards of a hub dataset;
            `stop` None is the end. A hub span is shard `start` of `stop` shards.
        size: bytes on disk (a nominal number for the hub).
        config, split: of a hub dataset.
    """

    kind: str
    name: str
    start: int = 0
    stop: int | None = None
    size: int = 0
    config: str | None = None
    split: str | None = None

    @property
    def compressed(self) -> bool:
        return self.kind in TEXTUAL and Path(self.name).suffix.lower() in COMPRESSIONS

    @property
    def divisible(self) -> bool:
        """Whether it can be entered at any byte, and the next record be found there."""
        return self.kind in ("jsonl", "text", "text-line") and not self.compressed

    @property
    def shared(self) -> bool:
        """Whether many records come one after the other from a file that cannot be divided."""
        return self.kind in TEXTUAL and self.kind != "text-file" and not self.divisible


@dataclass
class Skipped:
    """What was read and what was skipped.

    Attributes:
        records: records read, the skipped ones included.
        counts: skipped records by reason.
        examples: place of the first skipped record by reason.
        hints: more about that record, by reason.
        trailing: bytes behind the end of the compressed data, by file.
    """

    records: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    hints: dict[str, str] = field(default_factory=dict)
    trailing: dict[str, int] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """Skipped records, those that are merely empty or held out not counted."""
        return sum(n for reason, n in self.counts.items() if reason not in (EMPTY, HELD_OUT))

    def count(self, reason: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def add(self, reason: Unusable, span: Span, position: int) -> None:
        name = str(reason)
        self.count(name)
        if name not in self.examples:
            self.examples[name] = _place(span, position)
            if reason.hint:
                self.hints[name] = reason.hint

    def merge(self, other: Skipped) -> None:
        self.records += other.records
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
        self.examples = other.examples | self.examples
        self.hints = other.hints | self.hints
        self.trailing |= other.trailing

    def check(self, max_bad_fraction: float, tolerated: int = 0) -> None:
        """Refuse an input too much of which is unusable.

        Raises:
            UserError: more than `tolerated` records, and more than the fraction, are bad.
        """
        if self.bad > max(tolerated, max_bad_fraction * self.records):
            reasons = "; ".join(map(self.describe, self.counts))
            raise UserError(
                f"{self.bad:,} of {self.records:,} records are unusable "
                f"({self.bad / self.records:.1%}), more than --max-bad-fraction "
                f"{max_bad_fraction:g}: {reasons}"
            )

    def describe(self, reason: str) -> str:
        first = f" (first: {self.examples[reason]})" if reason in self.examples else ""
        hint = f", {self.hints[reason]}" if reason in self.hints else ""
        return f"{self.counts[reason]:,} {reason}{first}{hint}"

    def describe_all(self) -> str:
        """Every reason, and files that hold more than what was read of them."""
        behind = [
            f"{count:,} bytes behind the compressed data of {name}"
            for name, count in self.trailing.items()
        ]
        return "; ".join([*map(self.describe, self.counts), *behind])


# What is not UTF-8 may begin like this.
_HEADS = {
    b"\xff\xfe": "it begins like UTF-16: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "it begins like UTF-16: iconv -f UTF-16 -t UTF-8",
    b"\x1f\x8b": "it begins like gzip: let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "it begins like zstd: let its name end in .zst",
}
_NOT_UTF8 = "if it is an older encoding of Western Europe: iconv -f WINDOWS-1252 -t UTF-8"


class Unusable(ValueError):
    """A record that cannot be used.

    Args:
        reason: the same for every record of its kind, to be counted by.
        hint: more about this record, which helps to mend its kind.
    """

    def __init__(self, reason: str, hint: str = ""):
        super().__init__(reason)
        self.hint = hint


def text_of(raw: Any, kind: str, text_key: str) -> str:
    """The document in a raw record: not blank, and UTF-8 can hold it.

    Raises:
        Unusable: there is none.
    """
    if isinstance(raw, Unusable):  # the reader has seen it already
        raise raw
    if isinstance(raw, bytes | str) and len(raw) > MAX_RECORD_BYTES:
        raise Unusable(f"longer than {MAX_RECORD_BYTES >> 20} MiB")
    try:
        text = str(raw, "utf-8-sig") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        hint = next((hint for head, hint in _HEADS.items() if raw.startswith(head)), _NOT_UTF8)
        raise Unusable("not UTF-8", hint) from None
    if kind in ("jsonl", "json"):
        text = _json_text(text, text_key)
    if text is None:
        raise Unusable(f"without {text_key!r}")
    if not isinstance(text, str):
        raise Unusable(f"with a {text_key!r} that is not text")
    if not text or text.isspace():
        raise Unusable(EMPTY)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise Unusable("with unpaired surrogates") from None
    return text


def _json_text(line: str, text_key: str) -> Any:
    try:
        record = json.loads(line)
    except RecursionError:
        raise Unusable("not valid JSON", "brackets too deep") from None
    except json.JSONDecodeError as error:
        another = error.msg == "Extra data" and line[error.pos] in "{["
        hint = "several values on a line: --format json reads them" if another else ""
        raise Unusable("not valid JSON", hint) from None
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        raise Unusable("not valid JSON", "a number in it has thousands of digits") from None
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise Unusable("not a JSON object")
    return value_at(record, text_key)


def value_at(record: Mapping[str, Any], key: str) -> Any:
    """What a record holds under `key`; `a.b` is also the `b` of its `a`.

    Raises:
        Unusable: nothing, or null; the hint names the keys that are there.
    """
    value: Any = record.get(key)
    if value is None and "." in key:
        value = record
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if value is None:
        there = f"{key!r} is null" if key in record else _keys(record)
        raise Unusable(f"without {key!r}", there)
    return value


def _keys(record: Mapping[str, Any]) -> str:
    leaves = dict(islice(_leaves(record), 20))
    texts = {key: len(value) for key, value in leaves.items() if isinstance(value, str)}
    return key_hint(leaves, max(texts, key=texts.__getitem__) if texts else None)


def key_hint(keys: Iterable[str], likely: str | None) -> str:
    """Which keys or columns there are, and what to type if `likely` is the one."""
    names = ", ".join(key if len(key) <= 40 else f"{key[:37]}..." for key in keys)
    return f"it has {names or 'nothing'}" + (f": --text-key {likely}?" if likely else "")


def _leaves(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping) and value and prefix.count(".") < 4:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _place(span: Span, position: int) -> str:
    """Where a record is, for people: counting lines is worth it, as few places are asked for."""
    match span.kind:
        case "csv":
            return f"{span.name}:{position}"
        case kind if kind in TEXTUAL:
            with open_binary(Path(span.name), {}) as file:
                line, left = 1, position
                while left > 0 and (chunk := file.read(min(left, 1 << 20))):
                    line += chunk.count(b"\n")
                    left -= len(chunk)
            return f"{span.name}:{line}"
        case "hub":
            return f"{span.name}, shard {span.start} of {span.stop}, example {position + 1}"
        case _:
            return f"{span.name}, record {position + 1}"
