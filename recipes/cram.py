"""RapidBERT against BERT after equal time on one device: pretrained, finetuned, compared.

    ./run.sh cram --minutes 20 --input my_corpus/
    ./run.sh cram --minutes 20 --input my_corpus/ --glue data/glue --tasks cola sst2 mrpc

Both models see the same text in the same order, each for so many minutes of training, in batches
and at a learning rate that follow the recipe and not the model. They are finetuned from exports at
a quarter, at half and at the end of the time, and from random weights. `equal_time.py` then draws
loss and score against time. On a GPU they are Base, on a CPU toys. Without --glue the tasks are
stand-ins made from the text of Python.

Every step is a command of its own, shown as it starts; the same command goes on where it ended.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

import torch

from recipes.common.cli import COUNT, MINUTES, ArgumentParser, claimed
from recipes.common.entry import run
from recipes.common.errors import Faults, UserError
from recipes.common.files import why_no_directory
from recipes.common.locks import lock
from recipes.common.processes import run_in_front
from recipes.common.settings import parse
from recipes.corpus.text_sources import EMBEDDED
from recipes.reporting import equal_time
from recipes.tasks.glue_tasks import TASKS, Task
from recipes.training.settings import Settings as PretrainingSettings

ROOT = Path(__file__).resolve().parents[1]
RECIPES = Path(__file__).resolve().parent
STAND_INS = ("cola", "sst2", "qnli")  # one text, one text, a pair; all start from pretraining


CLAIMED = {
    "--model": "it trains both of its own",
    "--data": "",
    "--output": "",
    "--minutes": "",
    "--duration": "both train for --minutes",
    "--export-at": "the exports at a quarter and at half of the time are what is compared",
    "--dry-run": "",
    "--gpus": "this machine's are taken",
    "--help": "recipes/pretrain.py --help explains its options",
}
"""Options of pretraining that are not for the user to hand on, and what to do instead."""


@dataclass(frozen=True)
class Size:
    """What fits a device. The batch is smaller than a long run's: short ones need the steps."""

    models: tuple[str, str]
    deepspeed: str
    vocab_size: int
    pretraining: tuple[str, ...]
    stand_ins: tuple[str, ...]
    """Finetuning on the stand-ins, which are smaller than GLUE's tasks."""


