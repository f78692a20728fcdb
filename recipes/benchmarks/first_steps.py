"""What is tried before anything is measured, so that a fault here is seen first.

    python recipes/benchmarks/first_steps.py world FOLDER
    python recipes/benchmarks/first_steps.py pretraining FOLDER rapidbert-tiny
    python recipes/benchmarks/first_steps.py compile FOLDER rapidbert-large

Each takes a folder of its own to work in, prints what it found in its last line, and ends with
status 1 where that is wrong. Nothing here is timed, so that all of them can run at once.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

if __package__ in (None, ""):  # run as a file: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

from recipes.common.entry import run
from recipes.common.files import sha256
from recipes.common.json_content import Json
from recipes.common.places import DS_CONFIGS, RECIPES, ROOT
from recipes.training.run_log import of_training

STEPS = 20
"""Optimizer steps of the pretraining; the checkpoint that it goes on from lies in the middle."""
TOLERANCE = 2e-3
"""Largest relative difference of a step's loss after a resume on a GPU, in bf16. What adds up
atomically there may do so in another order; on the CPU the losses are the same to the bit."""
COMPILED_SEQUENCES = 64
"""Micro-batch of the steps that only compile: the kernels are those of any other."""


def world(directory: Path) -> str:
    """Set up one process as training does, and let it add, broadcast and wait.

    Raises:
        ArithmeticError: the sum of one process is not its own number.
    """
    began = time.monotonic()
    import torch
    import torch.distributed as dist

    from recipes.engine.world import initialize_world, shut_down

    joined = initialize_world()
    for kind in (torch.float32, torch.bfloat16):
        numbers = torch.arange(4096, device=joined.device).to(kind)
        summed = numbers.clone()
        dist.all_reduce(summed)
        if not torch.equal(summed, numbers):
            raise ArithmeticError(f"the sum of one process in {kind} is not its own number")
    told = [joined.rank]
    dist.broadcast_object_list(told, src=0)
    dist.barrier()
    backend = dist.get_backend()
    shut_down()
    return (
        f"{backend} on {joined.device.type}: set up and added in {time.monotonic() - began:.1f} s"
    )


def pretraining(directory: Path, model: str) -> str:
    """Prepare text, pretrain, go on from the checkpoint in the middle, and compare.

    Args:
        model: the toy is trained in fp32, so that nothing may differ; any other one in bf16.

    Raises:
        ArithmeticError: nothing was resumed, or the losses, or of the toy the weights, are not
            those of the run that was not interrupted.
        subprocess.CalledProcessError: a command failed; it has said why.
    """
    data, whole, resumed = directory / "data", directory / "whole", directory / "resumed"
    _call(RECIPES / "prepare_data.py", "--output", data, "--vocab-size", 4096)
    toy = model.endswith("-tiny")
    name = "tiny_cpu.json" if toy else f"{model.rpartition('-')[2]}.json"
    config = json.loads((DS_CONFIGS / name).read_text("utf-8"))
    batch = 16 if toy else 128  # two micro-batches
    config |= {"train_batch_size": batch, "train_micro_batch_size_per_gpu": batch // 2}
    (directory / "deepspeed.json").write_text(json.dumps(config))
    words = ["--model", model, "--data", data, "--deepspeed-config", directory / "deepspeed.json"]
    words += ["--duration", STEPS * batch, "--log-every", 1, "--save-every", STEPS // 2]
    words += ["--eval-every", 0]
    _call(RECIPES / "pretrain.py", *words, "--output", whole)
    cut_off(whole, resumed, STEPS // 2)
    _call(RECIPES / "pretrain.py", *words, "--output", resumed)
    refuse_a_new_start(logged(whole), logged(resumed))
    return compare(losses(whole), losses(resumed), weights(whole) == weights(resumed), exact=toy)


def cut_off(whole: Path, cut: Path, step: int) -> None:
    """Copy a run as a crash would have left it: its checkpoints end at `step`, the log does not."""
    shutil.copytree(whole, cut, ignore=shutil.ignore_patterns("export", ".lock"))
    for checkpoint in (cut / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


def logged(run: Path) -> dict[int, Json]:
    """Return what the log of a run has of the training of every step."""
    records: Iterable[Json] = map(json.loads, (run / "log.jsonl").read_text("utf-8").splitlines())
    return {each["step"]: each for each in records if of_training(each)}


def losses(run: Path) -> dict[int, float]:
    """Return the training loss of every logged step that has one."""
    return {step: each["loss/train"] for step, each in logged(run).items() if "loss/train" in each}


def refuse_a_new_start(whole: dict[int, Json], resumed: dict[int, Json]) -> None:
    """See that the steps before the checkpoint were not done again.

    A resumed run keeps their lines of the log. One that began anew has the same losses, but never
    the same times.

    Raises:
        ArithmeticError: they were, or the log does not have them.
    """
    for step in range(1, STEPS // 2 + 1):
        if step not in whole or whole[step] != resumed.get(step):
            raise ArithmeticError(
                f"not resumed at step {STEPS // 2}: the line of step {step} in the log is not that "
                "of the run before"
            )


def weights(run: Path) -> str:
    """Return the checksum of the exported weights."""
    return sha256(run / "export" / "model.safetensors")


def compare(
    whole: dict[int, float], resumed: dict[int, float], same_weights: bool, *, exact: bool
) -> str:
    """Say how the losses after the resume are those of the run that was not interrupted.

    Args:
        whole, resumed: loss by step.
        exact: refuse any difference, that of the weights too, instead of one above `TOLERANCE`.

    Raises:
        ArithmeticError: they are not, or steps are missing.
    """
    after = range(STEPS // 2 + 1, STEPS + 1)
    if missing := [step for step in after if step not in whole or step not in resumed]:
        raise ArithmeticError(f"no loss of steps {missing}")
    differences = {step: abs(resumed[step] / whole[step] - 1) for step in after}
    differences = {s: d if math.isfinite(d) else math.inf for s, d in differences.items()}
    worst = max(after, key=lambda step: differences[step])
    to_the_bit = not differences[worst] and same_weights
    if not to_the_bit and (exact or differences[worst] > TOLERANCE):
        raise ArithmeticError(
            f"resumed at step {STEPS // 2}, step {worst} has loss {resumed[worst]!r} instead of "
            f"{whole[worst]!r}; weights are {'the same' if same_weights else 'other ones'}"
        )
    how = "equal to the bit" if to_the_bit else f"within {differences[worst]:.1e} of each other"
    return (
        f"{STEPS} steps, loss {whole[min(whole)]:.2f} to {whole[STEPS]:.2f}; resumed at step "
        f"{STEPS // 2}: {how}"
    )


def _call(command: Path, *words: object) -> None:
    """Run a command as a user types it; its output goes where ours goes."""
    subprocess.run([sys.executable, str(command), *map(str, words)], check=True, cwd=ROOT)


def compiled(directory: Path, model: str) -> str:
    """Do two steps, so that what a model needs is compiled when the clock runs."""
    from recipes.benchmarks import training_step
    from recipes.benchmarks.records import Record

    began = time.monotonic()
    record = Record("compile", directory)
    with (
        training_step.training_data(None, record, documents=500) as shards,
        training_step.one_process() as joined,
    ):
        setup = training_step.on_data(training_step.recommended(model, record)[0], shards)
        size = COMPILED_SEQUENCES
        batches = training_step.made_batches(
            shards, size, size, training_step.SEQUENCE_LENGTH, steps=1
        )
        with training_step.Trainer(setup, size, size, batches, joined) as trainer:
            for _ in range(2):
                trainer.step()
    return f"two steps of {model} after {time.monotonic() - began:.0f} s, {setup.kernels} kernels"


FIRST_STEPS: dict[str, Callable[..., str]] = {
    "world": world,
    "pretraining": pretraining,
    "compile": compiled,
}


def main() -> int:
    name, directory, *words = sys.argv[1:]
    Path(directory).mkdir(parents=True, exist_ok=True)
    try:
        print(FIRST_STEPS[name](Path(directory), *words))
    except (ArithmeticError, subprocess.CalledProcessError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run(main)
