"""A SentencePiece unigram model as the `tokenizer.json` of the package `tokenizers`, with its ids.

That package has the same search for the best pieces, but not the same steps around it:

- Its `Precompiled` applies the character map to whole grapheme clusters, and of a cluster of which
  only the beginning is in the map it drops the rest: in a folded text a capital loses its accent.
  So clusters are broken up beforehand by characters that no text has, the map is applied to single
  characters, and what SentencePiece would have mapped in one go is composed by `NFC`.
- It finds control and byte pieces in text, where "[MASK]" or "<0x41>" are typed by a user. So a
  text is cut within these, where no piece of the vocabulary lies across.
- It has no mark for a space apart from U+2581. A tokenizer that changes nothing spells that
  character in bytes, so there pieces have real spaces in them.

What is left: U+FDD0 to U+FDD3, which Unicode keeps out of text, vanish. Of scripts that came with
Unicode 13 to 16, 21 characters are not composed where they are spelt in parts. And SentencePiece
adds scores up in 32 bits, this package in 64: where two ways to cut a word are equal to within that
rounding, they may choose differently. In books and web pages that was one place in 100,000 tokens
or fewer, nearly all of them far behind the beginning of a long text.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from recipes.common.json_content import Json
from recipes.corpus.charsmap import sequences_pattern
from recipes.corpus.hf_tokenizer_files import special_tokens, template

_MARK = "\u2581"
# Between what SentencePiece maps apart; within what it maps in one go; and in the latter what
# folding case would change: the iota below a Greek vowel, and the capital I that a dot is put upon.
_APART, _WITHIN, _KEPT_IOTA, _KEPT_I = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
_IOTA_BELOW, _DOT_ABOVE, _DOTTED_I = "\u0345", "\u0307", "\u0130"
_CAPITAL_I = (  # all that the map makes I of
    r"[I\x{1D35}\x{2110}\x{2111}\x{2160}\x{24BE}\x{FF29}\x{1D408}\x{1D43C}\x{1D470}\x{1D4D8}"
    r"\x{1D540}\x{1D574}\x{1D5A8}\x{1D5DC}\x{1D610}\x{1D644}\x{1D678}\x{1CCDE}\x{1F138}]"
)
_ANY = r"[\s\S]"

# Characters that may belong to a cluster with the one before, or compose with it, themselves or
# what the map makes of them: marks, joiners, Thai and Lao AM, parts of Korean syllables, half-width
# voicing marks, modifiers and tags of emoji; a line feed behind a carriage return; and what the
# regular expressions do not know yet, but the clusters may.
_CLINGING = (
    rf"(?![{_APART}-{_KEPT_I}])"
    r"[\p{M}\p{Cn}\n\x{200C}\x{200D}\x{0E33}\x{0EB3}\x{1100}-\x{11FF}\x{3131}-\x{318E}"
    r"\x{A960}-\x{A97F}\x{D7B0}-\x{D7FF}\x{FF9E}-\x{FFDC}\x{1F3FB}-\x{1F3FF}\x{E0020}-\x{E007F}"
    r"\x{16D63}\x{16D67}]"
)


@dataclass(frozen=True)
class Unigram:
    """What of a SentencePiece model decides the ids.

    Attributes:
        pieces, scores: by id.
        decoys: pieces that text cannot give, but whose letters text can have.
        charsmap: the normaliser's; empty if it changes no character.
        keeps_text: whether U+2581 is spelt in bytes.
        add_dummy_prefix, remove_extra_whitespaces: of the normaliser.
        special_ids: by role.
    """

    pieces: Sequence[str]
    scores: Sequence[float]
    decoys: Sequence[str]
    charsmap: bytes
    keeps_text: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    special_ids: Mapping[str, int]


def tokenizer_json(model: Unigram) -> bytes:
    """Return the file's content."""
    mark = " " if model.keeps_text else _MARK
    pieces = [piece.replace(_MARK, mark) for piece in model.pieces]
    decoder: list[Json] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if not model.keeps_text:
        decoder.insert(0, _replace(_MARK, " "))
    if model.add_dummy_prefix:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    added = special_tokens(model.special_ids)
    for token in added:
        # The space before a masked word belongs to its first piece.
        token["lstrip"] = token["content"] == "[MASK]"
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": list(_normalizers(model))},
        "pre_tokenizer": _pre_tokenizer(model.decoys, pieces),
        "post_processor": template(model.special_ids),
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": {
            "type": "Unigram",
            "unk_id": model.special_ids["unk"],
            "vocab": list(zip(pieces, model.scores, strict=True)),
            "byte_fallback": True,
        },
    }
    return json.dumps(content, ensure_ascii=False).encode()


def _normalizers(model: Unigram) -> Iterable[Json]:
    if model.charsmap:
        yield from _map_characters(model.charsmap)
    if model.remove_extra_whitespaces:
        yield _replace_all(" {2,}", " ")
        yield _replace_all(f"(?<!{_ANY}) |[ {_MARK}]+(?!{_ANY})", "")
    if model.add_dummy_prefix:
        yield {"type": "Prepend", "prepend": _MARK}
    if not model.keeps_text:
        yield _replace(" ", _MARK)


def _map_characters(charsmap: bytes) -> Iterable[Json]:
    """Apply a character map as SentencePiece does: at each place its longest string."""
    yield _replace_all(f"[{_APART}-{_KEPT_I}]", "")
    sequences = sequences_pattern(charsmap)
    one_go = f"(?:{sequences}|{_ANY})" if sequences else _ANY
    # A match of no characters inserts: behind what is before \K.
    yield _replace_all(rf"(?={_ANY}{_CLINGING}){one_go}\K", _APART)
    yield _replace_all(f"(?<=[^{_APART}])(?={_CLINGING})", _WITHIN)
    yield _replace(_WITHIN + _IOTA_BELOW, _WITHIN + _KEPT_IOTA)
    yield _replace_all(_CAPITAL_I + _WITHIN + _DOT_ABOVE, _KEPT_I)
    yield {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(charsmap).decode(),
    }
    yield _replace(_KEPT_IOTA, _IOTA_BELOW)
    yield _replace(_KEPT_I, _DOTTED_I)
    yield _replace(_WITHIN, "")
    yield {"type": "NFC"}
    yield _replace(_APART, "")


def _pre_tokenizer(decoys: Sequence[str], pieces: Sequence[str]) -> Json | None:
    """Cut texts within what looks like a piece that no text gives."""
    hidden = set(decoys)
    pairs = Counter(
        piece[at : at + 2]
        for piece in pieces
        if piece not in hidden
        for at in range(len(piece) - 1)
    )
    cuts: dict[str, list[str]] = defaultdict(list)  # what is behind the cut by what is before
    for decoy in decoys:
        # Between two letters that are side by side in no piece, or in the fewest.
        cut = min(range(1, len(decoy)), key=lambda cut: pairs[decoy[cut - 1 : cut + 1]])
        cuts[decoy[:cut]].append(decoy[cut:])
    if not cuts:
        return None
    patterns = (
        (f"(?<={re.escape(before[:-1])})" if before[1:] else "")
        + f"{re.escape(before[-1])}(?={'|'.join(map(re.escape, behind))})"
        for before, behind in cuts.items()
    )
    return {
        "type": "Split",
        "pattern": {"Regex": "|".join(patterns)},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }


def _replace(old: str, new: str) -> Json:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _replace_all(pattern: str, new: str) -> Json:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": new}
