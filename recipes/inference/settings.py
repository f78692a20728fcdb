"""Settings that the commands which use a model share: what it reads, and how it computes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from model.config import ModelConfig, ModelOptions
from recipes.common.errors import Faults, UserError
from recipes.common.settings import SequenceLength, one_of
from recipes.engine.kernel_choice import KernelChoice
from recipes.inference.record_files import (
    ENDINGS,
    FORMATS,
    STDIN,
    Records,
    format_of,
    open_records,
)


@dataclass(frozen=True)
class TextInput:
    """What the model reads."""

    input: str
    """File of texts: .txt (a text per line), .jsonl, .csv or .tsv, also compressed; - for standard
    input, which is JSON Lines if its first line is a JSON object, and a text per line otherwise."""
    format: Annotated[str, one_of(*FORMATS)] | None = None
    """Format of the input; unless given, the file's ending tells."""
    text_columns: tuple[str, ...] = ()
    """Column of the text; two columns for pairs. Unless given, those of the finetuning, or text."""

    def faults(self, output: Path | None) -> list[str]:
        """What is wrong with these settings, given the file that will be written."""
        faults = []
        if self.input != STDIN:
            path = Path(self.input)
            if path.is_dir():
                faults.append(f"--input {path}: is a directory; name a file")
            elif not path.exists():
                faults.append(f"--input {path}: no such file")
            elif output is not None and output.exists() and path.samefile(output):
                faults.append(f"--output {output}: is the input, which it would replace")
            elif self.format is None and format_of(self.input) is None:
                faults.append(
                    f"--input {path}: of no known kind; {' '.join(ENDINGS)} are, also compressed; "
                    f"--format, one of {', '.join(FORMATS)}, says what it is"
                )
        if len(set(self.text_columns)) < len(self.text_columns):
            faults.append(f"--text-columns {' '.join(self.text_columns)}: one is there twice")
        return faults

    def open(self, columns: tuple[str, ...]) -> Records:
        """Open the input, and say on standard error as what standard input is read.

        Args:
            columns: those of the texts, where none were named.

        Raises:
            UserError: as `open_records`; columns named for lines of text.
        """
        records = open_records(self.input, self.format, self.text_columns or columns)
        if records.format == "text" and self.text_columns:
            named = " ".join(self.text_columns)
            raise UserError(f"--text-columns {named}: lines of text have none (--format)")
        if self.input == STDIN and self.format is None:
            read = "JSON Lines" if records.format == "jsonl" else "a text per line"
            print(f"standard input: {read} (--format)", file=sys.stderr)
        return records


@dataclass(frozen=True)
class Computing:
    """How the model computes."""

    kernel_choice: KernelChoice
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the weights and of what is computed with them; bf16 is faster on a GPU."""
    max_length: SequenceLength | None = None
    """Tokens of a text, special ones included; longer ones are cut. Unless given, as many as in the
    finetuning, and for vectors 512, or as many as in the pretraining if these were more."""

    def options(self, config: ModelConfig, faults: Faults) -> ModelOptions:
        """How a model computes here.

        Args:
            faults: takes what was asked for and cannot be.
        """
        if self.max_length is not None and (refusal := config.why_not_length(self.max_length)):
            faults.append(f"--max-length {self.max_length}: {refusal}")
        chosen = self.kernel_choice.resolve(config, self.precision, faults)
        return ModelOptions(chosen.attention, chosen.kernels)
