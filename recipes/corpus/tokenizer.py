"""The tokenizer: a SentencePiece unigram model whose five special ids no text can produce.

[PAD] [UNK] [CLS] [SEP] [MASK] have the ids 0 to 4. All but [UNK] are control symbols, which
SentencePiece never finds in text. User-defined symbols it would find, and a document with the
characters "[MASK]" could then pretend that a position is masked. Characters outside the alphabet
are spelt in UTF-8 bytes (byte fallback), so [UNK] does not occur either.

A normaliser changes a text before it is cut into pieces. All but `identity` make one of several
spaces. `identity` changes nothing, and its ids give back the text.
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from recipes.common.errors import UserError
from recipes.common.files import write_whole

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(len(SPECIAL_PIECES))
SPECIAL_IDS = {"pad": PAD_ID, "unk": UNK_ID, "cls": CLS_ID, "sep": SEP_ID, "mask": MASK_ID}

# Normalisers by SentencePiece's names, the default first.
IDENTITY = "identity"
NORMALIZERS = ("nmt_nfkc_cf", "nmt_nfkc", "nfkc_cf", "nfkc", IDENTITY)

MIN_VOCAB_SIZE = len(SPECIAL_PIECES) + 256 + 1  # special pieces, the bytes, one character

# The sums of the E step depend on how the sentences are dealt to threads, and the pieces on the
# sums: a fixed number gives the same vocabulary on every machine, however many cores it has.
TRAINING_THREADS = 16
_SENTENCE_CHARACTERS = 1000  # at most 4 bytes each: below SentencePiece's own limit of 4192 bytes

# Training looks at every different word several dozen times. Text without spaces (DNA, proteins)
# has no words that repeat, and takes a minute of processor time per megabyte; to estimate how
# frequent each piece is, a part does.
_UNBROKEN_CHARACTERS = 40  # per space, on average, in a sentence that counts as without spaces
_UNBROKEN_BYTES_PER_PIECE = 1000
_SIGN_OF_LIFE_SECONDS = 15

_SPACE_MARK = "\u2581"  # SentencePiece's, in place of a space
_SPACE_MARK_PIECES = [f"<0x{byte:02X}>" for byte in _SPACE_MARK.encode()]

# The fingerprint once covered the pieces and the normaliser's name alone. Tokenizers with these
# digests of everything else keep that fingerprint, so that older data and exports are recognised.
_FINGERPRINTED_BY_NAME = {
    "nmt_nfkc_cf": "2ae4c1501ae675dcf9e8c1e172dc0b2bc9606cb44261a5558dd5a2817d1243c4",
    "nmt_nfkc": "0450b93e6128ff4dd6504d14c73e3867bcc802700c333703aeb16ed16e22422b",
}

_TOO_LARGE = re.compile(r"Vocabulary size too high .*<= (\d+)")
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


class Tokenizer:
    """A trained SentencePiece model with the special ids of this recipe.

    Attributes:
        pad_id, unk_id, cls_id, sep_id, mask_id: 0 to 4.

    Raises:
        UserError: no such file, not a SentencePiece model, or other special ids.
    """

    pad_id, unk_id, cls_id, sep_id, mask_id = PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            self.proto = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
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
        """Number of pieces, the special ones included."""
        return self._processor.get_piece_size()

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """The pieces in the order of their ids."""
        return tuple(self._processor.id_to_piece(list(range(self.vocab_size))))

    @cached_property
    def _model(self) -> Any:
        from sentencepiece import sentencepiece_model_pb2 as protocol

        # The generated module makes its classes at run time.
        return protocol.ModelProto.FromString(self.proto)  # type: ignore[attr-defined]

    @property
    def normalizer(self) -> str:
        """Name of the normaliser, such as `nmt_nfkc_cf`."""
        return str(self._model.normalizer_spec.name)

    @cached_property
    def keeps_text(self) -> bool:
        """Tells whether `decode` gives back exactly what was encoded."""
        spec, trainer = self._model.normalizer_spec, self._model.trainer_spec
        changes = spec.precompiled_charsmap or self._model.denormalizer_spec.precompiled_charsmap
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
        model = self._model
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
        """Cut a text into pieces; returns their ids, without [CLS] and [SEP]."""
        if self.keeps_text and _SPACE_MARK in text:
            return self._encode_space_marks(text)
        ids: list[int] = self._processor.encode(text)
        return ids

    def begins_word(self, index: int) -> bool:
        """Tell whether a piece begins a word, with the space before it."""
        return self.pieces[index].startswith(_SPACE_MARK)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts on one thread: here processes run in parallel, not threads."""
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
        """Turn ids into text; control symbols vanish, and normalisation is not undone."""
        return str(self._processor.decode([int(index) for index in ids]))

    def vocabulary(self) -> str:
        """List a piece and its score per line, as SentencePiece does in `.vocab` files."""
        scores = self._processor.get_score(list(range(self.vocab_size)))
        return "".join(f"{p}\t{s:g}\n" for p, s in zip(self.pieces, scores, strict=True))


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Encode each text as an int32 array [tokens] of ids, without [CLS] and [SEP]."""
    return [np.array(ids, dtype=np.int32) for ids in tokenizer.encode_batch(texts)]


def train_tokenizer(
    texts: Iterable[str],
    model_path: Path | str,
    vocab_size: int = 30522,
    *,
    normalizer: str = "nmt_nfkc_cf",
    sample_bytes: int = 64 << 20,
) -> Tokenizer:
    """Train a unigram model and write it, whole or not at all.

    The same texts give the same vocabulary on every machine.

    Args:
        texts: documents, read until there are `sample_bytes`; memory is about 20 bytes for each.
        model_path: the `.model` file to write.
        vocab_size: pieces, the special ones and the 256 bytes included.
        normalizer: one of NORMALIZERS.
        sample_bytes: UTF-8 bytes of text to train on.

    Raises:
        UserError: the text is too small or has too large an alphabet for the vocabulary.
        OSError: the file cannot be written.
    """
    exact = normalizer == IDENTITY
    # A list, because SentencePiece turns every exception of an iterator into a RuntimeError.
    sentences = _thinned(list(_sentences(texts, sample_bytes, exact=exact)), vocab_size)
    model = io.BytesIO()
    try:
        with _sign_of_life("training the tokenizer"):
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                model_type="unigram",
                vocab_size=vocab_size,
                normalization_rule_name=normalizer,
                byte_fallback=True,
                pad_id=PAD_ID,
                pad_piece=SPECIAL_PIECES[PAD_ID],
                unk_id=UNK_ID,
                unk_piece=SPECIAL_PIECES[UNK_ID],
                # SentencePiece's begin and end of sentence are control symbols with an id of
                # choice.
                bos_id=CLS_ID,
                bos_piece=SPECIAL_PIECES[CLS_ID],
                eos_id=SEP_ID,
                eos_piece=SPECIAL_PIECES[SEP_ID],
                control_symbols=[SPECIAL_PIECES[MASK_ID]],
                # Indentation becomes pieces of several spaces.
                add_dummy_prefix=not exact,
                remove_extra_whitespaces=not exact,
                allow_whitespace_only_pieces=exact,
                num_threads=TRAINING_THREADS,
                minloglevel=2,
            )
    except RuntimeError as error:
        raise UserError(_explain(str(error), vocab_size)) from None
    write_whole(Path(model_path), model.getvalue())
    return Tokenizer(model_path)


@contextmanager
def _sign_of_life(work: str) -> Iterator[None]:
    """Print every few seconds that `work` goes on, which says nothing itself before its end."""
    began, ended = time.monotonic(), threading.Event()

    def speak() -> None:
        while not ended.wait(_SIGN_OF_LIFE_SECONDS):
            print(f"{work}: at it for {time.monotonic() - began:.0f} s", flush=True)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _sentences(texts: Iterable[str], sample_bytes: int, *, exact: bool = False) -> Iterator[str]:
    """Yield lines; long ones are cut at spaces, because SentencePiece drops longer sentences.

    Args:
        exact: keep the white space at both ends of the lines.
    """
    budget = sample_bytes
    for text in texts:
        for line in text.splitlines():
            while line := line if exact and not line.isspace() else line.strip():
                end = len(line)
                if end > _SENTENCE_CHARACTERS:
                    end = line.rfind(" ", 0, _SENTENCE_CHARACTERS)
                    end = _SENTENCE_CHARACTERS if end <= 0 else end
                sentence, line = line[:end], line[end:]
                yield sentence
                budget -= len(sentence.encode())
                if budget <= 0:
                    return


def _thinned(sentences: list[str], vocab_size: int) -> list[str]:
    """Leave out some of the text without spaces, evenly spread, where there is more than enough.

    Prints how much is kept.
    """
    sizes = {
        number: len(sentence.encode())
        for number, sentence in enumerate(sentences)
        if len(sentence) > _UNBROKEN_CHARACTERS * (sentence.count(" ") + 1)
    }
    found, enough = sum(sizes.values()), _UNBROKEN_BYTES_PER_PIECE * vocab_size
    if found <= enough:
        return sentences
    unbroken = list(sizes)
    kept = unbroken[:: -(-found // enough)]
    size = sum(sizes[number] for number in kept)
    print(
        f"{found:,} bytes of text almost without spaces: the tokenizer is trained on {size:,} of "
        f"them, spread evenly ({_UNBROKEN_BYTES_PER_PIECE:,} bytes for each piece are enough)"
    )
    left_out = sizes.keys() - set(kept)
    return [text for number, text in enumerate(sentences) if number not in left_out]


def _explain(message: str, vocab_size: int) -> str:
    if match := _TOO_LARGE.search(message):
        return (
            f"the text is too small for a vocabulary of {vocab_size} pieces: "
            f"it allows at most --vocab-size {match[1]}"
        )
    if match := _TOO_SMALL.search(message):
        return (
            f"a vocabulary of {vocab_size} pieces is too small for this text: its alphabet, the "
            f"bytes and the special pieces need at least --vocab-size {match[1]}"
        )
    if "sentences_.empty()" in message:
        return "there is no text to train a tokenizer on"
    return f"SentencePiece could not train a tokenizer: {message}"
