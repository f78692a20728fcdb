"""Measurements, each to one JSON record and one figure.

    python recipes/benchmark.py throughput
    python recipes/benchmark.py all --minutes 9

Every mode runs at full size on a GPU and, through the same code, at toy size on the CPU, where its
record is called `<mode>_cpu` and says `toy`. Times are of synchronised repeats after a warm-up that
does not count; contenders take turns; records hold medians beside the slowest and the fastest.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from recipes.benchmarks.mode import MODES, AllSettings, mode_of
from recipes.common.entry import run
from recipes.common.errors import UserError
from recipes.common.settings import parse


def main() -> int:
    began = time.monotonic()  # of the budget: imports below take seconds
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    if name is None:
        if not {"-h", "--help"}.intersection(sys.argv):
            raise UserError(f"the mode is missing: one of {', '.join(MODES)} or all")
        print(usage())
        return 0
    words = sys.argv[1:]
    words.remove(name)
    program = f"benchmark.py {name}"
    if name == "all":
        settings = parse(AllSettings, words, program=program)
        from recipes.benchmarks.run_all import run_all  # here: torch takes seconds

        return run_all(settings, mode_of)
    mode = mode_of(name)  # only this one is imported: DeepSpeed and Megatron take seconds
    mode_settings = parse(mode.settings, words, program=program)
    from recipes.benchmarks.running import run_mode

    return run_mode(name, mode, mode_settings, began=began)


def usage() -> str:
    lines = ["usage: benchmark.py MODE [--help] [options of the mode]", "", str(__doc__), "modes:"]
    lines += [f"  {name:<17}{listed.measures}" for name, listed in MODES.items()]
    return "\n".join([*lines, f"  {'all':<17}every mode within a time budget, and one table"])


if __name__ == "__main__":
    run(main)
