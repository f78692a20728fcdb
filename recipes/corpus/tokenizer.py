"""The tokenizer: text to ids and back, whatever kind of vocabulary there is.

Everything beyond this package knows the interface alone. SentencePiece models are what
`prepare_data.py` trains; WordPiece vocabularies come with the weights of others. Which ids are
special is known to the tokenizer, and to the manifest of data that were encoded with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipes.common.errors import UserError
from recipes.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from recipes.corpus.tokenizer_interface import Tokenizer
from recipes.corpus.wordpiece_tokenizer import WordPieceTokenizer

__all__ = ["Tokenizer", "encode_documents", "open_tokenizer"]

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
