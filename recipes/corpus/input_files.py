"""Finds the files that are input, in directories too, and counts the files that are not read.

Two paths are the same file if device and inode are the same: another spelling, a symbolic or a hard
link. Links to directories are followed, each directory once. Files that RapidBERT has written are
never input. No file is passed over silently: `Ignored` counts them by reason and ending.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from recipes.common.compressed import COMPRESSIONS, open_binary
from recipes.common.errors import UserError
from recipes.common.locks import LOCK
from recipes.corpus.json_values import json_values
from recipes.corpus.text_records import Span

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
}
FORMATS = ("jsonl", "json", "csv", "tsv", "text", "parquet")
DOCUMENTS_PER = {"paragraph": "text", "line": "text-line", "file": "text-file"}

_OTHERS = f"with --format, one of {', '.join(FORMATS)}, any other ending"

LINE_BYTES = 1 << 16  # enough for most first lines
HEAD_BYTES = 1 << 20  # read to tell formats and copies apart
BINARY_HEAD = 8192  # a file with a NUL byte in its first bytes is no text; git has the same rule

_LEADS_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_RUN_FILES = {"config.json", "log.jsonl"}
_PREPARATION_FILES = {"manifest.json", "progress.json"}
_TOKENIZER_FILES = {"tokenizer.vocab", "vocab.txt"}


@dataclass(frozen=True)
class Layout:
    """Says how files are read.

    Attributes:
        format: format of all files, one of `FORMATS`; if None, the ending of each file decides.
        documents_per: what a document of a text file is, one of `DOCUMENTS_PER`.
    """

    format: str | None = None
    documents_per: str = "paragraph"

    def kind(self, path: Path) -> str | None:
        """Find the kind of the span that a file becomes; None if its ending is not known."""
        ending = path.suffix.lower()
        compressed = ending in COMPRESSIONS
        kind = self.format or ENDINGS.get(Path(path.stem).suffix.lower() if compressed else ending)
        if compressed and kind == "parquet":
            return None
        return DOCUMENTS_PER[self.documents_per] if kind == "text" else kind


@dataclass
class Ignored:
    """Counts the files that are not read.

    Attributes:
        counts: files by reason and ending; a directory that is not entered counts as one.
        first: path of the first file by reason.
    """

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, path: Path, reason: str, ending: str | None = None) -> None:
        parts = [part.lower() for part in path.suffixes[-2:]]
        if parts and parts[-1] not in COMPRESSIONS:
            parts = parts[-1:]
        ending = ending or "".join(parts) or "no ending"
        of_reason = self.counts.setdefault(reason, {})
        of_reason[ending] = of_reason.get(ending, 0) + 1
        self.first.setdefault(reason, str(path))

    def merge(self, other: Ignored) -> None:
        for reason, endings in other.counts.items():
            mine = self.counts.setdefault(reason, {})
            for ending, count in endings.items():
                mine[ending] = mine.get(ending, 0) + count
        self.first = other.first | self.first

    @property
    def total(self) -> int:
        return sum(sum(endings.values()) for endings in self.counts.values())

    def describe(self) -> str:
        """Give the numbers by reason and ending, largest first, and an example of each reason."""
        reasons = []
        for reason, endings in self.counts.items():
            ranked = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
            shown = [f"{count:,} {ending}" for ending, count in ranked[:8]]
            if rest := ranked[8:]:
                shown.append(f"{sum(n for _, n in rest):,} of {len(rest)} other endings")
            reasons.append(f"{reason}: {', '.join(shown)} (first: {self.first[reason]})")
        return f"{self.total:,} not read: " + "; ".join(reasons)


def find_files(
    path: Path, layout: Layout, output: Path | None = None
) -> tuple[list[Span], Ignored]:
    """Find the files that a path stands for, in sorted order.

    Args:
        output: directory that will be written; it is not entered.

    Raises:
        UserError: the path stands for nothing readable, or a part of it cannot be read.
    """
    if path.is_dir():
        return _find_in_directory(path, layout, output)
    if not path.exists():
        raise UserError(
            f"{path}: no such file or directory (hub datasets are named organisation/name)"
        )
    if not path.is_file():
        raise UserError(f"{path}: not a regular file, and input is read more than once")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: empty file")
    if path.name in _PREPARATION_FILES | _RUN_FILES and is_output(path.parent):
        raise UserError(f"{path}: written by RapidBERT itself, and no text")
    kind = layout.kind(path)
    if kind is None:
        raise UserError(f"{path}: not a known kind of file; read are {known_endings()}; {_OTHERS}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: no permission to read it")
    return [_span(kind, path, layout)], Ignored()


def identity(path: str) -> tuple[int, int]:
    """Give the device and the inode, which are the same for all names of a file."""
    status = Path(path).stat()
    return status.st_dev, status.st_ino


def compressed_twins(paths: Iterable[str]) -> Iterator[str]:
    """Name every file beside which there seems to be the same file uncompressed."""
    there = {os.path.realpath(path): path for path in paths}
    for real, path in there.items():
        ending = Path(real).suffix
        stem = real.removesuffix(ending)
        if ending.lower() in COMPRESSIONS and stem in there:
            if _head(Path(real)) == _head(Path(stem)):
                yield (
                    f"{path}: begins like {there[stem]}: the same text twice? Name one of them "
                    "in --input, or take one away"
                )


def is_output(directory: Path) -> bool:
    """Find out whether a directory holds a lock of RapidBERT, a preparation or a run."""
    try:
        if (directory / LOCK).read_bytes()[:4] == b"pid ":
            return True
    except OSError:
        pass  # there is none
    names = set(os.listdir(directory))
    return names >= _RUN_FILES or bool(names & _TOKENIZER_FILES and names & _PREPARATION_FILES)


def known_endings() -> str:
    return f"{' '.join(ENDINGS)}, and all but Parquet also with {' '.join(COMPRESSIONS)}"


def _find_in_directory(
    top: Path, layout: Layout, output: Path | None
) -> tuple[list[Span], Ignored]:
    if output is not None and output.exists() and top.samefile(output):
        raise UserError(f"--output {output}: is the input {top} too; name one inside, or elsewhere")
    if is_output(top):
        raise UserError(f"{top}: holds what RapidBERT has written; name the files of text in it")
    ignored = Ignored()
    faults: list[str] = []
    spans: dict[tuple[int, int], Span] = {}
    # A file with several names is read by the name that has no link in it.
    for _, path in sorted(_walk(top, output, ignored, faults)):
        status = path.stat()
        kind = layout.kind(path)
        if not stat.S_ISREG(status.st_mode):
            ignored.add(path, "not a regular file")
        elif kind is None:
            ignored.add(path, "of another kind")
        elif status.st_size == 0:
            ignored.add(path, "empty")
        elif (status.st_dev, status.st_ino) in spans:
            ignored.add(path, "another name of a file that is read")
        elif not os.access(path, os.R_OK):
            faults.append(f"{path}: no permission to read it")
        elif layout.format == "text" and b"\0" in _head(path, BINARY_HEAD):
            ignored.add(path, "no text (with NUL bytes)")
        else:
            spans[status.st_dev, status.st_ino] = _span(kind, path, layout)
    if faults:
        raise UserError(*faults)
    if not spans:
        found = f": {ignored.describe()}" if ignored.total else " in it"
        raise UserError(f"{top}: no files to read{found}; read are {known_endings()}; {_OTHERS}")
    return sorted(spans.values(), key=lambda span: Path(span.name)), ignored


def _walk(
    top: Path, output: Path | None, ignored: Ignored, faults: list[str]
) -> Iterator[tuple[bool, Path]]:
    """Yield (whether a link leads there, path) for everything below `top` that is no directory."""
    seen: set[tuple[int, int]] = set()
    directories, links = deque([(False, top)]), deque[tuple[bool, Path]]()
    while directories or links:
        # Links come last: a directory that is also there without one is entered by its own name.
        linked, directory = (directories or links).popleft()
        key = identity(str(directory))
        if key in seen:
            ignored.add(directory, "a link to a directory that is read anyway", "directory")
            continue
        seen.add(key)
        if output is not None and output.exists() and directory.samefile(output):
            ignored.add(directory, "the --output", "directory")
            continue
        try:
            names = sorted(os.listdir(directory))
            if directory != top and is_output(directory):
                ignored.add(directory, "written by RapidBERT", "directory")
                continue
            for name in names:
                path = directory / name
                try:
                    link = linked or path.is_symlink()
                    is_directory = stat.S_ISDIR(path.stat().st_mode)
                except PermissionError:
                    raise
                except OSError as error:
                    if error.errno in _LEADS_NOWHERE:
                        ignored.add(path, "a link to nothing")
                    else:  # a file that is there, on a file system that fails
                        faults.append(f"{path}: {error.strerror}")
                    continue
                if name.startswith("."):
                    ignored.add(path, "hidden", "directory" if is_directory else None)
                elif is_directory:
                    (links if link else directories).append((link, path))
                else:
                    yield link, path
        except PermissionError as error:
            faults.append(f"{error.filename or directory}: no permission to read it")


def _span(kind: str, path: Path, layout: Layout) -> Span:
    if kind == "jsonl" and layout.format is None and _is_json_document(path):
        kind = "json"
    return Span(kind, str(path), size=path.stat().st_size)


def _is_json_document(path: Path) -> bool:
    """Find out whether a value in a file takes several lines, or all stand in one array."""
    for size in (LINE_BYTES, HEAD_BYTES):
        head = _head(path, size).removeprefix(b"\xef\xbb\xbf").lstrip()
        line = head.partition(b"\n")[0].rstrip()
        if head.startswith(b"[") or line == b"{":
            return True
        try:
            json.loads(line)
            return False
        except (ValueError, RecursionError):
            pass
    try:
        _, first = next(json_values(io.BytesIO(head), HEAD_BYTES))
        return b"\n" in first and isinstance(json.loads(first), dict)
    except (EOFError, StopIteration, ValueError, RecursionError):
        return False


def _head(path: Path, size: int = HEAD_BYTES) -> bytes:
    try:
        with open_binary(path, {}) as file:
            return file.read(size)
    except (OSError, EOFError):
        return b""  # the reader that reads all of it says what is wrong
