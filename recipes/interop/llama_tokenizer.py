"""Our tokenizers as llama.cpp reads them from a GGUF file, and the ids that it then gives.

SentencePiece's unigram model is there called `t5`, WordPiece `bert`. The latter always folds case
and strips accents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gguf

from recipes.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from recipes.corpus.tokenizer import Tokenizer

_BYTE = gguf.TokenType.BYTE
_SPACE_MARK = "\u2581"


def faults(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield what llama.cpp would cut into other pieces."""
    if not isinstance(tokenizer, SentencePieceTokenizer) and not tokenizer.lower_case:
        yield f"{tokenizer.path}: keeps case, and llama.cpp's WordPiece always folds it"


def add(writer: Any, tokenizer: Tokenizer) -> None:
    """Add a tokenizer to a GGUF file.

    Args:
        writer: a `gguf.GGUFWriter`.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        _add_unigram(writer, tokenizer.description)
    else:
        _add_wordpiece(writer, tokenizer)
    writer.add_tokenizer_pre("default")
    writer.add_vocab_size(tokenizer.vocab_size)
    writer.add_bos_token_id(tokenizer.cls_id)
    writer.add_eos_token_id(tokenizer.sep_id)
    writer.add_sep_token_id(tokenizer.sep_id)
    writer.add_mask_token_id(tokenizer.mask_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_unk_token_id(tokenizer.unk_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def _add_unigram(writer: Any, model: Any) -> None:
    spec = model.normalizer_spec
    writer.add_tokenizer_model("t5")
    writer.add_token_list([piece.piece.encode() for piece in model.pieces])
    writer.add_token_scores([piece.score for piece in model.pieces])
    writer.add_token_types([piece.type for piece in model.pieces])  # the same numbers there
    writer.add_add_space_prefix(spec.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(spec.remove_extra_whitespaces)
    if spec.precompiled_charsmap:
        writer.add_precompiled_charsmap(spec.precompiled_charsmap)


def _add_wordpiece(writer: Any, tokenizer: Tokenizer) -> None:
    """Add a vocabulary in which a mark stands where a word begins, not where it goes on."""
    special = set(tokenizer.special_ids.values())
    pieces, types = [], []
    for index, piece in enumerate(tokenizer.pieces):
        types.append(gguf.TokenType.CONTROL if index in special else gguf.TokenType.NORMAL)
        if index not in special:
            piece = piece[2:] if piece.startswith("##") else _SPACE_MARK + piece
        pieces.append(piece.encode())
    writer.add_tokenizer_model("bert")
    writer.add_token_list(pieces)
    writer.add_token_scores([-1000.0] * len(pieces))
    writer.add_token_types(types)


def as_there(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Return the ids that llama.cpp must give where ours are these.

    It does not spell in bytes: in place of bytes in a row stands one [UNK].
    """
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return list(ids)
    unknown = tokenizer.unk_id
    bytes_ = {i for i, piece in enumerate(tokenizer.description.pieces) if piece.type == _BYTE}
    found: list[int] = []
    for index in ids:
        index = unknown if index in bytes_ else index
        if index != unknown or found[-1:] != [unknown]:
            found.append(index)
    return found
