"""Use a finetuned model: a label, a number or an answer for every record of a file.

    python recipes/predict.py --checkpoint runs/base/glue/rte-seed17 --input new.csv \
        --output answers.csv
    cat texts.txt | python recipes/predict.py --checkpoint runs/base/mine/custom-seed17 --input -

A classifier gives a label with the probabilities of all, or where there may be several labels those
likelier than not, a regression a number, a token classifier a tag for every word between blanks,
and a question answerer, which reads the columns question and context, the answer with its
probability. The output
has a row for each record, in their order, with all that the record held. A record that
cannot be used has a column "error" that says why; then the exit status is 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from model.config import ModelOptions
from model.parallel import initialize_parallel
from recipes.common.entry import run
from recipes.common.errors import Faults
from recipes.common.settings import parse
from recipes.inference.computing import Computation, pair_bytes
from recipes.inference.finetuned import Finetuned, compute_with
from recipes.inference.outputs import (
    Columns,
    CsvTable,
    JsonLines,
    RecordWriter,
    file_fault,
    written,
)
from recipes.inference.progress import ProgressLine
from recipes.inference.settings import Computing, TextInput
from recipes.inference.uses import USES, open_finetuned
from recipes.training.export import read_tokenizer

ENDINGS = (".jsonl", ".csv")


@dataclass(frozen=True)
class Settings:
    """Use a finetuned model: a label, a number or an answer for every record of a file."""

    checkpoint: Path
    """The directory of a finetuned task, such as runs/base/glue/rte-seed17, or its export/."""
    text: TextInput
    computing: Computing
    output: Path | None = None
    """File to write, .jsonl or .csv; unless given, JSON Lines on standard output."""


def main(words: Sequence[str] | None = None) -> int:
    """Check everything, then go through the input; returns the exit status."""
    faults = Faults()
    settings = parse(Settings, words, faults=faults, manual=__doc__)
    faults += settings.text.faults(settings.output)
    if settings.output is not None and (fault := file_fault(settings.output, ENDINGS)):
        faults.append(fault)
    found = faults.attempt(lambda: open_finetuned(settings.checkpoint))
    options = found and settings.computing.options(found.export.config, faults)
    if found:
        faults += column_faults(found, settings.text)
    faults.stop()
    assert found and options
    return predict(found, settings, options)


def column_faults(found: Finetuned, text: TextInput) -> Iterator[str]:
    """What is wrong with the columns that were named for this task."""
    trained, usual = found.text_columns, USES[found.kind].text_columns
    if not trained and len(usual) > 1:  # of a single text nobody knows that it was no pair
        trained = usual
    if trained and text.text_columns and len(text.text_columns) != len(trained):
        yield (
            f"--text-columns {' '.join(text.text_columns)}: {found.name} was learnt from "
            f"{len(trained)}: {' '.join(trained)}"
        )
    elif len(text.text_columns) > 2:
        yield f"--text-columns {' '.join(text.text_columns)}: two at most"


def predict(found: Finetuned, settings: Settings, options: ModelOptions) -> int:
    """Answer for every record; returns the exit status."""
    use, export, computing = USES[found.kind], found.export, settings.computing
    records = settings.text.open(found.text_columns or use.text_columns)
    table = settings.output is not None and settings.output.suffix.lower() == ".csv"
    layout = Columns(use.columns(found, table), fixed=table)
    layout.check(records.first)
    tokenizer = read_tokenizer(settings.checkpoint, export.config, export.description)
    max_length, progress = computing.max_length or found.max_length, ProgressLine()
    initialize_parallel()
    compute = compute_with(found, use, options, computing.precision)
    attention = pair_bytes(export.config, options.attention)
    model = use.model(found, tokenizer, compute, max_length)
    computation = Computation(model, progress, attention)
    answer = partial(use.answer, found)
    with written(settings.output) as file:
        writer: RecordWriter = CsvTable(file, layout, answer) if table else JsonLines(file, answer)
        for chunk in computation.through(records, layout):
            writer.write(chunk)
        writer.finish()
    progress.finish(computation.counts)
    return computation.counts.tell(max_length, 'their "error" says why')


if __name__ == "__main__":
    run(main)
