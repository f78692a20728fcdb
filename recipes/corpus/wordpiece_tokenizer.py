"""BERT's WordPiece, computed by the package `tokenizers`: the vocabulary of other people's weights.

A text is cleaned, cut at white space and punctuation, and each word into the longest pieces that
the vocabulary has, from its left (Devlin et al., 2019; `tokenization.py` of their release). Pieces
within a word begin with `##`. A word that cannot be spelt becomes [UNK] as a whole. The special
pieces have the ids that the file gives them; punctuation is cut off before words are looked up, so
text cannot spell them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from recipes.common.errors import Faults, UserError
from recipes.common.json_content import Json
from recipes.corpus.hf_tokenizer_files import special_tokens, template, tokenizer_config
from recipes.corpus.tokenizer_interface import ROLES, SPECIAL_PIECES, Tokenizer, read_file

VOCABULARY, TOKENIZER, CONFIG = "vocab.txt", "tokenizer.json", "tokenizer_config.json"
_CONTINUES = "##"
_KINDS = {"model": "WordPiece", "normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}


@dataclass(frozen=True)
class Rules:
    """What decides the ids beside the pieces."""

    lowercase: bool
    strip_accents: bool | None = None
    """None: where case is folded."""
    handle_chinese_chars: bool = True
    """Put spaces around CJK ideographs, so that each is a word."""
    clean_text: bool = True
    """Drop control characters, and make spaces of white space."""
    max_input_chars_per_word: int = 100
    """Longer words are [UNK]."""


# The rules that tokenizer_config.json has, by its names.
_CONFIGURED = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}


class WordPieceTokenizer(Tokenizer):
    """Cuts text by a WordPiece vocabulary.

    Args:
        path: a `tokenizer.json`; or a `vocab.txt`, whose rules are in the `tokenizer_config.json`
            beside it. Where that does not tell about case, it is folded if no piece has capitals.

    Raises:
        UserError: no such file, or not one of such a tokenizer; every reason is named.
    """

    kind = "wordpiece"
    keeps_text = False
    normalizer = "bert"

    def __init__(self, path: Path | str):
        self.path = Path(path)
        is_json = self.path.suffix == ".json"
        self._pieces, self.rules = _read_json(self.path) if is_json else _read_text(self.path)
        ids = {piece: index for index, piece in enumerate(self._pieces)}
        missing = [piece for piece in SPECIAL_PIECES if piece not in ids]
        if missing:
            raise UserError(*(f"{path}: no piece {piece}" for piece in missing))
        for role, piece in zip(ROLES, SPECIAL_PIECES, strict=True):
            setattr(self, f"{role}_id", ids[piece])
        rules = self.rules
        self._tokenizer = tokenizers.Tokenizer(
            WordPiece(
                ids,
                unk_token="[UNK]",
                max_input_chars_per_word=rules.max_input_chars_per_word,
            )
        )
        self._tokenizer.normalizer = BertNormalizer(
            clean_text=rules.clean_text,
            handle_chinese_chars=rules.handle_chinese_chars,
            strip_accents=rules.strip_accents,
            lowercase=rules.lowercase,
        )
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    @property
    def pieces(self) -> tuple[str, ...]:
        return self._pieces

    @property
    def lower_case(self) -> bool:
        return self.rules.lowercase

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pieces and the rules."""
        return hashlib.sha256(repr((self.kind, self._pieces, self.rules)).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self._tokenizer.encode(text)
        return list(encoded.ids), list(encoded.offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """Join pieces to words and put a space between words; what [UNK] was is lost."""
        vanishing = {self.pad_id, self.cls_id, self.sep_id, self.mask_id}
        pieces = (self._pieces[index] for index in ids if index not in vanishing)
        return "".join(
            piece.removeprefix(_CONTINUES) if piece.startswith(_CONTINUES) else f" {piece}"
            for piece in pieces
        ).removeprefix(" ")

    def begins_word(self, index: int) -> bool:
        return not self._pieces[index].startswith(_CONTINUES)

    def shown(self, index: int) -> str:
        return self._pieces[index]

    def hf_files(self, max_length: int | None = None) -> dict[str, bytes]:
        """Return `tokenizer.json` and `tokenizer_config.json`."""
        content = json.loads(self._tokenizer.to_str())
        content["added_tokens"] = special_tokens(self.special_ids)
        content["post_processor"] = template(self.special_ids)
        content["decoder"] = {"type": "WordPiece", "prefix": _CONTINUES, "cleanup": False}
        rules = {name: getattr(self.rules, field) for field, name in _CONFIGURED.items()}
        return {
            TOKENIZER: json.dumps(content, ensure_ascii=False).encode(),
            CONFIG: tokenizer_config(max_length, **rules),
        }

    def files(self, max_length: int | None = None) -> dict[str, bytes]:
        lines = "".join(f"{piece}\n" for piece in self._pieces)
        return {VOCABULARY: lines.encode(), **self.hf_files(max_length)}


def _read_text(path: Path) -> tuple[tuple[str, ...], Rules]:
    """Read a piece per line, and the rules in the file beside it."""
    pieces = _lines(path)
    configured = _configured(path.parent)
    if configured.get("lowercase") is None:
        ordinary = (piece for piece in pieces if piece not in SPECIAL_PIECES)
        configured["lowercase"] = not any(piece != piece.lower() for piece in ordinary)
    return pieces, Rules(**configured)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        # Not by splitlines: line separators of Unicode may be pieces.
        lines = read_file(path).decode("utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start:,})") from None
    pieces = tuple(line.removesuffix("\r") for line in lines)
    faults = Faults()
    if blank := [number for number, piece in enumerate(pieces, 1) if not piece]:
        faults.append(f"{path}: blank line {_some(blank)}; the pieces behind it would move")
    first: dict[str, int] = {}
    for number, piece in enumerate(pieces, 1):
        if piece and first.setdefault(piece, number) != number:
            faults.append(f"{path}: line {number:,} is {piece!r}, as line {first[piece]:,} is")
    if len(faults) > _SHOWN:
        faults[_SHOWN:] = [f"{path}: {len(faults) - _SHOWN:,} more lines that are there before"]
    faults.stop()
    return pieces


_SHOWN = 5  # faults of one kind


def _some(numbers: Sequence[int]) -> str:
    rest = f" and {len(numbers) - _SHOWN:,} more" if len(numbers) > _SHOWN else ""
    return ", ".join(f"{number:,}" for number in numbers[:_SHOWN]) + rest


def _configured(directory: Path) -> Json:
    """Return the rules that a `tokenizer_config.json` names, if there is one."""
    path = directory / CONFIG
    if not path.is_file():
        return {}
    content = _json(path)
    found = {field: content.get(name) for field, name in _CONFIGURED.items()}
    wrong = [
        f"{path}: {_CONFIGURED[field]} is {value!r}; true or false"
        for field, value in found.items()
        if value is not None and not isinstance(value, bool)
    ]
    if content.get("do_basic_tokenize") is False:
        wrong.append(f"{path}: do_basic_tokenize is false: text that is cut before is not read")
    if wrong:
        raise UserError(*wrong)
    return {field: value for field, value in found.items() if value is not None}


def _json(path: Path) -> Json:
    try:
        content = json.loads(read_file(path).decode("utf-8-sig"))
    except ValueError as error:  # of the encoding as well
        raise UserError(f"{path}: damaged: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not an object of JSON")
    return content


def _read_json(path: Path) -> tuple[tuple[str, ...], Rules]:
    """Read `tokenizer.json`, if it is of BERT's kind."""
    content = _json(path)
    parts = {name: {} if content.get(name) is None else content[name] for name in _KINDS}
    Faults(
        f"{path}: {name} is {_brief(part)}; an object"
        for name, part in parts.items()
        if not isinstance(part, dict)
    ).stop()
    faults = Faults(
        f"{path}: its {name} is {parts[name].get('type') or 'missing'}; read is {kind}"
        for name, kind in _KINDS.items()
        # The oldest files have no type of the model.
        if parts[name].get("type", kind if name == "model" and "vocab" in parts[name] else None)
        != kind
    )
    if faults:
        raise UserError(
            *faults, "a SentencePiece model is read from its tokenizer.model, BPE is not supported"
        )
    model, normalizer = parts["model"], parts["normalizer"]
    Faults(_damages(path, content, model, normalizer)).stop()
    pieces = tuple(sorted(model["vocab"], key=model["vocab"].get))
    if [model["vocab"][piece] for piece in pieces] != list(range(len(pieces))):
        faults.append(f"{path}: the ids of its pieces are not 0 to {len(pieces) - 1:,}, each once")
    prefix = model.get("continuing_subword_prefix", _CONTINUES)
    if prefix != _CONTINUES or model.get("unk_token", "[UNK]") != "[UNK]":
        faults.append(f"{path}: pieces within a word must begin with ## and [UNK] be unknown")
    faults += _added_faults(path, content, model["vocab"])
    named = {field.name for field in fields(Rules)}
    rules = Rules(
        **{key: value for key, value in normalizer.items() if key in named},
        max_input_chars_per_word=model.get("max_input_chars_per_word", 100),
    )
    faults += _contradictions(path, pieces, rules)
    faults.stop()
    return pieces, rules


def _damages(
    path: Path, content: Mapping[str, Any], model: Mapping[str, Any], normalizer: Mapping[str, Any]
) -> Iterator[str]:
    """Name the values that are missing or of a type that no writer gives them."""
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict):
        yield f"{path}: model.vocab is {_brief(vocabulary)}; an object of pieces and their ids"
    else:
        wrong = [piece for piece, index in vocabulary.items() if not _is_number(index)]
        for piece in wrong[:_SHOWN]:
            said = _brief(vocabulary[piece])
            yield f"{path}: model.vocab: the id of {piece!r} is {said}; a number"
        if len(wrong) > _SHOWN:
            yield f"{path}: model.vocab: {len(wrong) - _SHOWN:,} more ids that are no numbers"
    longest = model.get("max_input_chars_per_word", 100)
    if not _is_number(longest):
        yield f"{path}: model.max_input_chars_per_word is {_brief(longest)}; a number"
    for name, default in _SWITCHES.items():
        value = normalizer.get(name, default)
        if not isinstance(value, bool) and not (name == "strip_accents" and value is None):
            yield f"{path}: normalizer.{name} is {_brief(value)}; true or false"
    added = content.get("added_tokens")
    if not isinstance(added, list | None):
        yield f"{path}: added_tokens is {_brief(added)}; a list"
        return
    for place, token in enumerate(added or ()):
        of = token if isinstance(token, dict) else {}
        if not _is_number(of.get("id")) or not isinstance(of.get("content"), str):
            yield (
                f"{path}: added_tokens[{place}] is {_brief(token)}; an object with a number `id` "
                "and a text `content`"
            )


_SWITCHES = {
    "lowercase": None,
    "strip_accents": None,
    "handle_chinese_chars": True,
    "clean_text": True,
}
"""The normaliser's rules, with what counts where a file does not name them."""


def _is_number(value: object) -> bool:
    """Whether a value of JSON can be an id or a count: true and false cannot."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _brief(value: object) -> str:
    """A value of JSON as a message shows it."""
    if value is None:
        return "missing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _added_faults(path: Path, content: Mapping[str, Any], ids: Mapping[str, int]) -> list[str]:
    """Name the pieces that text would be searched for before it is cut."""
    return [
        f"{path}: added token {token['content']!r}: only the special pieces may be added"
        if token["content"] not in SPECIAL_PIECES
        else f"{path}: {token['content']} has the ids {token['id']} and {ids[token['content']]}"
        for token in content.get("added_tokens") or ()
        if token["content"] not in SPECIAL_PIECES
        or ids.get(token["content"], token["id"]) != token["id"]
    ]


def _contradictions(path: Path, pieces: tuple[str, ...], rules: Rules) -> list[str]:
    """Name what the files beside a `tokenizer.json` say otherwise: which one was meant?"""
    faults = Faults()
    configured = faults.attempt(lambda: _configured(path.parent)) or {}
    faults += [
        f"{path.parent / CONFIG}: {_CONFIGURED[name]} is {value}, in {path.name} it is "
        f"{asdict(rules)[name]}; take one of the files away"
        for name, value in configured.items()
        if value != asdict(rules)[name]
    ]
    beside = path.parent / VOCABULARY
    if beside.is_file() and (lines := faults.attempt(lambda: _lines(beside))) and lines != pieces:
        faults.append(f"{beside}: its pieces are not those of {path.name}; take one of them away")
    return faults
