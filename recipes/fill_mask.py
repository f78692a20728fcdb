"""Fill in masked words with a pretrained model: the quickest look at what it has learned.

    python recipes/fill_mask.py --checkpoint runs/base "the capital of france is [MASK] ."

Without sentences of its own it takes some from held-out text (--data) and masks a word in each.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

import torch

from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from recipes.common.cli import COUNT, ArgumentParser
from recipes.common.entry import run
from recipes.common.errors import UserError
from recipes.corpus.token_shards import open_shards
from recipes.corpus.tokenizer import Tokenizer
from recipes.training.export import load_with_tokenizer

MASK = "[MASK]"
WORD_START = "\u2581"  # SentencePiece's mark of a piece that begins a word


class Filled(NamedTuple):
    """One masked word and the model's guesses, the best first."""

    text: str
    guesses: list[tuple[str, float]]


def main() -> int:
    options = parse_arguments()
    initialize_parallel()
    model, tokenizer = load_with_tokenizer(options.checkpoint)
    sentences = options.sentences or held_out_sentences(options.data, tokenizer, options.count)
    for filled in fill(model, tokenizer, sentences, options.top):
        print(filled.text)
        print("    " + "   ".join(f"{word} {share:.0%}" for word, share in filled.guesses))
    return 0


@torch.inference_mode()
def fill(
    model: RapidBertForMaskedLM, tokenizer: Tokenizer, sentences: list[str], top: int
) -> list[Filled]:
    """Guess every `[MASK]` in `sentences`.

    Raises:
        UserError: sentences without a mask or in another encoding, all of them named.
    """
    faults = [f"no {MASK} in {text!r}" for text in sentences if MASK not in text]
    faults += [f"not UTF-8: {text!r}" for text in sentences if not _is_unicode(text)]
    if faults:
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
            words = [tokenizer.pieces[number].replace(WORD_START, "") or " " for number in piece]
            results.append(Filled(text, list(zip(words, share, strict=True))))
    return results


def _is_unicode(text: str) -> bool:
    # A byte of another encoding on the command line is half of a surrogate pair in Python.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def held_out_sentences(data: Path | None, tokenizer: Tokenizer, count: int) -> list[str]:
    """Sentences of the validation split, evenly spread, with one word of each masked.

    The longest whole word that is a single piece is masked: most of the others are articles.

    Raises:
        UserError: no data given, or no sentence in them.
    """
    if data is None:
        raise UserError(f"give sentences with {MASK}, or --data to take held-out ones from")
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
        if word.isalpha() and position > 0 and len(tokenizer.encode(" " + word)) == 1
    ]
    if not single:
        return None
    position = max(single, key=lambda position: len(words[position]))
    return " ".join([*words[:position], MASK, *words[position + 1 :]]) + "."


def parse_arguments(arguments: list[str] | None = None) -> Any:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("sentences", nargs="*", help=f"text with {MASK} where a word is to be guessed")
    add("--checkpoint", type=Path, required=True, help="a run, or its export/")
    add("--data", type=Path, help="take held-out sentences from this prepared directory")
    add("--count", type=COUNT, default=5, help="held-out sentences")
    add("--top", type=COUNT, default=3, help="guesses per mask")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
