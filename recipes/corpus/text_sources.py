"""Finds what `--input` names, and cuts it into portions for parallel, resumable reading.

    python-docs                  the text in `recipes/corpus/python_docs.py`
    a file                       .jsonl .ndjson .json (a value per line, one array, or values over
                                 several lines), .csv .tsv (with a header), .txt .text, .parquet;
                                 all but Parquet also .gz .bz2 .xz .zst
    a directory                  its files of those kinds, recursively, in sorted order
    org/name                     a Hugging Face dataset, streamed shard by shard

A portion is the unit of work: one process reads and encodes it alone, and a preparation that was
stopped repeats only the portions that were not finished. The cuts depend on the input and on
`--shards`, never on the number of processes; so does the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from recipes.common.errors import UserError
from recipes.corpus.input_files import Ignored, Layout, compressed_twins, find_files, identity
from recipes.corpus.text_readers import open_hub, raw_records
from recipes.corpus.text_records import BAD_RECORDS_TOLERATED, Skipped, Span, Unusable, text_of

EMBEDDED = "python-docs"
BY_ENDING = Layout()
MIN_PORTION_BYTES = 4 << 20  # below, starting a process and a shard costs more than the encoding
HUB_SHARD_BYTES = 256 << 20  # assumed size of a hub shard: it is unknown before it is read

MAX_LANES = 8  # processes that share a compressed file; each has to decompress all of it
LANE_RECORDS = 256  # consecutive records of one lane

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Portion:
    """The part of the input that one process reads: spans, or one of several lanes of spans.

    Compressed files cannot be entered in the middle. So several processes read all of the file, and
    each keeps the records of its lane.

    Attributes:
        spans: read one after the other.
        lane, lanes: the lane, from 0, and the number of lanes. The records come in blocks of
            LANE_RECORDS, and the blocks go to the lanes in turn.
        limit: number of records of the spans to read, all lanes together; None for all.
    """

    spans: tuple[Span, ...]
    lane: int = 0
    lanes: int = 1
    limit: int | None = None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(span.size for span in self.spans) // self.lanes

    def documents(
        self, text_key: str, skipped: Skipped, max_bad_fraction: float = 1.0
    ) -> Iterator[str]:
        """Yield the texts, in order, and count in `skipped` what cannot be used.

        Raises:
            UserError: an input is damaged or cannot be read to its end, or more than
                BAD_RECORDS_TOLERATED records, and more than `max_bad_fraction`, are unusable.
        """
        for span, position, raw in self._records(text_key, skipped):
            skipped.records += 1
            try:
                yield text_of(raw, span.kind, text_key)
            except Unusable as reason:
                skipped.add(reason, span, position)
                skipped.check(max_bad_fraction, BAD_RECORDS_TOLERATED)

    def _records(self, text_key: str, skipped: Skipped) -> Iterator[tuple[Span, int, Any]]:
        records = (
            (span, position, raw)
            for span in self.spans
            for position, raw in raw_records(span, text_key, skipped)
        )
        for number, record in enumerate(islice(records, self.limit)):
            if number // LANE_RECORDS % self.lanes == self.lane:
                yield record


@dataclass(frozen=True)
class Inputs:
    """The input that the user's names stand for.

    Attributes:
        spans: whole files, and the shards of hub datasets, in reading order.
        ignored: files in directories that are not read.
    """

    spans: tuple[Span, ...]
    ignored: Ignored


def find_inputs(
    names: Sequence[str],
    config: str | None = None,
    split: str = "train",
    layout: Layout = BY_ENDING,
    output: Path | None = None,
) -> Inputs:
    """Find what the names of inputs stand for: files, directories, data of the hub.

    Args:
        names: as listed at the top of this file.
        config, split: names of the configuration and the split of hub datasets.
        layout: how files are read.
        output: directory that will be written; it is no input.

    Raises:
        UserError: for every name that stands for nothing readable, the reason.
    """
    spans: list[Span] = []
    ignored = Ignored()
    faults: list[str] = []
    for name in names:
        try:
            if name == EMBEDDED:
                from recipes.corpus.python_docs import source_bytes

                spans.append(Span(EMBEDDED, EMBEDDED, size=source_bytes()))
            elif is_hub_name(name):
                spans += _hub_spans(name, config, split)
            else:
                found, passed_over = find_files(Path(name), layout, output)
                spans += found
                ignored.merge(passed_over)
        except UserError as error:
            faults += error.faults
    faults += _twice(spans)
    if faults:
        raise UserError(*faults)
    return Inputs(tuple(spans), ignored)


Place = tuple[str | int | None, ...]
"""Equal for two spans that are read from the same place."""


def place_of(span: Span) -> Place:
    """Identify what a span is read from, the same under all of its names."""
    if span.kind == "hub":
        return ("hub", span.name, span.config, span.split, span.start)
    return (EMBEDDED,) if span.kind == EMBEDDED else identity(span.name)


def _twice(spans: Sequence[Span]) -> Iterator[str]:
    """Name the inputs that are given more than once, under whatever name."""
    first: dict[Place, str] = {}
    for span in spans:
        key = place_of(span)
        if key in first:
            also = f" (also as {first[key]})" if first[key] != span.name else ""
            yield f"{span.name}: given more than once{also}"
        first.setdefault(key, span.name)
    yield from compressed_twins(span.name for span in spans if span.kind not in ("hub", EMBEDDED))


def is_hub_name(name: str) -> bool:
    """Find out whether a name is a hub dataset's: it looks like one, and no such path exists."""
    return (
        _HUB_NAME.fullmatch(name) is not None
        and not Path(name).exists()
        and not name.startswith((".", "/"))
        and BY_ENDING.kind(Path(name)) is None
    )


