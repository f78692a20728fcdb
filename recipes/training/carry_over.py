"""Embeddings from one vocabulary to another, when a model goes on with a new tokenizer.

A piece that both vocabularies have keeps its row, and so do the special pieces, which are matched
by their role. A piece that only the new one has begins as the mean of the rows of the parts into
which the old tokenizer cuts its text (Gee et al., "Fast Vocabulary Transfer for Language Model
Compression", EMNLP 2022, who found that better for BERT than random rows). Of a piece whose text
the old tokenizer does not know at all, the row is drawn with the mean and the standard deviation of
the old rows (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021): the
usual initialiser knows nothing of where the old rows lie.

A piece within a word is cut behind a letter, which is then left out, so that its parts are those
within a word as well.

Where the old tokenizer folds case, `Hospital` begins as `hospital` is: that is its only part.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.weights import DECODER_BIAS, NEVER_PREDICTED, WORD_EMBEDDINGS, State
from recipes.corpus.tokenizer import Tokenizer

ROLES = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_WORD_START, _CONTINUES = "\u2581", "##"  # SentencePiece's mark, WordPiece's


@dataclass(frozen=True)
class CarryOver:
    """Which rows of the old vocabulary each piece of the new one begins as the mean of."""

    parts: tuple[tuple[int, ...], ...]
    """Old ids by new id; one where the piece is shared, none where its row is drawn."""
    shared: int
    """Pieces that keep their row."""
    old_pieces: int

    @property
    def drawn(self) -> int:
        """Count the pieces of whose text the old tokenizer knows nothing."""
        return sum(not part for part in self.parts)

    def __str__(self) -> str:
        composed = len(self.parts) - self.shared - self.drawn
        return (
            f"{self.shared:,} of {len(self.parts):,} pieces keep their rows, {composed:,} begin as "
            f"the mean of their parts', {self.drawn:,} are drawn"
        )

    def apply(self, tensors: State, config: ModelConfig, seed: int) -> State:
        """Return the weights with word embeddings and decoder bias of the new vocabulary.

        Args:
            tensors: under their public names; the decoder's bias may be missing.
            config: of the model with the new vocabulary.
            seed: of the rows that are drawn.
        """
        flat = torch.tensor([index for part in self.parts for index in part], dtype=torch.int64)
        lengths = torch.tensor([0, *(len(part) for part in self.parts)])
        ends = lengths.cumsum(0)
        drawn = lengths[1:] == 0  # [pieces]

        def means(table: Tensor) -> Tensor:
            """Average the rows of parts: [old rows, width] to [pieces, width]; of none, zeros."""
            return F.embedding_bag(flat, table, ends, mode="mean", include_last_offset=True)

        old = tensors[WORD_EMBEDDINGS]
        std, mean = torch.std_mean(old[: self.old_pieces], dim=0)
        noise = torch.randn(
            int(drawn.sum()), old.shape[1], generator=torch.Generator().manual_seed(seed)
        )
        words = means(old)
        words[drawn] = mean + std * noise
        dead = config.padded_vocab_size - len(self.parts)
        changed = {**tensors, WORD_EMBEDDINGS: F.pad(words, (0, 0, 0, dead))}
        if (bias := tensors.get(DECODER_BIAS)) is not None:
            biases = means(bias[:, None])[:, 0]
            biases[drawn] = bias[: self.old_pieces].mean()
            changed[DECODER_BIAS] = F.pad(biases, (0, dead), value=NEVER_PREDICTED)
        return changed


def carry_over(old: Tokenizer, new: Tokenizer) -> CarryOver:
    """Find for each piece of a new vocabulary the rows of the old one that it begins as."""
    alike = type(old) is type(new)
    by_piece = {_key(old, index, alike): index for index in range(old.vocab_size)}
    roles = {getattr(new, role): getattr(old, role) for role in ROLES}
    anchors = _anchors(old)
    parts: list[tuple[int, ...]] = []
    shared = 0
    for index in range(new.vocab_size):
        same = roles[index] if index in roles else by_piece.get(_key(new, index, alike))
        if same is not None:
            shared += 1
            parts.append((same,))
            continue
        text = _text(new, index)
        cut = old.encode(text) if new.begins_word(index) else _cut_within(old, text, anchors)
        parts.append(tuple(part for part in cut if part != old.unk_id))
    return CarryOver(tuple(parts), shared, old.vocab_size)


_ANCHORS = 26  # letters to try: of an alphabet of capitals and small letters that is enough


def _anchors(old: Tokenizer) -> dict[str, list[int]]:
    """Return letters that the old tokenizer knows, with their ids as words of their own."""
    letters = {piece.removeprefix(_WORD_START) for piece in old.pieces}
    # Scripts without small letters may be cut at each character, which hides what is within words.
    small = sorted(letter for letter in letters if len(letter) == 1 and letter.islower())
    cut = {letter: old.encode(letter) for letter in small[:_ANCHORS]}
    return {letter: ids for letter, ids in cut.items() if ids and old.unk_id not in ids}


def _cut_within(old: Tokenizer, text: str, anchors: dict[str, list[int]]) -> list[int]:
    """Cut a text that goes on with a word; as a word of its own where it joins every anchor."""
    for letter, ids in anchors.items():
        cut = old.encode(letter + text)
        if cut[: len(ids)] == ids:
            return cut[len(ids) :]
    return old.encode(text)


def _key(tokenizer: Tokenizer, index: int, alike: bool) -> tuple[bool, str]:
    """What makes a piece the same in two vocabularies: its spelling, and its place in a word."""
    if alike:
        return True, tokenizer.pieces[index]
    return tokenizer.begins_word(index), _text(tokenizer, index).removeprefix(" ")


def _text(tokenizer: Tokenizer, index: int) -> str:
    """Return what a piece stands for in a text, with the space before a word."""
    piece = tokenizer.pieces[index]
    if byte := _BYTE.fullmatch(piece):
        code = int(byte[1], 16)
        return chr(code) if code < 128 else ""  # a part of a character is no text
    if tokenizer.begins_word(index):
        return " " + piece.removeprefix(_WORD_START).replace(_WORD_START, " ")
    return piece.removeprefix(_CONTINUES).replace(_WORD_START, " ")
