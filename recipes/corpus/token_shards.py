"""Writes and reads token shards: pairs of `.bin` and `.idx` files, listed in one `manifest.json`.

The files have the format of `megatron.core.datasets.indexed_dataset`, so Megatron can read ours and
we can read Megatron's. The code uses numpy alone: dozens of encoder processes and loader workers
start, and importing Megatron would cost each of them seconds and memory.

The manifest is written last. A directory without one is not prepared, and a shard is read only if
the manifest lists it with the size that it has on disk.

Layout of an `.idx` file (little-endian), one sequence per document:
    9 bytes magic, u64 version (1), u8 token type (4: int32, 8: uint16), u64 sequences,
    u64 document bounds,
    i32 [sequences] lengths in tokens, i64 [sequences] byte offsets into the `.bin` file,
    i64 [sequences + 1] document bounds (0, 1, 2, ...)
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired, Self, TypedDict

import numpy as np

from recipes.common.errors import UserError
from recipes.common.files import PartialFile, sync_directory
from recipes.common.json_content import misfits
from recipes.corpus.tokenizer_interface import TokenizerInfo

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_TOKEN_TYPES: dict[int, np.dtype] = {4: np.dtype(np.int32), 8: np.dtype(np.uint16)}
_INDEX_CHUNK = 1 << 20  # entries of the index written at a time, so that memory stays flat


class ShardInfo(TypedDict):
    """A shard's entry in the manifest; `prefix` is the name of its files without their endings."""

    prefix: str
    documents: int
    tokens: int
    bin_bytes: int
    idx_bytes: int
    bin_sha256: str
    idx_sha256: str


class SplitInfo(TypedDict):
    """A split's entry in the manifest."""

    documents: int
    tokens: int
    unigram_entropy_nats: float
    shards: list[ShardInfo]


class Manifest(TypedDict):
    """The manifest; `options` and `source` are those of the preparation that made the shards."""

    format: int
    tokenizer: TokenizerInfo
    splits: dict[str, SplitInfo]
    options: NotRequired[Mapping[str, Any]]
    source: NotRequired[Mapping[str, Any]]


def token_dtype(vocab_size: int) -> np.dtype:
    """Choose uint16 for fewer than 65,500 pieces, else int32 (as `DType.optimal_dtype` does)."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


class _HashedFile(PartialFile):
    """A partial file whose bytes are counted and hashed while they are written."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.bytes = 0
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        super().write(data)
        self.bytes += len(data)
        self._sha256.update(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


class ShardWriter:
    """Writes one shard, `<prefix>.bin` and `<prefix>.idx`; used in a `with` block.

    Both files appear, synced to disk, when the block ends; after an exception neither does. Memory:
    four bytes per document.

    Args:
        prefix: path of the shard without its suffix; its directory exists.
        vocab_size: pieces of the tokenizer; decides the type of the tokens, and which ids exist.

    After the block `info` is the shard's entry for the manifest.
    """

    info: ShardInfo

    def __init__(self, prefix: Path, vocab_size: int):
        self.prefix = Path(prefix)
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self._lengths = array("i")

    @property
    def documents(self) -> int:
        """Number of documents added so far."""
        return len(self._lengths)

    @property
    def tokens(self) -> int:
        """Number of tokens added so far."""
        return self._bin.bytes // self.dtype.itemsize

    def __enter__(self) -> Self:
        self._bin = _HashedFile(_with_suffix(self.prefix, ".bin"))
        return self

    def add(self, tokens: np.ndarray) -> None:
        """Append one document: an integer array [tokens] of ids without [CLS] and [SEP].

        Raises:
            ValueError: the document is empty, or an id lies outside [0, vocab_size).
        """
        if len(tokens) == 0:
            raise ValueError(f"document {self.documents} of {self.prefix} is empty")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"document {self.documents} of {self.prefix} has ids {low} to {high}; "
                f"a vocabulary of {self.vocab_size} pieces has 0 to {self.vocab_size - 1}"
            )
        self._bin.write(tokens.astype(self.dtype).tobytes())
        self._lengths.append(len(tokens))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._bin.discard()
            return
        idx: _HashedFile | None = None
        try:
            if self.documents == 0:
                raise ValueError(f"{self.prefix}: a shard needs at least one document")
            idx = _HashedFile(_with_suffix(self.prefix, ".idx"))
            self._write_index(idx)
            self._bin.close()
            idx.close()
        except BaseException:
            self._bin.discard()
            if idx is not None:
                idx.discard()
            raise
        # An earlier shard may have this name: its index must never stand beside the new tokens.
        idx.path.unlink(missing_ok=True)
        self._bin.publish()
        idx.publish()
        sync_directory(self.prefix.parent)
        self.info = {
            "prefix": self.prefix.name,
            "documents": self.documents,
            "tokens": self.tokens,
            "bin_bytes": self._bin.bytes,
            "idx_bytes": idx.bytes,
            "bin_sha256": self._bin.sha256,
            "idx_sha256": idx.sha256,
        }

    def _write_index(self, idx: _HashedFile) -> None:
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        code = next(code for code, dtype in _TOKEN_TYPES.items() if dtype == self.dtype)
        idx.write(_HEADER.pack(_MAGIC, 1, code, len(lengths), len(lengths) + 1))
        idx.write(lengths.tobytes())
        offset = 0
        for first in range(0, len(lengths), _INDEX_CHUNK):
            sizes = lengths[first : first + _INDEX_CHUNK].astype(np.int64) * self.dtype.itemsize
            ends = offset + np.cumsum(sizes)
            idx.write((ends - sizes).tobytes())
            offset = int(ends[-1])
        for first in range(0, len(lengths) + 1, _INDEX_CHUNK):
            last = min(first + _INDEX_CHUNK, len(lengths) + 1)
            idx.write(np.arange(first, last, dtype=np.int64).tobytes())


