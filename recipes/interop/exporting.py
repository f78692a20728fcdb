"""A trained model for other software: `convert_hf.py export`.

Every format is a module with the same four functions. An export is written beside its place, read
back by software that is not ours, compared with the training's model on the same texts, and gets
its name only if they agree.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Literal, Protocol, cast

from recipes.common.errors import Faults, UserError
from recipes.common.files import PARTIAL, sync_directory, sync_tree, why_no_directory
from recipes.interop.comparing import Comparison
from recipes.interop.source import Source
from recipes.interop.writing import writing

Format = Literal["hf", "jina", "gguf", "onnx"]


@dataclass(frozen=True)
class Settings:
    """Make of a trained model what other software reads, and check that it computes the same."""

    input: Path
    """A run, an export/, or one of a run's checkpoints/step-..."""
    output: Path
    """Directory to write; must not exist."""
    format: Format
    """hf: transformers and sentence-transformers, which a run's export/ is for already. jina:
    JinaBERT-v2, for text-embeddings-inference and other servers. gguf: llama.cpp.
    onnx: ONNX Runtime."""


class Target(Protocol):
    """What a format's module has."""

    def faults(self, source: Source) -> Iterator[str]:
        """Yield what the format has no place for, or would compute otherwise."""

    def write(self, source: Source, directory: Path) -> None:
        """Write into a directory that is there and empty."""

    def notes(self, source: Source) -> Iterator[str]:
        """Yield what is left out or different there, for the user."""

    def compare(self, source: Source, directory: Path) -> Comparison:
        """Put texts through what was written and through the training's model.

        Raises:
            UserError: what was written cannot be read, or tokens are not the same.
        """


@dataclass(frozen=True)
class _Module:
    name: str
    packages: tuple[str, ...] = ()
    """Packages beyond the recipe's that writing and checking need."""


# Imported when they are asked for: the packages are optional, and take seconds.
_FORMATS: dict[Format, _Module] = {
    "hf": _Module("hf_directory", ("transformers",)),
    "jina": _Module("jina"),
    "gguf": _Module("llama_cpp", ("gguf", "xllamacpp")),
    "onnx": _Module("onnx_graph", ("transformers", "onnx", "onnxscript", "onnxruntime")),
}


def run(settings: Settings, read: Callable[[Path], Source]) -> int:
    """Read, write, check, name; returns the exit code.

    Args:
        read: finds a model at a place that a user names.

    Raises:
        UserError: all faults of the settings and the model at once, or a copy that computes
            something else; then nothing is left behind.
        MachineError: no space; likewise.
    """
    faults, output = Faults(), settings.output
    if output.exists() or output.is_symlink():
        faults.append(f"--output {output}: exists; an export replaces nothing, name another")
    elif refusal := why_no_directory(output):
        faults.append(f"--output {output}: {refusal}")
    target = faults.attempt(lambda: open_target(settings.format))
    source = faults.attempt(lambda: read(settings.input))
    if source:
        faults += source.misfits()
    if source and target:
        faults += target.faults(source)
    faults.stop()
    assert source and target
    config = source.config
    print(f"{source.place}: {config.name}, {config.parameters() / 1e6:.1f}M parameters")
    for note in target.notes(source):
        print(note)
    comparison = publish(source, target, output)
    print(f"checked: {comparison}")
    print(f"exported to {output}")
    return 0


def open_target(format_: Format) -> Target:
    """Import the module of a format.

    Raises:
        UserError: packages that it needs are not installed.
    """
    module = _FORMATS[format_]
    missing = [name for name in module.packages if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format {format_} needs {', '.join(missing)}: pip install -e '.[convert]'"
        )
    return cast(Target, import_module(f"recipes.interop.{module.name}"))


def publish(source: Source, target: Target, output: Path) -> Comparison:
    """Write a format beside `output`, check it, and give it its name.

    Raises:
        UserError, MachineError: as `run`.
    """
    with writing(output), ExitStack() as after:
        output.parent.mkdir(parents=True, exist_ok=True)
        # A name that nobody has, beside the output: the last step is a rename on one file system.
        work = Path(mkdtemp(prefix=f"{output.name}.", suffix=PARTIAL, dir=output.parent))
        after.callback(shutil.rmtree, work, ignore_errors=True)
        partial = work / "export"  # with the permissions of any new directory, not of a private one
        partial.mkdir()
        target.write(source, partial)
        comparison = target.compare(source, partial)
        if not comparison.agrees:
            raise UserError(
                f"{output}: not exported: what was written computes something else: {comparison}"
            )
        sync_tree(partial)
        partial.rename(output)
        sync_directory(output.parent)
    return comparison
