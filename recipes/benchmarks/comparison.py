"""Two models after equal time: the settings of a comparison, and every command that it takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.common.errors import Faults
from recipes.common.files import why_no_directory
from recipes.common.places import RECIPES
from recipes.common.settings import Count, Minutes, claimed, parse
from recipes.reporting.equal_time import SHARES
from recipes.tasks.glue_tasks import TASKS, Task
from recipes.training import settings as pretraining

STAND_INS = ("cola", "sst2", "qnli")  # one text, one text, a pair; all start from pretraining

NOT_AFTER_DASHES = {
    "--model": "it trains both of its own",
    "--data": "",
    "--output": "",
    "--minutes": "",
    "--duration": "both train for --minutes",
    "--export-at": "the exports at a quarter and at half of the time are what is compared",
    "--dry-run": "",
    "--gpus": "this machine's are taken",
    **dict.fromkeys(("--help", "-h"), "recipes/pretrain.py --help explains its options"),
}
"""Options of pretraining that the comparison gives itself, and what to do instead."""


@dataclass(frozen=True)
class Settings:
    """RapidBERT against BERT after equal time on one device.

    Options after a bare -- go to recipes/pretrain.py, for both models alike.
    """

    minutes: Minutes
    """Minutes of training for each of the two models."""
    input: tuple[str, ...] = ()
    """Text as for prepare_data.py; the documentation that comes with Python if not given."""
    config: str | None = None
    """Configuration of a hub dataset, such as en."""
    data: Path | None = None
    """Directory that prepare_data.py has written, instead of --input."""
    output: Path = Path("runs/cram")
    """Directory of everything that is made here."""
    glue: Path | None = None
    """Directory with GLUE's tasks, all or some; stand-ins are made if not given."""
    tasks: tuple[str, ...] = ()
    """Tasks to finetune on; the stand-ins cola, sst2 and qnli, or all that --glue has, if not
    given."""
    seeds: Count = 1
    """Finetunings per task, at most."""
    dry_run: bool = False
    """Print the commands and end."""


@dataclass(frozen=True)
class Size:
    """What fits a device. The batch is smaller than a long run's: short ones need the steps."""

    models: tuple[str, str]
    deepspeed: str
    vocab_size: int
    pretraining: tuple[str, ...]
    """Options of pretrain.py."""
    stand_ins: tuple[str, ...]
    """Options of finetune.py on the stand-ins, which are smaller than GLUE's tasks."""


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


@dataclass(frozen=True)
class Comparison:
    """What there is to do, checked. Paths are absolute: the commands run in the repository."""

    settings: Settings
    size: Size
    input: tuple[str, ...]
    output: Path
    data: Path | None
    glue: Path | None
    tasks: tuple[Task, ...]
    pretraining: tuple[str, ...]
    """Options that both models get."""

    @property
    def runs(self) -> list[Path]:
        """Directories of the two runs."""
        return [self.output / model for model in self.size.models]


def resolve(settings: Settings, handed_on: Sequence[str], size: Size, faults: Faults) -> Comparison:
    """Check the settings and complete them.

    Args:
        handed_on: options for pretraining.
        faults: what was found wrong before.

    Raises:
        UserError: all faults at once.
    """
    if settings.data is not None and (settings.input or settings.config):
        faults.append("--data is prepared already: give it or --input, not both")
    if refusal := why_no_directory(settings.output):
        faults.append(f"--output {settings.output}: {refusal}")
    faults += claimed(handed_on, NOT_AFTER_DASHES) or _pretraining_faults(handed_on)
    faults += _task_faults(settings)
    faults.stop()
    names = settings.tasks or (STAND_INS if settings.glue is None else _tasks_in(settings.glue))
    return Comparison(
        settings=settings,
        size=size,
        input=tuple(str(Path(w).resolve()) if Path(w).exists() else w for w in settings.input),
        output=settings.output.resolve(),
        data=settings.data and settings.data.resolve(),
        glue=settings.glue and settings.glue.resolve(),
        tasks=tuple(task for task in TASKS.values() if task.name in names),
        pretraining=tuple(handed_on),
    )