@dataclass(frozen=True)
class Shard:
    """One memory-mapped shard: the disk is read where an array is, and not before.

    Attributes:
        tokens: ids, uint16 or int32 [tokens].
        lengths: tokens of each document, int32 [documents]. Not aligned in memory: the format
            puts it 34 bytes into the file.
        pointers: byte offset of each document in the `.bin` file, int64 [documents]; not aligned.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    pointers: np.ndarray


@dataclass(frozen=True)
class TokenShards:
    """One split of a prepared directory.

    Attributes:
        data_dir: the directory.
        split: its name in the manifest.
        manifest: the whole manifest, as written by `recipes/prepare_data.py`.
        shards: mapped, in the manifest's order.
    """

    data_dir: Path
    split: str
    manifest: Manifest
    shards: tuple[Shard, ...]

    @property
    def documents(self) -> int:
        return self.manifest["splits"][self.split]["documents"]

    @property
    def tokens(self) -> int:
        """Number of tokens on disk, without [CLS] and [SEP]."""
        return self.manifest["splits"][self.split]["tokens"]

    @property
    def unigram_entropy_nats(self) -> float:
        """Entropy of the token frequencies: the loss of a model that ignores the context."""
        return self.manifest["splits"][self.split]["unigram_entropy_nats"]

    @property
    def vocab_size(self) -> int:
        return self.manifest["tokenizer"]["vocab_size"]

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of pad, unk, cls, sep and mask."""
        return self.manifest["tokenizer"]["special_ids"]


def open_shards(
    data_dir: Path | str,
    split: str,
    *,
    tokenizer_fingerprint: str | None = None,
) -> TokenShards:
    """Check one split of a prepared directory against its manifest and memory-map it.

    Args:
        data_dir: directory written by `recipes/prepare_data.py`.
        split: `"train"` or `"validation"`.
        tokenizer_fingerprint: fingerprint of the tokenizer in use; compared with the manifest's.

    Raises:
        UserError: everything that is wrong with the directory, one message per fault.
    """
    data_dir = Path(data_dir)
    manifest = _read_manifest(data_dir)
    faults = []
    expected = manifest["tokenizer"]["fingerprint"]
    if tokenizer_fingerprint not in (None, expected):
        faults.append(
            f"{data_dir}: the tokenizer does not match the data: its fingerprint is "
            f"{tokenizer_fingerprint}, the shards were encoded with {expected} (older versions "
            "left a custom normaliser's flags out of the fingerprint: then prepare the data again)"
        )
    if split not in manifest["splits"]:
        known = ", ".join(sorted(manifest["splits"]))
        raise UserError(*faults, f"{data_dir}: no split {split!r}; it has {known or 'none'}")
    infos = manifest["splits"][split]["shards"]
    if not infos:
        faults.append(f"{data_dir}: split {split!r} holds no shards")
    for info in infos:
        faults += _shard_faults(data_dir, info)
    if faults:
        raise UserError(*faults)
    shards = tuple(_map_shard(data_dir / info["prefix"]) for info in infos)
    return TokenShards(data_dir, split, manifest, shards)


