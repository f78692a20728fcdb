"""Settings of a preparation: what its command line says."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from recipes.common.numbers import whole
from recipes.common.settings import Part, Share, number_in, one_of
from recipes.corpus.input_files import DOCUMENTS_PER, FORMATS
from recipes.corpus.sentencepiece_tokenizer import NORMALIZERS
from recipes.corpus.sentencepiece_training import MIN_VOCAB_SIZE
from recipes.corpus.text_sources import EMBEDDED

DEFAULT_VOCAB_SIZE = 30522


def available_cores() -> int:
    """Processor cores that this process may use; a SLURM job may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Text:
    """Where the text comes from and how it is read."""

    input: tuple[str, ...] = (EMBEDDED,)
    """Hub dataset (org/name), .jsonl .json .csv .tsv .txt .parquet files (.gz .bz2 .xz .zst),
    directories, or python-docs, the text that comes with Python."""
    config: str | None = None
    """Configuration of the hub dataset, such as en."""
    text_key: str = "text"
    """JSON key (a.b: b in a) or column of the text."""
    format: Annotated[str, one_of(*FORMATS)] | None = None
    """Format of all files; unless given, the ending of each file tells."""
    documents_per: Annotated[str, one_of(*DOCUMENTS_PER)] = "paragraph"
    """What a document of plain text is: paragraphs are separated by blank lines."""
    max_documents: Annotated[int, number_in(whole(2, 10**12))] | None = None
    """Read only so many records from the front, of the validation input too; at least 2, one of
    them for validation."""
    max_bad_fraction: Share = 0.01
    """Stop when a larger share of the records, 0 to 1, is unusable."""


@dataclass(frozen=True)
class Validation:
    """Which text is held out of training."""

    validation_input: tuple[str, ...] = ()
    """Held-out text, named like --input; without it a hub dataset's validation split, else a part
    of the input is held out."""
    validation_fraction: Part = 0.01
    """Share of the documents that is held out, chosen by hash, where there is no other
    validation text."""


@dataclass(frozen=True)
class Vocabulary:
    """Which tokenizer cuts text into pieces."""

    tokenizer: Path | None = None
    """Existing tokenizer to use instead of training one: a SentencePiece .model, a vocab.txt
    or tokenizer.json of BERT's kind, or a directory with one of them."""
    vocab_size: Annotated[int, number_in(whole(MIN_VOCAB_SIZE, 1_000_000))] | None = None
    """Pieces of the tokenizer to train; 5 special ones, 256 bytes and one character need at least
    262. Unless given: 30522."""
    cased: bool = False
    """Keep upper case instead of folding it."""
    normalizer: Annotated[str, one_of(*NORMALIZERS)] | None = None
    """What the tokenizer does to text first. nmt_nfkc_cf folds case and makes spaces of tabs, line
    breaks and joiners (U+200C); nmt_nfkc does the same, but keeps case; nfkc_cf folds case and
    keeps joiners, which Persian and the scripts of India need; nfkc does the same, but keeps case;
    identity keeps every character, for code and whatever has to come back as it was. All but
    identity make one of several spaces. Unless given: nmt_nfkc_cf, with --cased nmt_nfkc."""
    tokenizer_sample_mb: Annotated[int, number_in(whole(1, 1_000_000))] = 64
    """Megabytes of text to train the tokenizer on, from all over the input."""


@dataclass(frozen=True)
class Settings:
    """Text to tokenizer and token shards."""

    output: Path
    """Directory to write."""
    text: Text
    validation: Validation
    vocabulary: Vocabulary
    shards: Annotated[int, number_in(whole(1, 1_000_000))] = 128
    """Shards to cut a large input into: the unit of parallel work and of resuming."""
    workers: Annotated[int, number_in(whole(1, 1024))] = field(default_factory=available_cores)
    """Worker processes; the result is the same for any number. Unless given: one per processor
    core."""
    overwrite: bool = False
    """Discard what --output holds of a preparation."""
    dry_run: bool = False
    """Print the resolved options or all faults, and exit."""
