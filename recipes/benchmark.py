"""Measurements, each to one JSON record and one figure.

    python recipes/benchmark.py throughput
    python recipes/benchmark.py all --minutes 9

Every mode runs at full size on a GPU and, through the same code, at toy size on the CPU, where its
record is called `<mode>_cpu` and says `toy`. Times are of synchronised repeats after a warm-up that
does not count; contenders take turns; records hold medians beside the slowest and the fastest.
"""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from recipes.benchmarks import run_all as benchmark_all  # noqa: E402
from recipes.benchmarks.records import Record, write_figure  # noqa: E402
from recipes.common.cli import MINUTES, ArgumentParser  # noqa: E402
from recipes.common.entry import run  # noqa: E402
from recipes.common.errors import UserError  # noqa: E402
from recipes.common.files import why_no_directory  # noqa: E402
from recipes.common.locks import lock, unlock_if_alone  # noqa: E402
from recipes.reporting.tables import aligned  # noqa: E402

MODES = {
    "correctness": "kernels against references: relative errors, forward and backward",
    "throughput": "training: model x micro-batch x global batch, and what a step is made of",
    "attention": "attention backends against each other and against the hardware's floor",
    "peers": "training beside Hugging Face's BERT and ModernBERT and the published design",
    "ablations": "the training step with one choice changed at a time",
    "glu": "the three feed-forwards of appendix G (Figure S4)",
    "sequence-length": "training at 128 to 8,192 tokens (Figure S2)",
    "checkpoint": "seconds and MB/s of saving and resuming, their share of the training time",
    "input": "real tokens/s from shards to batches and tokenisation MB/s, per core",
}


def module_of(mode: str) -> ModuleType:
    """The mode's file: `add_options`, `benchmark`, `figure`, `table`, `headlines`, `BY_DEVICE`."""
    return importlib.import_module(f"recipes.benchmarks.{mode.replace('-', '_')}")


def run_mode(mode: str, module: Any, options: Namespace) -> int:
    """Measure, write the record and the figure, print the table; 1 where something failed."""
    take_directory(options.output)
    record = Record(mode, options.output, options.minutes, by_device=module.BY_DEVICE)
    try:
        module.benchmark(options, record)
    except UserError:
        unlock_if_alone(options.output)
        with suppress(OSError):  # unless something is in it
            options.output.rmdir()
        raise
    if record.of_another_rank:
        return 0
    record["complete"] = True
    record.save()
    finish(module, record.content, record.path)
    return 1 if record["failures"] else 0


def take_directory(output: Path) -> None:
    """Keep other measurements out of it: they would mix records, and slow each other down.

    Raises:
        UserError: it cannot be, or another process is measuring into it.
    """
    if refusal := why_no_directory(output):
        raise UserError(f"--output {output}: {refusal}")
    output.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") == "0":  # the one that writes, where a launcher started several
        lock(output, "measuring into it")


def finish(module: Any, content: dict[str, Any], path: Path) -> None:
    """Draw a record and print its table, where the paths are, and what is missing from it."""
    write_figure(module.figure(content), path.with_suffix(".png"))
    print("\n" + aligned(module.table(content)))
    for kind in ("not_run", "failures"):
        for what, why in content[kind].items():
            print(f"{kind.replace('_', ' ')}: {what}: {why}")
    print(f"\n{path}\n{path.with_suffix('.png')}")


def main() -> int:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    modes = parser.add_subparsers(dest="mode", required=True, metavar="mode")
    # Only what is asked for is imported: DeepSpeed and Megatron take seconds.
    chosen = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    for name, text in MODES.items():
        mode = modes.add_parser(name, help=text)
        if name == chosen:
            module = module_of(name)
            mode.description = module.__doc__
            module.add_options(mode)
        mode.add_argument(
            "--minutes", type=MINUTES, help="start nothing new after these; without it all is run"
        )
        mode.add_argument(
            "--output", type=Path, default=Path("docs/results"), help="of record and figure"
        )
    benchmark_all.add_mode(modes)
    options = parser.parse_args()
    if options.mode == "all":
        return benchmark_all.run_all(options, MODES, module_of)
    return run_mode(options.mode, module_of(options.mode), options)


if __name__ == "__main__":
    run(main)
