"""Turn the texts of a file into vectors: the mean of the model's hidden states over their tokens.

    python recipes/embed.py --checkpoint runs/base --input texts.txt --output vectors.npy
    python recipes/embed.py --checkpoint runs/base --input docs.jsonl --text-columns body \
        --output vectors.parquet --normalize

Any export will do: a pretrained model's, a finetuned one's. [CLS] and [SEP] count as tokens, as for
sentence-transformers, which computes the same from an export. An .npy file is float32 [records,
hidden], row n for record n; a Parquet file also has what the records held, as text. A record that
cannot be used is a row of NaN there and a null with the reason here; then the exit status is 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from model.config import ModelOptions
from model.parallel import initialize_parallel
from model.pretrained import Export
from recipes.common.entry import run
from recipes.common.errors import Faults
from recipes.common.settings import parse
from recipes.inference.classes import encode
from recipes.inference.computing import Computation, Model, pair_bytes
from recipes.inference.embedding import build
from recipes.inference.outputs import (
    Columns,
    NpyMatrix,
    ParquetTable,
    RecordWriter,
    file_fault,
    written,
)
from recipes.inference.progress import ProgressLine
from recipes.inference.record_files import TEXT_COLUMN
from recipes.inference.settings import Computing, TextInput
from recipes.interop.hf_config import sentence_tokens
from recipes.training.export import open_export, read_tokenizer

ENDINGS = (".npy", ".parquet")
VECTOR = "embedding"
"""Column of the vectors in a Parquet file."""


@dataclass(frozen=True)
class Settings:
    """Turn the texts of a file into vectors: the mean of the model's hidden states over their
    tokens."""

    checkpoint: Path
    """A run, a finetuned task's directory, or an export/."""
    output: Path
    """File to write: .npy (float32, a row per record), or .parquet (with what the records held)."""
    text: TextInput
    computing: Computing
    normalize: bool = False
    """Make every vector of length 1."""


def main(words: Sequence[str] | None = None) -> int:
    """Check everything, then go through the input; returns the exit status."""
    faults = Faults()
    settings = parse(Settings, words, faults=faults, manual=__doc__)
    faults += settings.text.faults(settings.output)
    if settings.output and (fault := file_fault(settings.output, ENDINGS)):
        faults.append(fault)
    if len(settings.text.text_columns) > 1:
        named = " ".join(settings.text.text_columns)
        faults.append(f"--text-columns {named}: one; a vector is of a single text")
    export = faults.attempt(lambda: open_export(settings.checkpoint))
    options = export and settings.computing.options(export.config, faults)
    faults.stop()
    assert export and options
    return embed(export, settings, options)


def embed(export: Export, settings: Settings, options: ModelOptions) -> int:
    """Write a vector for every record; returns the exit status."""
    computing, progress = settings.computing, ProgressLine()
    records = settings.text.open((TEXT_COLUMN,))
    table = settings.output.suffix.lower() == ".parquet"
    layout = Columns((VECTOR,) if table else (), fixed=table)
    if table:
        layout.check(records.first)
    tokenizer = read_tokenizer(settings.checkpoint, export.config, export.description)
    max_length = computing.max_length or sentence_tokens(export.config, export.description)
    initialize_parallel()
    compute = build(export, options, computing.precision, normalize=settings.normalize)
    model = Model(compute, lambda texts: encode(tokenizer, texts, max_length))
    attention = pair_bytes(export.config, options.attention)
    computation, width = Computation(model, progress, attention), export.config.hidden_size
    with written(settings.output) as file:
        writer: RecordWriter = (
            ParquetTable(file, layout, VECTOR, width) if table else NpyMatrix(file, width)
        )
        for chunk in computation.through(records, layout):
            writer.write(chunk)
        writer.finish()
    progress.finish(computation.counts)
    instead = 'their "error" says why' if table else "their rows are NaN"
    return computation.counts.tell(max_length, instead)


if __name__ == "__main__":
    run(main)
