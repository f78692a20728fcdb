"""Masked words: sentences that have some, and what a pretrained model guesses for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from model.masked_lm import RapidBertForMaskedLM
from recipes.common.errors import UserError
from recipes.corpus.text_records import is_unicode
from recipes.corpus.token_shards import open_shards
from recipes.corpus.tokenizer import Tokenizer

MASK = "[MASK]"


class Filled(NamedTuple):
    """One masked word and the model's guesses, the best first."""

    text: str
    guesses: list[tuple[str, float]]


def sentence_faults(sentences: Sequence[str]) -> Iterator[str]:
    """Name the sentences that nothing can be guessed for."""
    yield from (f"no {MASK} in {text!r}" for text in sentences if MASK not in text)
    yield from (f"not UTF-8: {text!r}" for text in sentences if not is_unicode(text))


@torch.inference_mode()
def fill(
    model: RapidBertForMaskedLM, tokenizer: Tokenizer, sentences: Sequence[str], top: int
) -> list[Filled]:
    """Guess every `[MASK]` in `sentences`.

    Args:
        top: guesses per mask.

    Raises:
        UserError: sentences without a mask or in another encoding, all of them named; one that is
            too long for the model.
    """
    if faults := list(sentence_faults(sentences)):
        raise UserError(*faults)
    results = []
    for text in sentences:
        ids, masks = [tokenizer.cls_id], text.count(MASK)
        for number, part in enumerate(text.split(MASK)):
            # Text cannot spell a control symbol, so the masks are put between the encoded parts.
            # A word's piece begins with the space before it, so the mask stands for that too.
            ids += [tokenizer.mask_id] * (number > 0)
            ids += tokenizer.encode(part.removesuffix(" ") if number < masks else part)
        ids.append(tokenizer.sep_id)
        if model.config.positions == "learned" and len(ids) > model.config.max_positions:
            raise UserError(
                f"{len(ids)} tokens, the model has positions for {model.config.max_positions}: "
                f"{text[:60]!r}..."
            )
        tokens = torch.tensor(ids)
        rows = (tokens == tokenizer.mask_id).nonzero()[:, 0]
        offsets = torch.tensor([0, len(ids)], dtype=torch.int32)
        logits = model.logits(tokens, offsets, len(ids), rows)[:, : tokenizer.vocab_size]
        if not logits.isfinite().all():
            raise UserError(f"the model's numbers for {text[:60]!r} are not finite; train it again")
        shares, pieces = logits.float().softmax(-1).topk(min(top, tokenizer.vocab_size))
        for share, piece in zip(shares.tolist(), pieces.tolist(), strict=True):
            words = [tokenizer.shown(number) for number in piece]
            results.append(Filled(text, list(zip(words, share, strict=True))))
    return results


def held_out_sentences(data: Path, tokenizer: Tokenizer, count: int) -> list[str]:
    """Take sentences of the validation split, evenly spread, and mask one word of each.

    The longest whole word that is a single piece is masked: most of the others are articles.

    Raises:
        UserError: the data are not prepared with this tokenizer, or have no sentence.
    """
    shards = open_shards(data, "validation", tokenizer_fingerprint=tokenizer.fingerprint).shards
    found: list[str] = []
    documents = (
        shard.tokens[pointer // shard.tokens.itemsize :][:length].tolist()
        for shard in shards
        for pointer, length in zip(shard.pointers.tolist(), shard.lengths.tolist(), strict=True)
    )
    for ids in itertools.islice(documents, 4096):
        for sentence in tokenizer.decode(ids).replace("\n", " ").split(". "):
            if masked := _mask_longest_word(sentence.strip(), tokenizer):
                found.append(masked)
    if not found:
        raise UserError(f"{data}: the validation split has no sentence of 8 to 30 words")
    step = max(1, len(found) // count)
    return found[::step][:count]


def _mask_longest_word(sentence: str, tokenizer: Tokenizer) -> str | None:
    words = sentence.split(" ")
    if not 8 <= len(words) <= 30 or not sentence.replace(" ", "").isascii():
        return None
    single = [
        position
        for position, word in enumerate(words)
        if word.isalpha() and position > 0 and _is_one_piece(word, tokenizer)
    ]
    if not single:
        return None
    position = max(single, key=lambda position: len(words[position]))
    return " ".join([*words[:position], MASK, *words[position + 1 :]]) + "."


def _is_one_piece(word: str, tokenizer: Tokenizer) -> bool:
    ids = tokenizer.encode(" " + word)
    return len(ids) == 1 and ids != [tokenizer.unk_id]
