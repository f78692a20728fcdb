"""Text to tokenizer and token shards: the first command of every run.

    python recipes/prepare_data.py --output data/demo --vocab-size 4096
    python recipes/prepare_data.py --input allenai/c4 --config en --output data/c4 --workers 32

The input is cut into portions; worker processes read and encode them, one shard each, and the main
process only keeps the books. What is finished is noted in `progress.json` after every shard, and
the same command continues from there. `manifest.json` is written last: without it nothing is
prepared. Documents are stored whole and without special tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from recipes.common.entry import run
from recipes.common.errors import Faults
from recipes.common.settings import parse
from recipes.corpus.encode_shards import Encoding
from recipes.corpus.held_out import find_held_out
from recipes.corpus.preparation import (
    encode,
    explaining,
    make_tokenizer,
    started_tokenizer,
    take_directory,
)
from recipes.corpus.preparation_checks import odd_results
from recipes.corpus.preparation_manifest import print_summary, write_manifest
from recipes.corpus.preparation_plan import make_plan, print_plan
from recipes.corpus.preparation_progress import is_prepared, read_progress, start_progress
from recipes.corpus.preparation_settings import Settings


def main(words: Sequence[str] | None = None) -> int:
    """Prepare what the words of a command line say; returns the exit code.

    Raises:
        UserError: every fault of the settings and inputs, or what stopped the work.
    """
    faults = Faults()
    settings = parse(Settings, words, faults=faults, manual=__doc__)
    try:
        with explaining(settings.output):
            return prepare(settings, faults)
    except KeyboardInterrupt:
        print("stopped; the same command continues after the last finished shard", file=sys.stderr)
        return 130


def prepare(settings: Settings, faults: Faults) -> int:
    """Find the inputs, hold out, train the tokenizer, encode, write the manifest."""
    output, text = settings.output, settings.text
    plan = make_plan(settings, faults)
    for message in plan.messages:
        print(message)
    if settings.dry_run:
        if not settings.overwrite and not is_prepared(output, plan):
            read_progress(output, plan)
        print_plan(plan, output)
        return 0
    take_directory(output, settings.overwrite)
    if is_prepared(output, plan):
        print(f"{output}: already prepared with these options")
        return 0
    progress = read_progress(output, plan)
    held_out = find_held_out(
        plan.portions("train"),
        plan.portions("validation"),
        plan.held_out_fraction,
        text.text_key,
        text.max_bad_fraction,
    )
    if progress is None:
        tokenizer = make_tokenizer(plan, settings, held_out)
        progress = start_progress(output, plan, tokenizer.fingerprint)
    else:
        tokenizer = started_tokenizer(output, progress)
        print(f"continuing: {len(progress.finished)} of {len(plan.shards)} shards are finished")
    encoding = Encoding(output, tokenizer.path, text.text_key, held_out, text.max_bad_fraction)
    encode(plan, progress, encoding, settings.workers)
    manifest = write_manifest(output, plan, progress, tokenizer)
    print_summary(output, manifest, progress, tokenizer)
    for odd in odd_results(manifest["splits"], plan.kinds, plan.held_out_fraction):
        print(f"look at this: {odd}")
    return 0


if __name__ == "__main__":
    run(main)