def _read_manifest(data_dir: Path) -> Manifest:
    path = data_dir / MANIFEST_NAME
    prepare = f"python recipes/prepare_data.py --input ... --output {data_dir}"
    if not data_dir.is_dir():
        raise UserError(f"{data_dir}: no such directory; prepare it with: {prepare}")
    if not path.is_file():
        raise UserError(
            f"{data_dir}: no {MANIFEST_NAME}, so the data are not prepared or their preparation "
            f"did not finish; run, or run again: {prepare}"
        )
    try:
        manifest: Manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); prepare again: {prepare}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != MANIFEST_FORMAT:
        raise UserError(
            f"{path}: format {found!r}, this version reads {MANIFEST_FORMAT}; "
            f"prepare again: {prepare}"
        )
    if damage := list(misfits(manifest, Manifest, "manifest")):
        more = f" and {len(damage) - 3} more" if len(damage) > 3 else ""
        raise UserError(f"{path}: damaged: {', '.join(damage[:3])}{more}; prepare again: {prepare}")
    return manifest


def _shard_faults(data_dir: Path, info: ShardInfo) -> Iterator[str]:
    sizes_match = True
    for suffix, size in ((".bin", info["bin_bytes"]), (".idx", info["idx_bytes"])):
        path = _with_suffix(data_dir / info["prefix"], suffix)
        if not path.is_file():
            yield f"{path}: missing; the manifest lists it with {size:,} bytes"
            sizes_match = False
        elif (found := path.stat().st_size) != size:
            yield f"{path}: {found:,} bytes, the manifest says {size:,}"
            sizes_match = False
    if sizes_match:
        yield from _header_faults(data_dir, info)


def _header_faults(data_dir: Path, info: ShardInfo) -> Iterator[str]:
    path = _with_suffix(data_dir / info["prefix"], ".idx")
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        yield f"{path}: not a Megatron index"
        return
    _, version, code, documents, _ = _HEADER.unpack(header)
    if version != 1 or code not in _TOKEN_TYPES:
        yield (
            f"{path}: version {version} and token type {code} of a Megatron index; RapidBERT reads "
            "version 1 with token types 4 (int32) and 8 (uint16)"
        )
    elif documents != info["documents"]:
        yield f"{path}: {documents:,} documents, the manifest says {info['documents']:,}"
    elif info["bin_bytes"] != info["tokens"] * _TOKEN_TYPES[code].itemsize:
        yield (
            f"{path}: {info['tokens']:,} tokens of {_TOKEN_TYPES[code].itemsize} bytes are not "
            f"the {info['bin_bytes']:,} bytes of the manifest"
        )


def _map_shard(prefix: Path) -> Shard:
    index = _map(_with_suffix(prefix, ".idx"))
    _, _, code, documents, _ = _HEADER.unpack_from(index)
    lengths = np.frombuffer(index, np.int32, count=documents, offset=_HEADER.size)
    pointers = np.frombuffer(index, np.int64, count=documents, offset=_HEADER.size + lengths.nbytes)
    tokens = _map(_with_suffix(prefix, ".bin"))
    # Sequences are read in random order: the system's read-ahead (128 KB by default) would fetch
    # several hundred times as much as is used.
    tokens.madvise(mmap.MADV_RANDOM)
    return Shard(np.frombuffer(tokens, _TOKEN_TYPES[code]), lengths, pointers)


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _with_suffix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)  # Path.with_suffix would cut a name at its dot
