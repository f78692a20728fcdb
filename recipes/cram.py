"""RapidBERT against BERT after equal time on one device: pretrained, finetuned, compared.

    ./run.sh cram --minutes 20 --input my_corpus/
    ./run.sh cram --minutes 20 --input my_corpus/ --glue data/glue --tasks cola sst2 mrpc

Both models see the same text in the same order, each for so many minutes of training, in batches
and at a learning rate that follow the recipe and not the model. They are finetuned from exports at
a quarter, at half and at the end of the time, and from random weights; loss and score are then
drawn against time. On a GPU they are Base, on a CPU toys. Without --glue the tasks are stand-ins
made from the text of Python.

Every step is a command of its own, shown as it starts; the same command goes on where it ended.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

import torch

from recipes.benchmarks.comparison import CPU, GPU, Settings, commands, resolve
from recipes.common.entry import run
from recipes.common.errors import Faults, UserError
from recipes.common.locks import lock
from recipes.common.places import ROOT
from recipes.common.processes import run_in_front
from recipes.common.settings import parse, split_rest
from recipes.reporting import equal_time


def main(words: Sequence[str] | None = None) -> int:
    """Run the commands of the comparison one after the other; returns the exit code."""
    own, handed_on = split_rest(sys.argv[1:] if words is None else words)
    faults = Faults()
    settings = parse(Settings, own, faults=faults, manual=__doc__)
    size = GPU if torch.cuda.is_available() else CPU
    comparison = resolve(settings, handed_on, size, faults)
    steps = commands(comparison)
    if settings.dry_run:
        print("\n".join(shlex.join(step) for step in steps))
        return 0
    comparison.output.mkdir(parents=True, exist_ok=True)
    lock(comparison.output, "comparing models in it")
    for number, step in enumerate(steps, 1):
        print(f"\n== {number}/{len(steps)}  {shlex.join(step[1:])}", flush=True)
        status = run_in_front(step, ROOT)
        if status:
            mended = "mend what is named above, and " * (status == UserError.status)
            goes_on = f"ended with status {status}; {mended}the same command goes on"
            print(f"{goes_on} where it ended", file=sys.stderr)
            return status
    print(f"\n{equal_time.write(comparison.output, comparison.runs)}")
    return 0


if __name__ == "__main__":
    run(main)
