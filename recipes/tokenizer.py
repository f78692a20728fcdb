"""The tokenizer: a SentencePiece unigram model whose five special ids no text can produce.

[PAD] [UNK] [CLS] [SEP] [MASK] have the ids 0 to 4. All but [UNK] are control symbols, which
SentencePiece never matches in text; a user-defined symbol would be, and a document holding the
characters "[MASK]" could then unmask or forge positions. Characters outside the alphabet are spelt
in UTF-8 bytes (byte fallback), so [UNK] does not occur either.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from recipes.cli import UserError
from recipes.whole_files import write_whole

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(len(SPECIAL_PIECES))
SPECIAL_IDS = {"pad": PAD_ID, "unk": UNK_ID, "cls": CLS_ID, "sep": SEP_ID, "mask": MASK_ID}

MIN_VOCAB_SIZE = len(SPECIAL_PIECES) + 256 + 1  # special pieces, the bytes, one character

# The sums of the E step depend on how the sentences are dealt to threads, and the pieces on the
# sums: a fixed number gives the same vocabulary on every machine, however many cores it has.
TRAINING_THREADS = 16
_SENTENCE_CHARACTERS = 1000  # at most 4 bytes each: below SentencePiece's own limit of 4192 bytes

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
    def normalizer(self) -> str:
        """Name of the Unicode normalisation, such as `nmt_nfkc_cf`."""
        from sentencepiece import sentencepiece_model_pb2 as protocol

        # The generated module makes its classes at run time.
        model = protocol.ModelProto.FromString(self.proto)  # type: ignore[attr-defined]
        return model.normalizer_spec.name

    @property
    def lower_case(self) -> bool:
        """Whether text is case-folded."""
        return self.normalizer.endswith("_cf")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the ids of a text: pieces, types, scores, normalisation.

        The `.model` file itself also records how it was trained, so its bytes may differ between
        equal tokenizers.
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
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without [CLS] and [SEP]."""
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, on one thread: processes are what runs in parallel here."""
        return self._processor.encode(list(texts), num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control symbols vanish, normalisation is not undone."""
        return self._processor.decode([int(index) for index in ids])

    def vocabulary(self) -> str:
        """Piece and score per line: the `.vocab` file SentencePiece writes beside its models."""
        scores = self._processor.get_score(list(range(self.vocab_size)))
        return "".join(f"{p}\t{s:g}\n" for p, s in zip(self.pieces, scores, strict=True))


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text as an int32 array [tokens], without [CLS] and [SEP]."""
    return [np.array(ids, dtype=np.int32) for ids in tokenizer.encode_batch(texts)]


def train_tokenizer(
    texts: Iterable[str],
    model_path: Path | str,
    vocab_size: int = 30522,
    *,
    lower_case: bool = True,
    sample_bytes: int = 64 << 20,
) -> Tokenizer:
    """Train a unigram model and write it, whole or not at all.

    The same texts give the same vocabulary on every machine.

    Args:
        texts: documents; read until `sample_bytes` are reached, so memory is bounded by it
            (about 20 bytes per byte of text).
        model_path: the `.model` file to write.
        vocab_size: pieces, the special ones and the 256 bytes included.
        lower_case: fold case (normalisation `nmt_nfkc_cf`), else keep it (`nmt_nfkc`).
        sample_bytes: UTF-8 bytes of text to train on.

    Raises:
        UserError: the text is too small or has too large an alphabet for the vocabulary.
        OSError: the file cannot be written.
    """
    # SentencePiece turns every exception of an iterator into a RuntimeError of its own.
    sentences = list(_sentences(texts, sample_bytes))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            normalization_rule_name="nmt_nfkc_cf" if lower_case else "nmt_nfkc",
            byte_fallback=True,
            pad_id=PAD_ID,
            pad_piece=SPECIAL_PIECES[PAD_ID],
            unk_id=UNK_ID,
            unk_piece=SPECIAL_PIECES[UNK_ID],
            # SentencePiece's begin and end of sentence are control symbols with an id of choice.
            bos_id=CLS_ID,
            bos_piece=SPECIAL_PIECES[CLS_ID],
            eos_id=SEP_ID,
            eos_piece=SPECIAL_PIECES[SEP_ID],
            control_symbols=[SPECIAL_PIECES[MASK_ID]],
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_explain(str(error), vocab_size)) from None
    write_whole(Path(model_path), model.getvalue())
    return Tokenizer(model_path)


def _sentences(texts: Iterable[str], sample_bytes: int) -> Iterator[str]:
    """Lines, the longest cut at a space: SentencePiece drops what exceeds its limit."""
    budget = sample_bytes
    for text in texts:
        for line in text.splitlines():
            while line := line.strip():
                end = len(line)
                if end > _SENTENCE_CHARACTERS:
                    end = line.rfind(" ", 0, _SENTENCE_CHARACTERS)
                    end = _SENTENCE_CHARACTERS if end <= 0 else end
                sentence, line = line[:end], line[end:]
                yield sentence
                budget -= len(sentence.encode())
                if budget <= 0:
                    return


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
