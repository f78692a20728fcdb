"""Computes something for each record of a stream: in chunks, batched by length, in their order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.pretrained import Export
from model.weights import Head
from recipes.common.chunks import chunks
from recipes.common.errors import UserError
from recipes.common.numbers import LENGTHS
from recipes.inference.outputs import Chunk, Columns
from recipes.inference.record_files import Record, Records
from recipes.tasks.classification_batches import ClassificationBatch, PackedExamples
from recipes.tasks.finetune_memory import free_here

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
"""From a batch of S sequences of T tokens to [S, values] or [T, values]."""


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


def load_here(model: nn.Module, export: Export, head: Head, precision: str) -> None:
    """Load an export's weights into a model, and bring it to the device that computes.

    Raises:
        UserError: the weights are not those of the configuration; all faults are named.
    """
    try:
        export.load_into(model, head)
    except ValueError as error:
        raise UserError(str(error)) from None
    model.eval().to(device(), DTYPES[precision])


def pair_bytes(config: ModelConfig, attention: str) -> int:
    """Estimate what attention over one sequence needs at once, in bytes per token squared.

    For what is not our own kernel, ALiBi's bias is [heads, tokens, tokens] in fp32, made of
    distances in int64; the reference has scores and weights of that size as well.
    """
    if attention == "reference":
        return 16 * config.num_heads + 12
    return 4 * config.num_heads + 12 if attention == "sdpa" and config.positions == "alibi" else 0


@dataclass(frozen=True)
class Model:
    """A model that is ready, and how texts go through it."""

    compute: Compute
    encode: Callable[[Sequence[tuple[str, ...]]], tuple[PackedExamples, int]]
    """Makes sequences of records' texts, and says how many of these were cut."""
    per_token: bool = False
    """Whether a row of what is computed belongs to a token; else to a sequence."""
    conclude: Callable[[Any, list[np.ndarray]], list[Any]] = lambda examples, found: found
    """From the sequences, and what was computed for each, to what is wanted of each record."""


class Computation:
    """What a model computes for the records of a stream.

    Args:
        progress: is called after every batch.
        attention: what `pair_bytes` estimates.
    """

    def __init__(
        self,
        model: Model,
        progress: Callable[[Counts], None] = lambda counts: None,
        attention: int = 0,
    ):
        self.model = model
        self.progress = progress
        self.attention = attention
        self.device = device()
        self.counts = Counts()

    def through(self, records: Records, columns: Columns) -> Iterator[Chunk]:
        """Go through an input: yield chunks of records with their values, as `of` gives them."""
        for chunk in chunks(
            records.every,
            lambda record: sum(map(len, record.texts)),
            size=CHUNK_CHARACTERS,
            count=CHUNK_RECORDS,
        ):
            yield self.of(columns.fitted(chunk))

    def of(self, chunk: Sequence[Record]) -> Chunk:
        """Each record with its values; without where the record cannot be used.

        Raises:
            UserError: the model computes something else than numbers, or there is no memory for
                the longest text.
        """
        usable = [record.texts for record in chunk if record.fault is None]
        before = self.counts.records
        values = iter(self._values(usable) if usable else [])
        counts = self.counts
        counts.records = before + len(chunk)
        counts.faults += len(chunk) - len(usable)
        for record in chunk:
            if record.fault and not counts.first_fault:
                counts.first_fault = f"{record.place}: {record.fault}"
        return [(record, None if record.fault else next(values)) for record in chunk]

    @torch.inference_mode()
    def _values(self, texts: Sequence[tuple[str, ...]]) -> list[Any]:
        examples, cut = self.model.encode(texts)
        self.counts.cut += cut
        self._check_memory(max(examples.lengths, default=0))
        kind, before, done = self.device.type, self.counts.records, 0
        found: list[np.ndarray] = [np.empty(0)] * len(examples)
        broken = 0
        for batch in examples.batches_within(PLACES[kind], LENGTH_MULTIPLE[kind]):
            batch = batch.to(self.device)
            values = self.model.compute(batch).float().cpu().numpy()  # [S or T, values]
            ends = batch.sequence_offsets[1:-1].tolist()
            rows = np.split(values, ends) if self.model.per_token else values
            for row, of_row in zip(batch.rows, rows, strict=True):
                broken += not np.isfinite(of_row).all()
                found[row] = of_row
            done += len(batch.rows)
            # Of a record that is several sequences, its share.
            self.counts.records = before + len(texts) * done // len(examples)
            self.progress(self.counts)
        if broken:
            raise UserError(
                f"for {broken:,} of {len(examples):,} texts the model computes something else than "
                "numbers (NaN or infinity); look at its weights"
            )
        return self.model.conclude(examples, found)

    def _check_memory(self, longest: int) -> None:
        free = free_here(self.device)
        needed = self.attention * int(longest) ** 2
        if needed > free:
            fits = int((free / self.attention) ** 0.5)
            way_out = f"--max-length {fits} fits" if fits in LENGTHS else "no text fits"
            raise UserError(
                f"a text of {longest:,} tokens: attention needs {needed / 1e9:,.1f} GB (estimate) "
                f"and {free / 1e9:,.1f} GB are free; {way_out}"
            )
