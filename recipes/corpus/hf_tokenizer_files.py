"""What the `tokenizer.json` and `tokenizer_config.json` of both kinds of tokenizers have in common.

The format is that of the package `tokenizers`; transformers reads it as a `PreTrainedTokenizerFast`
with no code of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recipes.common.json_content import Json, json_bytes
from recipes.corpus.tokenizer_interface import ROLES, SPECIAL_PIECES


def special_tokens(ids: Mapping[str, int]) -> list[Json]:
    """Return the entries by which a reader finds the special pieces in text.

    That is what `pipeline("fill-mask")` needs, and why a text with the characters "[MASK]" has
    other ids than in our commands, unless the tokenizer is called with `split_special_tokens=True`.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    pieces = zip(ROLES, SPECIAL_PIECES, strict=True)
    tokens = [
        {"id": ids[role], "content": piece, **flags, "special": True} for role, piece in pieces
    ]
    return sorted(tokens, key=lambda token: token["id"])


def template(ids: Mapping[str, int]) -> Json:
    """Return what makes [CLS] a [SEP] of a text, and [CLS] a [SEP] b [SEP] of a pair."""
    cls, sep = (
        [{"SpecialToken": {"id": piece, "type_id": kind}} for kind in (0, 1)]
        for piece in ("[CLS]", "[SEP]")
    )
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [cls[0], first, sep[0]],
        "pair": [cls[0], first, sep[0], second, sep[1]],
        "special_tokens": {
            piece: {"id": piece, "ids": [ids[role]], "tokens": [piece]}
            for role, piece in (("cls", "[CLS]"), ("sep", "[SEP]"))
        },
    }


def tokenizer_config(max_length: int | None, **more: Any) -> bytes:
    """Return `tokenizer_config.json`, with what it says of every kind of tokenizer.

    Args:
        max_length: tokens of the longest sequence that the model takes; None: any.
        more: entries of one kind of tokenizer.
    """
    names = {f"{role}_token": piece for role, piece in zip(ROLES, SPECIAL_PIECES, strict=True)}
    limit = {} if max_length is None else {"model_max_length": max_length}
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **names,
        **limit,
        **more,
    }
    return json_bytes(content)
