"""Trains the tokenizer: a SentencePiece unigram model on a sample of the text."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sentencepiece

from recipes.common.errors import UserError
from recipes.common.files import write_whole
from recipes.corpus.sentencepiece_tokenizer import (
    CLS_ID,
    IDENTITY,
    MASK_ID,
    PAD_ID,
    SEP_ID,
    UNK_ID,
    SentencePieceTokenizer,
)
from recipes.corpus.tokenizer_interface import SPECIAL_PIECES

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

_TOO_LARGE = re.compile(r"Vocabulary size too high .*<= (\d+)")
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


def train_tokenizer(
    texts: Iterable[str],
    model_path: Path | str,
    vocab_size: int = 30522,
    *,
    normalizer: str = "nmt_nfkc_cf",
    sample_bytes: int = 64 << 20,
) -> SentencePieceTokenizer:
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
    return SentencePieceTokenizer(model_path)


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
