"""Prepared token data for the tests: random documents in real shards under a real manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recipes.corpus.token_shards import MANIFEST_FORMAT, MANIFEST_NAME, ShardWriter

SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}

WriteTokenData = Callable[..., Path]


def _entropy_nats(tokens: np.ndarray) -> float:
    share = np.unique(tokens, return_counts=True)[1] / len(tokens)
    return float(-(share * np.log(share)).sum())


@pytest.fixture
def write_token_data(tmp_path: Path) -> WriteTokenData:
    """Writes {split: [[document, ...] per shard]} as a prepared directory and returns its path."""

    def write(
        splits: dict[str, list[list[np.ndarray]]], vocab_size: int = 1000, name: str = "data"
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        listed = {}
        for split, shards in splits.items():
            infos = []
            for number, documents in enumerate(shards):
                with ShardWriter(directory / f"{split}-{number:05}", vocab_size) as writer:
                    for document in documents:
                        writer.add(document)
                infos.append(writer.info)
            listed[split] = {
                "documents": sum(info["documents"] for info in infos),
                "tokens": sum(info["tokens"] for info in infos),
                "unigram_entropy_nats": _entropy_nats(
                    np.concatenate([d for s in shards for d in s])
                ),
                "shards": infos,
            }
        tokenizer = {
            "fingerprint": "0123abcd",
            "vocab_size": vocab_size,
            "lower_case": True,
            "special_ids": SPECIAL_IDS,
        }
        manifest = {"format": MANIFEST_FORMAT, "tokenizer": tokenizer, "splits": listed}
        (directory / MANIFEST_NAME).write_text(json.dumps(manifest))
        return directory

    return write


@pytest.fixture
def token_data(write_token_data: WriteTokenData) -> Path:
    """A prepared directory: three training shards, one validation shard, 1,000 pieces.

    Document lengths run from 1 token to several sequences, so that short, exactly full and split
    ones all occur.
    """
    generator = np.random.default_rng(0)

    def documents(count: int) -> list[np.ndarray]:
        lengths = np.concatenate([[1, 14, 15, 28, 30, 126, 127], generator.integers(1, 300, count)])
        return [generator.integers(len(SPECIAL_IDS), 1000, length) for length in lengths]

    return write_token_data(
        {"train": [documents(90), documents(3), documents(150)], "validation": [documents(40)]}
    )


@pytest.fixture(scope="session")
def finetune_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a toy export to finetune and toy tasks in GLUE's layout; not to be changed."""
    from finetune_scenarios import make_place  # imports the model

    return make_place(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="session")
def models(finetune_place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with exports to use on texts (see `inference_scenarios`); not to be changed."""
    from inference_scenarios import make_models  # imports the model

    return make_models(tmp_path_factory.mktemp("models"), finetune_place / "data")
