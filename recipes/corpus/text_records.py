"""Spans of input that can be read alone, and the documents in their records.

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
"""Longer lines and documents are skipped: a file without newlines would fill the memory."""

BAD_RECORDS_TOLERATED = 1000
"""Bad records of a portion that are allowed whatever their share: they often come in a row."""

EMPTY = "empty"
"""Reason for skipping a document without text; it does not count as a fault of the input."""

HELD_OUT = "in the validation input"
"""Reason for leaving out a training document; it does not count as a fault either."""

TEXTUAL = ("jsonl", "json", "csv", "tsv", "text", "text-line", "text-file")
"""Kinds of files that may be compressed.

A `json` file holds JSON values one after the other, or one array of them, on any number of lines; a
`jsonl` file holds one value per line. Documents of a `text` file stand between blank lines; in a
`text-line` file each line is a document, and a `text-file` is one document.
"""


@dataclass(frozen=True)
class Span:
    """A part of one input that can be read alone.

    Attributes:
        kind: one of `TEXTUAL`, `parquet`, `hub` or `python-docs`.
        name: path, dataset name, or `python-docs`.
        start, stop: bytes of an uncompressed file, row groups, or shards of a hub dataset;
            `stop` None is the end. A hub span is shard `start` of `stop` shards.
        size: bytes on disk (an assumed number for the hub).
        config, split: names of a hub dataset's configuration and split.
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
        """Tells whether reading can begin at any byte, with the next record from there."""
        return self.kind in ("jsonl", "text", "text-line") and not self.compressed

    @property
    def shared(self) -> bool:
        """Tells whether processes share it by lanes: it has many records, and is not divisible."""
        return self.kind in TEXTUAL and self.kind != "text-file" and not self.divisible


@dataclass
class Skipped:
    """Counts what was read and what was skipped.

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
        """Number of skipped records, without those that are empty or held out."""
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
        """Refuse an input with too many unusable records.

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
        """Describe every reason, and the files that were not read to their last byte."""
        behind = [
            f"{count:,} bytes behind the compressed data of {name}"
            for name, count in self.trailing.items()
        ]
        return "; ".join([*map(self.describe, self.counts), *behind])


# First bytes of files that are not UTF-8, and what to do with them.
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
        reason: the same words for every record with this fault; records are counted by it.
        hint: more about this record, to help with the others.
    """

    def __init__(self, reason: str, hint: str = ""):
        super().__init__(reason)
        self.hint = hint


def text_of(raw: Any, kind: str, text_key: str) -> str:
    """Get the document out of a raw record.

    Raises:
        Unusable: there is none, it is blank, or UTF-8 cannot hold it.
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
    if not is_unicode(text):  # JSON can spell half of a surrogate pair
        raise Unusable("with unpaired surrogates")
    return text


def is_unicode(text: str) -> bool:
    """Say whether a text can be UTF-8: not with halves of surrogate pairs, as of other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    """Get the value under a key of a record; `a.b` is also the `b` of its `a`.

    Raises:
        Unusable: there is no value, or null; the hint names the keys that are there.
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
    """Say which keys or columns there are, and what to type if the text is in `likely`."""
    names = ", ".join(key if len(key) <= 40 else f"{key[:37]}..." for key in keys)
    return f"it has {names or 'nothing'}" + (f": --text-key {likely}?" if likely else "")


def _leaves(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping) and value and prefix.count(".") < 4:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _place(span: Span, position: int) -> str:
    """Say where a record is; to count the lines before it is no waste, as few are asked for."""
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
