"""The steps of a preparation: it takes the directory, makes the tokenizer, encodes the shards."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recipes.common.errors import UserError
from recipes.common.files import write_whole
from recipes.common.locks import lock, unlock_if_alone
from recipes.corpus.encode_shards import Encoding, encode_portions
from recipes.corpus.held_out import HeldOut
from recipes.corpus.preparation_plan import Plan
from recipes.corpus.preparation_progress import Progress, clear, remove_partial_files
from recipes.corpus.preparation_settings import Settings
from recipes.corpus.sentencepiece_training import train_tokenizer
from recipes.corpus.text_records import Skipped
from recipes.corpus.text_sources import Portion
from recipes.corpus.tokenizer import Tokenizer, open_tokenizer

SAMPLED_PORTIONS = 64  # places of the input that the tokenizer's sample is read from, at most


@contextmanager
def explaining(output: Path) -> Iterator[None]:
    """Turn what the file system refuses into a message; leave no empty `output` after a fault.

    Raises:
        UserError: the work raised one, or an OSError.
    """
    made = not output.exists()
    try:
        yield
    except UserError:
        if made:
            unlock_if_alone(output)
            with suppress(OSError):  # unless something is in it
                output.rmdir()
        raise
    except OSError as error:
        raise UserError(_explain(error, output)) from error


def _explain(error: OSError, output: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{output}: no space left ({error.strerror}); make room and run the same command "
            "again: finished shards are kept"
        )
    return f"{error.filename or output}: {error.strerror or error}"


def take_directory(output: Path, overwrite: bool) -> None:
    """Make the directory, and keep other preparations out of it.

    Args:
        overwrite: remove what it holds of a preparation.

    Raises:
        UserError: another process prepares into it.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock(output, "preparing data into it")
    if overwrite:
        clear(output)


def make_tokenizer(plan: Plan, settings: Settings, held_out: HeldOut) -> Tokenizer:
    """Write the tokenizer into the directory: the given one, or one trained on the input.

    Raises:
        UserError: the text is too small or has too large an alphabet for the vocabulary.
    """
    tokenizer = plan.tokenizer
    if tokenizer is None:
        sample_bytes = settings.vocabulary.tokenizer_sample_mb * 1_000_000
        pieces = plan.options["vocab_size"]
        print(f"training the tokenizer: {pieces} pieces on up to {sample_bytes:,} bytes")
        tokenizer = train_tokenizer(
            sample(plan.portions("train"), settings.text.text_key, sample_bytes, held_out),
            settings.output / "tokenizer.model",
            pieces,
            normalizer=plan.options["normalizer"],
            sample_bytes=sample_bytes,
        )
    for reason in tokenizer.why_no_hf_files():
        print(f"look at this: {reason}; transformers will not read it")
    for name, content in tokenizer.files().items():
        write_whole(settings.output / name, content)
    return open_tokenizer(settings.output)


def started_tokenizer(output: Path, progress: Progress) -> Tokenizer:
    """Open the tokenizer of a preparation that continues.

    Raises:
        UserError: it is not the one that the finished shards were encoded with.
    """
    tokenizer = open_tokenizer(output)
    if tokenizer.fingerprint != progress.fingerprint:
        raise UserError(f"{tokenizer.path}: changed since the preparation started; --overwrite")
    return tokenizer


def sample(
    training: Sequence[Portion], text_key: str, sample_bytes: int, held_out: HeldOut
) -> Iterator[str]:
    """Yield documents to train a tokenizer on, none of them held out.

    They are the first ones of evenly spaced portions, about as many bytes of each.
    """
    heads = training[:: -(-len(training) // SAMPLED_PORTIONS)]
    with progress_bar("sampling text", len(heads), "portion") as bar:
        for portion in heads:
            budget = sample_bytes // len(heads)
            for text in portion.documents(text_key, Skipped()):
                if text in held_out:
                    continue
                yield text
                budget -= len(text.encode())
                if budget <= 0:
                    break
            bar.update()


def encode(plan: Plan, progress: Progress, encoding: Encoding, workers: int) -> None:
    """Encode the shards that are not finished, and note each in the books.

    Raises:
        UserError: an input is damaged, or too many of its records are unusable.
        OSError: a shard cannot be written.
    """
    todo = [shard for shard in plan.shards if shard.name not in progress.finished]
    remove_partial_files(encoding.output)
    with progress_bar("encoding", len(plan.shards), "shard") as bar:
        bar.update(len(progress.finished))
        for encoded in encode_portions(todo, encoding, workers):
            progress.add(encoded)
            progress.save(encoding.output)
            bar.set_postfix_str(f"{progress.total('text_bytes') / 1e6:,.0f} MB of text")
            bar.update()
    progress.skipped().check(encoding.max_bad_fraction)


def progress_bar(title: str, total: int, unit: str) -> tqdm[Any]:
    """Make a progress bar, which shows only on a terminal."""
    return tqdm(desc=title, total=total, unit=unit, disable=not sys.stderr.isatty())