def hub_splits(name: str, config: str | None) -> list[str]:
    """Ask for the names of a hub dataset's splits.

    Raises:
        UserError: the hub cannot be reached, or has no such dataset or config.
    """
    return list(open_hub(name, config, split=None))


def portions(
    spans: Sequence[Span], count: int, max_documents: int | None = None
) -> tuple[Portion, ...]:
    """Cut the input into about `count` portions of equal size on disk, in order.

    Small files are put together. Large files are cut by bytes, Parquet files by row groups, and
    compressed files are shared by lanes. No portion of a cut file is below MIN_PORTION_BYTES. With
    `max_documents` only so many records are read, from the front.
    """
    total = sum(span.size for span in spans)
    target = max(-(-total // count), MIN_PORTION_BYTES)
    if max_documents is not None:
        # Only counting from the front tells where the last record lies, so all portions count. From
        # the hub each of them would download everything, so there is one portion.
        lanes = 1 if any(span.kind == "hub" for span in spans) else _lanes(total, target)
        return tuple(Portion(tuple(spans), lane, lanes, max_documents) for lane in range(lanes))
    cut: list[Portion] = []
    group: list[Span] = []
    for span in spans:
        pieces = [span] if span.size < 2 * target else list(_pieces(span, target))
        lanes = _lanes(span.size, target) if span.shared else 1
        if lanes > 1 or len(pieces) > 1:
            if group:
                cut.append(Portion(tuple(group)))
                group = []
            cut += [Portion((piece,), lane, lanes) for piece in pieces for lane in range(lanes)]
            continue
        group.append(span)
        if sum(member.size for member in group) >= target:
            cut.append(Portion(tuple(group)))
            group = []
    if group:
        cut.append(Portion(tuple(group)))
    return tuple(cut)


def _lanes(size: int, target: int) -> int:
    return max(1, min(MAX_LANES, round(size / target)))


def _pieces(span: Span, target: int) -> Iterator[Span]:
    if span.kind == "parquet":
        import pyarrow.parquet

        stop = pyarrow.parquet.ParquetFile(span.name).num_row_groups
        step = max(1, stop * target // span.size)
    elif span.divisible:
        stop, step = span.size, target
    else:
        yield span
        return
    for start in range(0, stop, step):
        end = min(start + step, stop)
        yield replace(span, start=start, stop=end, size=span.size * (end - start) // stop)


def _hub_spans(name: str, config: str | None, split: str) -> Iterator[Span]:
    shards = open_hub(name, config, split).num_shards
    for shard in range(shards):
        yield Span("hub", name, shard, shards, HUB_SHARD_BYTES, config, split)
