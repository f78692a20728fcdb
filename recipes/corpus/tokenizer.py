"""The tokenizer: text to ids and back, whatever kind of vocabulary there is.

Everything beyond this package knows the interface alone. SentencePiece models are what
`prepare_data.py` trains; WordPiece vocabularies come with the weights of others. Which ids are
special is known to the tokenizer, and to the manifest of data that were encoded with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.common.errors import UserError
from recipes.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from recipes.corpus.tokenizer_interface import Tokenizer
from recipes.corpus.wordpiece_tokenizer import WordPieceTokenizer

__all__ = [
    "Tokenizer",
    "encode_documents",
    "open_tokenizer",
    "other_fingerprint",
    "why_not_of_weights",
]

_FILES = ("tokenizer.model", "tokenizer.json", "vocab.txt")  # the first that is there counts


def open_tokenizer(path: Path | str) -> Tokenizer:
    """Read a tokenizer, whatever kind it is of.

    Args:
        path: a file, or a directory with `tokenizer.model` (SentencePiece), or else with
            `tokenizer.json` or `vocab.txt` (WordPiece).

    Raises:
        UserError: there is none, or it cannot be used; every reason is named.
    """
    path = Path(path)
    if path.is_dir():
        there = [path / name for name in _FILES if (path / name).is_file()]
        if not there:
            raise UserError(f"{path}: no tokenizer there: {', '.join(_FILES[:-1])} or {_FILES[-1]}")
        path = there[0]
    wordpiece = path.suffix in (".json", ".txt")
    return WordPieceTokenizer(path) if wordpiece else SentencePieceTokenizer(path)


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Encode each text as an int32 array [tokens] of ids, without [CLS] and [SEP]."""
    return [np.array(ids, dtype=np.int32) for ids in tokenizer.encode_batch(texts)]


SPARE_ROWS = 127
"""Rows of embeddings that padding to a multiple of up to 128 adds to the pieces at most."""


def why_not_of_weights(
    tokenizer: Tokenizer, rows: int, recorded: Mapping[str, Any]
) -> Iterator[str]:
    """Say what shows that weights were not trained with this tokenizer; nothing, if nothing does.

    Args:
        rows: of the embeddings.
        recorded: what an export says of its tokenizer; empty for weights of others.
    """
    pieces, trained = tokenizer.vocab_size, recorded.get("fingerprint")
    if pieces > rows or rows - pieces > SPARE_ROWS:
        yield (
            f"{tokenizer.path}: {pieces:,} pieces, and the embeddings have {rows:,} rows (padding "
            f"makes {SPARE_ROWS} more at most): it is not the tokenizer of these weights"
        )
    if trained is not None and (fault := other_fingerprint(tokenizer, trained)):
        yield fault


def other_fingerprint(tokenizer: Tokenizer, trained: str) -> str | None:
    """Say that weights were trained with a tokenizer of another fingerprint; None if not so."""
    if trained == tokenizer.fingerprint:
        return None
    return (
        f"{tokenizer.path}: its fingerprint is {tokenizer.fingerprint}, the weights were trained "
        f"with {trained} (older versions left a custom normaliser's flags out of the fingerprint)"
    )
