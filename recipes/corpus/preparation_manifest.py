"""The manifest of a preparation: what was made of which input, with sizes and checksums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipes.common.errors import UserError
from recipes.common.files import write_whole
from recipes.common.json_content import json_bytes
from recipes.corpus.preparation_plan import Plan
from recipes.corpus.preparation_progress import PROGRESS_NAME, Progress
from recipes.corpus.token_shards import MANIFEST_FORMAT, MANIFEST_NAME, Manifest, SplitInfo
from recipes.corpus.tokenizer import Tokenizer


def write_manifest(output: Path, plan: Plan, progress: Progress, tokenizer: Tokenizer) -> Manifest:
    """Write the manifest, which makes the directory a prepared one, and remove `progress.json`.

    Raises:
        UserError: a split has no documents.
    """
    skipped = progress.skipped()
    splits = {split: _split(split, plan, progress) for split in ("train", "validation")}
    manifest: Manifest = {
        "format": MANIFEST_FORMAT,
        "options": plan.options,
        "tokenizer": tokenizer.info(),
        "splits": splits,
        "source": {
            "inputs": plan.options["input"] + plan.options["validation_input"],
            "input_digest": plan.input_digest,
            "input_times": plan.input_times,
            "documents": sum(split["documents"] for split in splits.values()),
            "text_bytes": int(progress.total("text_bytes")),
            "skipped": skipped.counts,
            "skipped_examples": skipped.examples,
            "bytes_behind_compressed_data": skipped.trailing,
            "files_not_read": plan.ignored.counts,
        },
    }
    write_whole(output / MANIFEST_NAME, json_bytes(manifest))
    (output / PROGRESS_NAME).unlink()
    return manifest


def _split(split: str, plan: Plan, progress: Progress) -> SplitInfo:
    finished = (progress.finished[shard.name]["shards"] for shard in plan.shards)
    shards = [made[split] for made in finished if split in made]
    if not shards:
        skipped = progress.skipped()
        reasons = skipped.describe_all() or "none skipped"
        raise UserError(f"no documents for {split} in {skipped.records:,} records: {reasons}")
    return {
        "documents": sum(shard["documents"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
        "unigram_entropy_nats": entropy_nats(progress.token_counts[split]),
        "shards": shards,
    }


def entropy_nats(counts: Sequence[int] | np.ndarray) -> float:
    """Compute the entropy, in nats, of the distribution with these counts [vocab_size]."""
    occurring = np.array([count for count in counts if count > 0], dtype=np.float64)
    shares = occurring / occurring.sum()
    return float(-(shares * np.log(shares)).sum())


def print_summary(
    output: Path, manifest: Manifest, progress: Progress, tokenizer: Tokenizer
) -> None:
    """Print what was made, how fast, and what was skipped."""
    source = manifest["source"]
    tokens = sum(split["tokens"] for split in manifest["splits"].values())
    speed = source["text_bytes"] / 1e6 / max(progress.total("cpu_seconds"), 1e-9)
    print(f"{'split':<12}{'documents':>14}{'tokens':>18}{'per document':>14}{'entropy, nats':>15}")
    for name, split in manifest["splits"].items():
        print(
            f"{name:<12}{split['documents']:>14,}{split['tokens']:>18,}"
            f"{split['tokens'] / split['documents']:>14.1f}{split['unigram_entropy_nats']:>15.3f}"
        )
    skipped = progress.skipped()
    print(f"skipped: {skipped.describe_all() or 'nothing'}")
    print(
        f"{source['text_bytes'] / 1e6:,.1f} MB of text, {source['text_bytes'] / tokens:.2f} bytes "
        f"per token, {speed:.1f} MB/s per core"
    )
    print(f"tokenizer: {tokenizer.path} ({tokenizer.vocab_size} pieces)")
    print(f"data:      {output / MANIFEST_NAME}")
