"""Portions of text to token shards, in worker processes.

One worker reads, cleans, encodes and writes one portion alone. So processes exchange nothing but
records of what is finished, and the result does not depend on how many processes there are. Nothing
here imports torch, so that a worker is ready in a fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from recipes.common.chunks import chunks
from recipes.common.errors import UserError
from recipes.corpus.held_out import HeldOut, document_hash
from recipes.corpus.text_records import EMPTY, HELD_OUT, Skipped
from recipes.corpus.text_sources import Portion
from recipes.corpus.token_shards import ShardInfo, ShardWriter
from recipes.corpus.tokenizer import Tokenizer, encode_documents, open_tokenizer

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 4 << 20  # a batch ends at either: many long documents would fill the memory


@dataclass(frozen=True)
class Encoding:
    """How portions become shards: what is the same for all of them.

    Attributes:
        output: directory of the shards.
        tokenizer: path of the model.
        text_key: key or column that holds the text.
        held_out: decides what becomes of documents of the training input.
        max_bad_fraction: largest share of unusable records, 0 to 1.
    """

    output: Path
    tokenizer: Path
    text_key: str
    held_out: HeldOut
    max_bad_fraction: float


@dataclass(frozen=True)
class ShardPlan:
    """One portion of the input and the shard that it becomes, `<split>-<number>`."""

    split: str
    number: int
    portion: Portion

    @property
    def name(self) -> str:
        """The shard's name, without an ending."""
        return f"{self.split}-{self.number:05d}"


@dataclass
class Encoded:
    """The record of one finished portion.

    Attributes:
        name: of the shard.
        shards: manifest entry by split; a split without documents has none.
        token_counts: occurrences of each id by split, int64 [vocab_size].
        text_bytes: UTF-8 bytes of the documents written.
        cpu_seconds: processor time, reading included.
        skipped: what was read and what was left out.
    """

    name: str
    shards: dict[str, ShardInfo] = field(default_factory=dict)
    token_counts: dict[str, np.ndarray] = field(default_factory=dict)
    text_bytes: int = 0
    cpu_seconds: float = 0.0
    skipped: Skipped = field(default_factory=Skipped)


class _Stopped(Exception):
    """Raised in a worker when the main process has given up, so that no file is left behind."""


def encode_portion(
    shard: ShardPlan, encoding: Encoding, tokenizer: Tokenizer, stop: Event | None = None
) -> Encoded:
    """Encode one portion into its shards.

    Raises:
        UserError: an input is damaged, or too many of its records are unusable.
        OSError: a shard cannot be written.
    """
    result = Encoded(shard.name)
    started = time.process_time()
    writers: dict[str, ShardWriter] = {}
    with ExitStack() as stack:
        documents = shard.portion.documents(
            encoding.text_key, result.skipped, encoding.max_bad_fraction
        )
        for batch in chunks(documents, len, size=BATCH_CHARACTERS, count=BATCH_DOCUMENTS):
            if stop is not None and stop.is_set():
                raise _Stopped
            for text, tokens in zip(batch, encode_documents(tokenizer, batch), strict=True):
                if len(tokens) == 0:  # the normalisation has removed all of it
                    result.skipped.count(EMPTY)
                    continue
                split = shard.split
                if split == "train":
                    key = document_hash(text)
                    if encoding.held_out.is_left_out(key):
                        result.skipped.count(HELD_OUT)
                        continue
                    split = "validation" if encoding.held_out.is_validation(key) else split
                if split not in writers:
                    prefix = encoding.output / f"{split}-{shard.number:05d}"
                    writers[split] = stack.enter_context(ShardWriter(prefix, tokenizer.vocab_size))
                    result.token_counts[split] = np.zeros(tokenizer.vocab_size, dtype=np.int64)
                writers[split].add(tokens)
                np.add.at(result.token_counts[split], tokens, 1)
                result.text_bytes += len(text.encode())
    result.shards = {split: writer.info for split, writer in writers.items()}
    result.cpu_seconds = time.process_time() - started
    return result


def encode_portions(
    shards: Sequence[ShardPlan], encoding: Encoding, workers: int
) -> Iterator[Encoded]:
    """Encode portions in parallel and yield each as it finishes, in any order.

    Closing the iterator, or an exception, stops the workers within a batch of documents.

    Args:
        workers: processes; with one, or for one shard, no process is started.

    Raises:
        UserError: an input is damaged, or a worker was killed.
        OSError: a shard cannot be written.
    """
    if workers == 1 or len(shards) == 1:
        tokenizer = open_tokenizer(encoding.tokenizer)
        for shard in shards:
            yield encode_portion(shard, encoding, tokenizer)
        return
    context = multiprocessing.get_context("spawn")  # forking after threads were started can hang
    stop = context.Event()
    pool = ProcessPoolExecutor(
        min(workers, len(shards)), context, initializer=_start_worker, initargs=(encoding, stop)
    )
    try:
        futures = [pool.submit(_encode_in_worker, shard) for shard in shards]
        # The pool starts a process after it has listed those whose death it watches for; one
        # submission more makes it list the last one too.
        pool.submit(int)
        for done in as_completed(futures):
            yield done.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory: run the same command again "
            f"with fewer than --workers {workers} (finished shards are kept)"
        ) from None
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(encoding: Encoding, stop: Event) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker = (encoding, open_tokenizer(encoding.tokenizer), stop)


def _encode_in_worker(shard: ShardPlan) -> Encoded:
    encoding, tokenizer, stop = _worker
    return encode_portion(shard, encoding, tokenizer, stop)


_worker: tuple[Encoding, Tokenizer, Event]


def _exit_with_parent() -> None:
    # Without its parent a worker must not go on writing: the next preparation may write the same
    # shard. The next preparation removes the .partial files that it leaves.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
