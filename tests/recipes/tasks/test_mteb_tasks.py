"""Tasks of MTEB on local data, with a toy export, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from recipes.common.errors import UserError
from recipes.tasks.mteb_tasks import evaluate_locally

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the report said that weather was quite fine again and then bad".split()
NAME = "STSBenchmark.v2"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """STS-B's form: pairs of texts with scores from 0 to 5."""
    folder = tmp_path_factory.mktemp("stsb")
    rng = np.random.default_rng(0)
    records = []
    for _ in range(24):
        first, second = rng.choice(WORDS, 6), rng.choice(WORDS, 6)
        kept = int(rng.integers(6))  # of equal texts the cosines differ by rounding alone
        second[:kept], second[-1] = first[:kept], "other"
        pair = {"sentence1": " ".join(first), "sentence2": " ".join(second)}
        records.append(pair | {"score": kept})
    for split in ("test", "validation"):  # the score is their mean
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def export(finetune_place) -> Path:
    return finetune_place / "run" / "export"


def test_a_task_runs_on_local_data(export, data, monkeypatch):
    import socket

    from sentence_transformers import SentenceTransformer

    def offline(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    found = evaluate_locally(export, {NAME: data})
    records = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    model = SentenceTransformer(str(export), trust_remote_code=True)
    first, second = (
        model.encode([record[f"sentence{n}"] for record in records], normalize_embeddings=True)
        for n in (1, 2)
    )
    expected = stats.spearmanr((first * second).sum(1), [r["score"] for r in records])[0]
    assert found == {NAME: pytest.approx(expected, abs=1e-6)}
    assert expected > 0.3, "even a random encoder sees which words two texts share"


def test_what_is_not_there_is_named(data, tmp_path):
    with pytest.raises(UserError) as error:
        evaluate_locally(tmp_path, {NAME: tmp_path / "none", "STSBenchmrk": data})
    modules, directory, unknown = error.value.faults
    assert modules == f"{tmp_path}: no modules.json there; name the export/ of a run"
    assert directory == f"{NAME}: {tmp_path / 'none'}: no such directory"
    assert unknown.startswith("STSBenchmrk: ") and "not found" in unknown
