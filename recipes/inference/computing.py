"""Computes something for each record of a stream: in chunks, batched by length, in their order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recipes.common.errors import UserError
from recipes.corpus.tokenizer import Tokenizer
from recipes.inference.outputs import Columns
from recipes.inference.record_files import Record, Records
from recipes.tasks.classification_batches import ClassificationBatch, EncodedExamples

CHUNK_RECORDS = 4096
CHUNK_CHARACTERS = 1 << 24
"""A chunk ends at so many records or characters of text, so that memory does not grow with the
input; lengths are sorted within a chunk."""
PLACES = {"cpu": 1 << 13, "cuda": 1 << 16}
"""Tokens of a batch by the kind of device: more of them are no faster there."""
LENGTH_MULTIPLE = {"cpu": 1, "cuda": 64}
"""The longest length of a batch is rounded up to one of these: odd ones are slow on GPUs."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Compute = Callable[[ClassificationBatch], Tensor]
"""From a batch of S sequences to fp32 [S, values]."""


@dataclass
class Counts:
    """What has happened to the records so far."""

    records: int = 0
    """Those that are done."""
    cut: int = 0
    """Those longer than the model's length."""
    faults: int = 0
    """Those that could not be used."""
    first_fault: str = ""

    def tell(self, max_length: int, instead: str) -> int:
        """Say on standard error what was not as it should be.

        Args:
            max_length: that longer texts were cut to.
            instead: what the output holds for a record that could not be used.

        Returns:
            The exit status: 1 if there were such records.
        """
        said = []
        if not self.records:
            said.append("the input is empty, and so is the output")
        if self.cut:
            said.append(
                f"{self.cut:,} of {self.records:,} texts were cut to {max_length:,} tokens "
                "(--max-length)"
            )
        if self.faults:
            said.append(
                f"{self.faults:,} of {self.records:,} records could not be used; {instead}; the "
                f"first: {self.first_fault}"
            )
        print("".join(f"{line}\n" for line in said), end="", file=sys.stderr, flush=True)
        return 1 if self.faults else 0


def device() -> torch.device:
    """The device that computes: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Cut a stream into chunks."""
    chunk: list[Record] = []
    characters = 0
    for record in records:
        chunk.append(record)
        characters += sum(map(len, record.texts))
        if len(chunk) == CHUNK_RECORDS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


class Computation:
    """What a model computes for texts, or for pairs of texts.

    Args:
        compute: the model on a batch.
        max_length: tokens of a text or a pair, special ones included; what is longer is cut.
        progress: is called after every batch.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        compute: Compute,
        *,
        max_length: int,
        progress: Callable[[Counts], None] = lambda counts: None,
    ):
        self.tokenizer = tokenizer
        self.compute = compute
        self.max_length = max_length
        self.progress = progress
        self.device = device()
        self.counts = Counts()

    def through(
        self, records: Records, columns: Columns
    ) -> Iterator[list[tuple[Record, np.ndarray | None]]]:
        """Go through an input: yield chunks of records with their values, as `of` gives them."""
        for chunk in in_chunks(records.every):
            yield self.of(columns.fitted(chunk))

    def of(self, chunk: Sequence[Record]) -> list[tuple[Record, np.ndarray | None]]:
        """Each record with its values, fp32 [values]; without where the record cannot be used.

        Raises:
            UserError: the model computes something else than numbers.
        """
        usable = [record for record in chunk if record.fault is None]
        values = iter(self._values([record.texts for record in usable]))
        counts = self.counts
        counts.records += len(chunk) - len(usable)
        counts.faults += len(chunk) - len(usable)
        for record in chunk:
            if record.fault and not counts.first_fault:
                counts.first_fault = f"{record.place}: {record.fault}"
        return [(record, None if record.fault else next(values)) for record in chunk]

    @torch.inference_mode()
    def _values(self, texts: Sequence[tuple[str, ...]]) -> Sequence[np.ndarray]:
        if not texts:
            return []
        columns = [list(column) for column in zip(*texts, strict=True)]
        examples = EncodedExamples(
            self.tokenizer,
            columns[0],
            columns[1] if len(columns) == 2 else None,
            None,
            max_length=self.max_length,
        )
        self.counts.cut += examples.cut
        kind = self.device.type
        found: list[np.ndarray] = [np.empty(0)] * len(examples)
        broken = 0
        for batch in examples.batches_within(PLACES[kind], LENGTH_MULTIPLE[kind]):
            values = self.compute(batch.to(self.device))  # [S, values]
            broken += int((~values.isfinite().all(-1)).sum())
            for row, of_row in zip(batch.rows, values.float().cpu().numpy(), strict=True):
                found[row] = of_row
            self.counts.records += len(batch.rows)
            self.progress(self.counts)
        if broken:
            raise UserError(
                f"for {broken:,} of {len(examples):,} texts the model computes something else than "
                "numbers (NaN or infinity); look at its weights"
            )
        return found
