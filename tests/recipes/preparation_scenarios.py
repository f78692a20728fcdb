"""Corpora for the tests of the preparation, and what it made of them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from recipes import prepare_data
from recipes.corpus.token_shards import open_shards

WORDS = "river stone window garden letter music silver winter summer paper bridge candle".split()


def documents(count: int, seed: int = 0) -> list[str]:
    """Documents of 6 to 31 words, no two alike."""
    draw = random.Random(seed)
    return [f"{n} " + " ".join(draw.choices(WORDS, k=draw.randint(5, 30))) for n in range(count)]


def prepare(corpus: Path | str, output: Path | str, *more: str) -> int:
    """Run the command, with a small vocabulary and in this process, unless `more` says other."""
    options = ["--vocab-size", "320", "--workers", "1", *more]
    return prepare_data.main(["--input", str(corpus), "--output", str(output), *options])


def stored(output: Path, split: str) -> list[list[int]]:
    """The documents of a split, as token ids."""
    return [
        shard.tokens[start : start + length].tolist()
        for shard in open_shards(output, split).shards
        for start, length in zip(
            np.asarray(shard.pointers) // shard.tokens.itemsize, shard.lengths, strict=True
        )
    ]