GPU = Size(
    models=("rapidbert-base", "bert-base"),
    deepspeed="ds_configs/cram.json",
    vocab_size=30522,
    pretraining=("--eval-every", "50", "--eval-sequences", "4096"),
    stand_ins=("--learning-rate", "5e-5", "--epochs", "3", "--batch-size", "32"),
)
CPU = Size(
    models=("rapidbert-tiny", "bert-tiny"),
    deepspeed="ds_configs/tiny_cpu.json",
    vocab_size=4096,
    pretraining=("--learning-rate", "1.5e-3", "--eval-every", "50", "--eval-sequences", "256"),
    stand_ins=("--learning-rate", "4e-4", "--epochs", "2", "--batch-size", "16"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    size = GPU if torch.cuda.is_available() else CPU
    tasks = resolve(options)
    steps = commands(options, size, tasks)
    if options.dry_run:
        print("\n".join(shlex.join(step) for step in steps))
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    lock(options.output, "comparing models in it")
    for number, step in enumerate(steps, 1):
        print(f"\n== {number}/{len(steps)}  {shlex.join(step[1:])}", flush=True)
        status = run_in_front(step, ROOT)
        if status:
            mended = "mend what is named above, and " * (status == UserError.status)
            goes_on = f"ended with status {status}; {mended}the same command goes on"
            print(f"{goes_on} where it ended", file=sys.stderr)
            return status
    print(f"\n{equal_time.write(options.output, [options.output / m for m in size.models])}")
    return 0


def commands(options: Any, size: Size, tasks: Sequence[Task]) -> list[list[str]]:
    """Everything to run, in order."""
    output: Path = options.output
    data = options.data or output / "data"
    steps = []
    if options.data is None:
        # Of the little text that comes with Python, enough must be held out.
        held_out = [] if options.input else ["--validation-fraction", "0.05"]
        given = ["--input", *options.input] if options.input else []
        given += ["--config", options.config] if options.config else []
        vocabulary = ["--vocab-size", str(size.vocab_size)]
        steps.append(_recipe("prepare_data", *given, "--output", data, *vocabulary, *held_out))
    for model in size.models:
        # Each as published: RapidBERT hides 30% of the tokens, BERT 15%.
        masked = "0.15" if model.startswith("bert-") else "0.30"
        steps.append(
            _recipe(
                *("pretrain", "--model", model, "--data", data, "--output", output / model),
                *("--deepspeed-config", size.deepspeed, "--minutes", f"{options.minutes:g}"),
                *("--mask-probability", masked, "--save-every", "200"),
                *("--export-at", *equal_time.SHARES, *size.pretraining, *options.pretraining),
            )
        )
    labelled = options.glue
    if labelled is None:
        labelled = output / "stand-ins"
        steps.append(_recipe("stand_in_tasks", "--output", labelled))
    for model in size.models:
        exports = [f"at-{100 * share:g}" for share in equal_time.SHARES]
        starts = [output / model / name for name in exports] + [output / model]
        for checkpoint, control in [(starts[-1], True), *((start, False) for start in starts)]:
            steps.append(
                _recipe(
                    *("glue", "--checkpoint", checkpoint, "--data", labelled),
                    *("--tasks", *(task.name for task in tasks), "--seeds", options.seeds),
                    *(["--from-scratch"] * control),
                    *("--", *size.stand_ins) * (options.glue is None),
                )
            )
    return steps


def _recipe(name: str, *words: object) -> list[str]:
    return [sys.executable, str(RECIPES / f"{name}.py"), *map(str, words)]


def resolve(options: Any) -> list[Task]:
    """The tasks to finetune on.

    Raises:
        UserError: all faults of the options at once.
    """
    faults = list(options.faults)
    if options.data is not None and (options.input or options.config):
        faults.append("--data is prepared already: give it or --input, not both")
    if refusal := why_no_directory(options.output):
        faults.append(f"--output {options.output}: {refusal}")
    taken = claimed(options.pretraining, CLAIMED)
    faults += taken or _pretraining_faults(options.pretraining)
    unknown = [name for name in options.tasks or () if name not in TASKS]
    if unknown:
        faults.append(f"--tasks: no task {', '.join(unknown)}; the tasks are {', '.join(TASKS)}")
    names = options.tasks or STAND_INS
    if options.glue is not None:
        there = [task.name for task in TASKS.values() if _is_there(options.glue, task)]
        names = options.tasks or there
        missing = [name for name in names if name in TASKS and name not in there]
        if not options.glue.is_dir() or not there:
            folders = ", ".join(task.folder for task in TASKS.values())
            faults.append(f"--glue {options.glue}: none of {folders} in it")
        elif missing:
            faults.append(f"--glue {options.glue}: no {', '.join(missing)}; {', '.join(there)} are")
    if faults:
        raise UserError(*faults)
    for name in ("output", "data", "glue"):  # the steps run in the repository's root
        if (path := getattr(options, name)) is not None:
            setattr(options, name, path.resolve())
    options.input = [
        str(Path(word).resolve()) if Path(word).exists() else word for word in options.input or ()
    ]
    return [task for task in TASKS.values() if task.name in names]


def _pretraining_faults(words: Sequence[str]) -> list[str]:
    """Return what pretraining would say of these options, after the data is prepared."""
    if not words:
        return []
    needed = ("--model", "--data", "--output", "--deepspeed-config")
    given = [word for name in needed for word in (name, "-")]
    faults = Faults()
    faults.attempt(lambda: parse(PretrainingSettings, [*given, *words]))
    return faults


def _is_there(directory: Path, task: Task) -> bool:
    return (directory / task.folder).is_dir() or (directory / task.name).is_dir()


def parse_arguments(arguments: Sequence[str] | None = None) -> Any:
    parser = ArgumentParser(
        refuse=False,
        description="RapidBERT against BERT after equal time on one device.",
        epilog="Options after a bare -- go to recipes/pretrain.py, for both models alike.",
    )
    add = parser.add_argument
    add("--minutes", type=MINUTES, required=True, help="of training, for each of the two models")
    add("--input", nargs="+", help=f"text as for prepare_data.py; {EMBEDDED} if not given")
    add("--config", help="configuration of a hub dataset, such as en")
    add("--data", type=Path, help="directory that prepare_data.py has written, instead of --input")
    add("--output", type=Path, default=Path("runs/cram"), help="directory of everything made here")
    add("--glue", type=Path, help="directory with GLUE's tasks, those that are there")
    add(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help=f"which; stand-ins {', '.join(STAND_INS)}, or all that --glue has, if not given",
    )
    add("--seeds", type=COUNT, default=1, help="finetunings per task, at most")
    add("--dry-run", action="store_true", help="print the commands and exit")
    add("pretraining", nargs="*", metavar="-- OPTION", help="options for recipes/pretrain.py")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