def _pretraining_faults(words: Sequence[str]) -> list[str]:
    """Return what pretraining would say of these options, after the data is prepared."""
    if not words:
        return []
    needed = ("--model", "--data", "--output", "--deepspeed-config")
    given = [word for name in needed for word in (name, "-")]
    faults = Faults()
    faults.attempt(lambda: parse(pretraining.Settings, [*given, *words]))
    return faults


def _task_faults(settings: Settings) -> Iterator[str]:
    names = settings.tasks
    if unknown := [name for name in names if name not in TASKS]:
        yield f"--tasks: no task {', '.join(unknown)}; the tasks are {', '.join(TASKS)}"
    if settings.glue is None:
        return
    there = _tasks_in(settings.glue)
    missing = [name for name in names if name in TASKS and name not in there]
    if not there:
        folders = ", ".join(task.folder for task in TASKS.values())
        yield f"--glue {settings.glue}: none of {folders} in it"
    elif missing:
        yield f"--glue {settings.glue}: no {', '.join(missing)}; {', '.join(there)} are"


def _tasks_in(directory: Path) -> tuple[str, ...]:
    """Return the tasks that have a folder in a directory."""
    return tuple(
        task.name
        for task in TASKS.values()
        if any((directory / name).is_dir() for name in (task.folder, task.name))
    )


def commands(comparison: Comparison) -> list[list[str]]:
    """Return every command of the comparison, in order."""
    data, labelled = comparison.data, comparison.glue
    steps = []
    if data is None:
        data = comparison.output / "data"
        steps.append(_preparation(comparison, data))
    steps += [_pretraining(comparison, model, data) for model in comparison.size.models]
    if labelled is None:
        labelled = comparison.output / "stand-ins"
        steps.append(_recipe("stand_in_tasks", "--output", labelled))
    for run in comparison.runs:
        # Random weights first, then the exports in the order of time.
        steps.append(_finetuning(comparison, run, labelled, "--from-scratch"))
        starts = [*(run / f"at-{100 * share:g}" for share in SHARES), run]
        steps += [_finetuning(comparison, start, labelled) for start in starts]
    return steps


def _preparation(comparison: Comparison, data: Path) -> list[str]:
    config = comparison.settings.config
    given = ["--input", *comparison.input] if comparison.input else []
    given += ["--config", config] if config else []
    # Of the little text that comes with Python, enough must be held out.
    held_out = [] if comparison.input else ["--validation-fraction", "0.05"]
    vocabulary = ["--vocab-size", comparison.size.vocab_size]
    return _recipe("prepare_data", *given, "--output", data, *vocabulary, *held_out)


def _pretraining(comparison: Comparison, model: str, data: Path) -> list[str]:
    # Each as published: RapidBERT hides 30% of the tokens, BERT 15%.
    masked = "0.15" if model.startswith("bert-") else "0.30"
    size, minutes = comparison.size, comparison.settings.minutes
    return _recipe(
        *("pretrain", "--model", model, "--data", data, "--output", comparison.output / model),
        *("--deepspeed-config", size.deepspeed, "--minutes", f"{minutes:g}"),
        *("--mask-probability", masked, "--save-every", "200"),
        *("--export-at", *SHARES, *size.pretraining, *comparison.pretraining),
    )


def _finetuning(comparison: Comparison, start: Path, labelled: Path, *words: str) -> list[str]:
    behind = ("--", *comparison.size.stand_ins) if comparison.glue is None else ()
    return _recipe(
        *("glue", "--checkpoint", start, "--data", labelled),
        *("--tasks", *(task.name for task in comparison.tasks)),
        *("--seeds", comparison.settings.seeds, *words, *behind),
    )


def _recipe(name: str, *words: object) -> list[str]:
    return [sys.executable, str(RECIPES / f"{name}.py"), *map(str, words)]
