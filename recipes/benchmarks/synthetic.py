"""Token shards of made-up documents, for measurements that need no text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from recipes.common.files import write_whole
from recipes.corpus.sentencepiece_tokenizer import SPECIAL_IDS
from recipes.corpus.token_shards import MANIFEST_FORMAT, MANIFEST_NAME, ShardWriter


def write_synthetic_data(
    directory: Path,
    documents: int = 20_000,
    *,
    vocab_size: int = 30_522,
    mean_length: float = 400.0,
) -> None:
    """Write random tokens in documents whose lengths are spread as C4's are (log-normal).

    Args:
        mean_length: tokens; C4's documents have about 400.
    """
    generator = np.random.default_rng(0)
    sigma = 0.9
    drawn = generator.lognormal(np.log(mean_length) - sigma**2 / 2, sigma, documents)
    lengths = np.clip(drawn, 1, 125 * mean_length).astype(int)
    with ShardWriter(directory / "train-00000", vocab_size) as writer:
        for length in lengths.tolist():
            writer.add(generator.integers(len(SPECIAL_IDS), vocab_size, length, dtype=np.int32))
    split = {
        "documents": writer.info["documents"],
        "tokens": writer.info["tokens"],
        "unigram_entropy_nats": float(np.log(vocab_size - len(SPECIAL_IDS))),
        "shards": [writer.info],
    }
    tokenizer = {
        "fingerprint": "synthetic",
        "vocab_size": vocab_size,
        "lower_case": True,
        "special_ids": SPECIAL_IDS,
    }
    manifest = {"format": MANIFEST_FORMAT, "tokenizer": tokenizer, "splits": {"train": split}}
    write_whole(directory / MANIFEST_NAME, json.dumps(manifest).encode())
