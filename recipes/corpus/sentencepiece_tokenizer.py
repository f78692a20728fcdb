"""A SentencePiece unigram model whose five special ids no text can produce.

[PAD] [UNK] [CLS] [SEP] [MASK] have the ids 0 to 4. All but [UNK] are control symbols, which
SentencePiece never finds in text. User-defined symbols it would find, and a document with the
characters "[MASK]" could then pretend that a position is masked. Characters outside the alphabet
are spelt in UTF-8 bytes (byte fallback), so [UNK] does not occur either.

A normaliser changes a text before it is cut into pieces. All but `identity` make one of several
spaces. `identity` changes nothing, and its ids give back the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece

from recipes.common.errors import UserError
from recipes.corpus.hf_tokenizer_files import tokenizer_config
from recipes.corpus.hf_unigram import Unigram, tokenizer_json
from recipes.corpus.tokenizer_interface import ROLES, SPECIAL_PIECES, Tokenizer, read_file

PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(len(SPECIAL_PIECES))
SPECIAL_IDS = {role: index for index, role in enumerate(ROLES)}

# Normalisers by SentencePiece's names, the default first.
IDENTITY = "identity"
NORMALIZERS = ("nmt_nfkc_cf", "nmt_nfkc", "nfkc_cf", "nfkc", IDENTITY)

_SPACE_MARK = "\u2581"  # SentencePiece's, in place of a space
_SPACE_MARK_PIECES = [f"<0x{byte:02X}>" for byte in _SPACE_MARK.encode()]

# The fingerprint once covered the pieces and the normaliser's name alone. Tokenizers with these
# digests of everything else keep that fingerprint, so that older data and exports are recognised.
_FINGERPRINTED_BY_NAME = {
    "nmt_nfkc_cf": "2ae4c1501ae675dcf9e8c1e172dc0b2bc9606cb44261a5558dd5a2817d1243c4",
    "nmt_nfkc": "0450b93e6128ff4dd6504d14c73e3867bcc802700c333703aeb16ed16e22422b",
}


class SentencePieceTokenizer(Tokenizer):
    """A trained SentencePiece model with the special ids of this recipe.

    Attributes:
        pad_id, unk_id, cls_id, sep_id, mask_id: 0 to 4.

    Raises:
        UserError: no such file, not a SentencePiece model, or other special ids.
    """

    kind = "sentencepiece"
    pad_id, unk_id, cls_id, sep_id, mask_id = PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.proto = read_file(self.path)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.proto)
            pieces = self._processor.get_piece_size()
        except RuntimeError:
            pieces = 0
        if pieces == 0:
            raise UserError(f"{path}: not a SentencePiece model")
        if faults := list(self._special_faults()):
            raise UserError(*faults)

    def _special_faults(self) -> Iterator[str]:
        for index, piece in enumerate(SPECIAL_PIECES):
            found = self._processor.id_to_piece(index) if index < self.vocab_size else "nothing"
            if found != piece:
                yield f"{self.path}: id {index} is {found}; it must be {piece}"
            elif index != UNK_ID and not self._processor.is_control(index):
                yield f"{self.path}: {piece} must be a control symbol, or text could inject it"

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        return tuple(self._processor.id_to_piece(list(range(self.vocab_size))))

    @cached_property
    def description(self) -> Any:
        """SentencePiece's own description of the model, a `ModelProto`."""
        from sentencepiece import sentencepiece_model_pb2 as protocol

        # The generated module makes its classes at run time.
        return protocol.ModelProto.FromString(self.proto)  # type: ignore[attr-defined]

    @property
    def normalizer(self) -> str:
        return str(self.description.normalizer_spec.name)

    @cached_property
    def keeps_text(self) -> bool:
        spec, trainer = self.description.normalizer_spec, self.description.trainer_spec
        changes = (
            spec.precompiled_charsmap or self.description.denormalizer_spec.precompiled_charsmap
        )
        spaces = spec.add_dummy_prefix or spec.remove_extra_whitespaces
        return bool(trainer.byte_fallback and spec.escape_whitespaces and not (changes or spaces))

    @cached_property
    def lower_case(self) -> bool:
        """Tells whether case is folded, whatever the normaliser is called."""
        return bool(self._processor.normalize("Ab") == self._processor.normalize("ab"))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the ids of a text, and the text of ids.

        That is the pieces with their types and scores, the normaliser's name, flags and character
        map, the denormaliser's map, and the algorithm. The `.model` file also records how it
        was trained, so its bytes may differ between equal tokenizers.
        """
        digest = hashlib.sha256(self.normalizer.encode())
        processor = self._processor
        for index, piece in enumerate(self.pieces):
            kind = (
                processor.is_control(index),
                processor.is_unknown(index),
                processor.is_byte(index),
                processor.is_unused(index),
            )
            digest.update(repr((piece, kind, processor.get_score(index))).encode())
        beside = self._beside_the_pieces()
        if _FINGERPRINTED_BY_NAME.get(self.normalizer) != beside:
            digest.update(beside.encode())
        return digest.hexdigest()

    def _beside_the_pieces(self) -> str:
        model = self.description
        trainer, normalizer, denormalizer = (
            model.trainer_spec,
            model.normalizer_spec,
            model.denormalizer_spec,
        )
        user_defined = model.SentencePiece.USER_DEFINED
        decides = (
            *(trainer.model_type, trainer.byte_fallback, trainer.treat_whitespace_as_suffix),
            trainer.unk_surface,
            *(normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces),
            normalizer.escape_whitespaces,
            normalizer.precompiled_charsmap,
            denormalizer.precompiled_charsmap,
            [index for index, piece in enumerate(model.pieces) if piece.type == user_defined],
        )
        return hashlib.sha256(repr(decides).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        if self.keeps_text and _SPACE_MARK in text:
            return self._encode_space_marks(text)
        ids: list[int] = self._processor.encode(text)
        return ids

    def begins_word(self, index: int) -> bool:
        """Tell whether a piece begins a word, with the space before it."""
        return self.pieces[index].startswith(_SPACE_MARK)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encoded: list[list[int]] = self._processor.encode(list(texts), num_threads=1)
        if self.keeps_text:
            for number, text in enumerate(texts):
                if _SPACE_MARK in text:
                    encoded[number] = self._encode_space_marks(text)
        return encoded

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a text, and tell which characters of it each piece is made of.

        White space before a word belongs to its first piece. Pieces that share a character, such
        as its bytes, all have its place.

        Returns:
            The ids, as `encode` has them, and for each the place of its first character and that
            behind its last.
        """
        marked = self.keeps_text and _SPACE_MARK in text
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        begin = 0
        for part in text.split(_SPACE_MARK) if marked else [text]:
            if begin:  # the mark before this part
                mark: list[int] = self._processor.piece_to_id(_SPACE_MARK_PIECES)
                ids += mark
                spans += [(begin - 1, begin)] * len(mark)
            found = self._processor.encode(part, return_type="offset_mapping")
            ids += found["ids"]
            end = begin + len(part)
            widened = []
            for first, last in reversed(found["offsets"]):
                # SentencePiece gives a shared character to the last of its pieces.
                end = begin + last if first < last else end
                widened.append((begin + first, end))
            spans += reversed(widened)
            begin += len(part) + 1
        return ids, spans

    def _encode_space_marks(self, text: str) -> list[int]:
        """Encode a text, and spell in bytes the character that SentencePiece takes for a space."""
        mark: list[int] = self._processor.piece_to_id(_SPACE_MARK_PIECES)
        parts: list[list[int]] = [self._processor.encode(part) for part in text.split(_SPACE_MARK)]
        return parts[0] + [index for part in parts[1:] for index in (*mark, *part)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode([int(index) for index in ids]))

    def shown(self, index: int) -> str:
        """Return a piece without the mark of the space before it; of nothing else, a space."""
        return self.pieces[index].replace(_SPACE_MARK, "") or " "

    def hf_files(self, max_length: int | None = None) -> dict[str, bytes]:
        """Return `tokenizer.json` and `tokenizer_config.json`.

        Raises:
            UserError: the model has something that `tokenizers` has no counterpart of.
        """
        if faults := list(self.why_no_hf_files()):
            raise UserError(*faults)
        spec, processor = self.description.normalizer_spec, self._processor
        ids = range(self.vocab_size)
        hidden = [i for i in ids if processor.is_control(i) or processor.is_unknown(i)]
        decoys = [self.pieces[i] for i in (*hidden, *filter(processor.is_byte, ids))]
        model = Unigram(
            pieces=self.pieces,
            scores=processor.get_score(list(ids)),
            # Where case is folded, no text has the capitals of most of them.
            decoys=[p for p in decoys if processor.normalize(p).strip(_SPACE_MARK) == p],
            charsmap=spec.precompiled_charsmap,
            keeps_text=self.keeps_text,
            add_dummy_prefix=spec.add_dummy_prefix,
            remove_extra_whitespaces=spec.remove_extra_whitespaces,
            special_ids=self.special_ids,
        )
        return {
            "tokenizer.json": tokenizer_json(model),
            "tokenizer_config.json": tokenizer_config(max_length),
        }

    def files(self, max_length: int | None = None) -> dict[str, bytes]:
        """Return the model and the list of its pieces, and what `hf_files` can make of it."""
        own = {"tokenizer.model": self.proto, "tokenizer.vocab": self.vocabulary().encode()}
        return own if any(self.why_no_hf_files()) else own | self.hf_files(max_length)

    def why_no_hf_files(self) -> Iterator[str]:
        """Say what this model has that `tokenizers` has no counterpart of; nothing, if all."""
        model = self.description
        trainer, spec, user_defined = (
            model.trainer_spec,
            model.normalizer_spec,
            model.SentencePiece.USER_DEFINED,
        )
        reasons = (
            (trainer.model_type != trainer.UNIGRAM, "it is no unigram model"),
            (not trainer.byte_fallback, "it does not spell unknown characters in bytes"),
            (trainer.treat_whitespace_as_suffix, "white space belongs to the word before"),
            (not spec.escape_whitespaces, "spaces have no mark"),
            (any(p.type == user_defined for p in model.pieces), "it has user-defined pieces"),
        )
        for applies, reason in reasons:
            if applies:
                yield f"{self.path}: no tokenizer.json can be made of it: {reason}"

    def vocabulary(self) -> str:
        """List a piece and its score per line, as SentencePiece does in `.vocab` files."""
        scores = self._processor.get_score(list(range(self.vocab_size)))
        return "".join(f"{p}\t{s:g}\n" for p, s in zip(self.pieces, scores, strict=True))
