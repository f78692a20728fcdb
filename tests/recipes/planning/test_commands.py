"""The lines to paste: a shell runs them, the job's own checks take them, pretraining cuts the batch
as planned."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from plan_scenarios import question

from recipes.common.errors import Faults
from recipes.common.places import ROOT
from recipes.common.settings import flat, parse
from recipes.engine.batch_plan import plan_batches
from recipes.engine.ds_config import read_config
from recipes.planning.commands import lines_to_paste, pretrain_options
from recipes.planning.forecast import forecast
from recipes.training.settings import Settings

# What sbatch does with a job, as far as the script is concerned: it runs it, and notes the words.
# srun notes what the job would start; sbatch from within the job does nothing.
SBATCH = """#!/bin/bash
[[ -z ${INSIDE:-} ]] || exit 0
printf '%s\\n' "$@" "MODEL=${MODEL-}" >>"$NOTES/sbatch"
export INSIDE=1 SLURM_SUBMIT_DIR=$PWD SLURM_JOB_ID=5 SLURM_JOB_NODELIST=n0
bash "${@: -1}" || echo "status $?" >>"$NOTES/failed"
"""
SRUN = """#!/bin/bash
printf '%s\\0' "$@" >>"$NOTES/srun"
"""


def pasted(directory: Path, lines: list[str]) -> tuple[list[str], list[str]]:
    """What sbatch and srun were told when a shell ran the lines in a copy of the repository."""
    (directory / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN)):
        (directory / "bin" / name).write_text(text)
        (directory / "bin" / name).chmod(0o755)
    copy = directory / "copy"
    (copy / "data" / "c4").mkdir(parents=True)
    (copy / "data" / "c4" / "manifest.json").write_text("{}")
    for name in ("slurm", "model", "recipes", "ds_configs"):
        (copy / name).symlink_to(ROOT / name)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    clean |= {"PATH": f"{directory / 'bin'}:{clean['PATH']}", "NOTES": str(directory)}
    for name in ("MODEL", "DATA", "OUTPUT", "DEEPSPEED_CONFIG", "PRETRAIN_OPTIONS"):
        clean.pop(name, None)
    done = subprocess.run(
        ["bash", "-euc", "\n".join(lines)],
        cwd=copy,
        env=clean,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and not (directory / "failed").exists(), done.stderr
    srun = (directory / "srun").read_text().split("\0")
    return (directory / "sbatch").read_text().splitlines(), srun


@pytest.mark.parametrize(
    ("words", "gpus"),
    [
        (("--model", "rapidbert-large", "--gpu", "a100-80"), 64),
        (("--model", "rapidbert-base", "--gpu", "a100-40", "--global-batch", "16384"), 12),
        (
            ("--model", "bert-large", "--gpu", "h200", "--tokens", "1e9", "--recompute")
            + ("--sequence-length", "256", "--mask-probability", "0.15"),
            4,
        ),
    ],
)
def test_pasted_lines_are_accepted(tmp_path, words, gpus):
    asked = question(tmp_path, *words)
    planned = forecast(asked, gpus)
    lines = lines_to_paste(asked, [planned])
    sbatch, srun = pasted(tmp_path, lines)
    script = next(word for word in sbatch if word.startswith("slurm/"))
    known = set(re.findall(r"^#SBATCH (--[\w-]+)", (ROOT / script).read_text(), re.MULTILINE))
    options = dict(word.split("=") for word in sbatch if word.startswith("--"))
    assert set(options) <= known
    per_node = int(options.get("--gpus-per-node", 8))
    assert int(options["--nodes"]) * per_node == gpus
    assert options.get("--ntasks-per-node", "8") == str(per_node)
    # The job reached srun, with the model, a JSON that is right, and options that are pretrain's.
    told = srun[srun.index("recipes/pretrain.py") + 1 : -1]
    faults = Faults()
    run = parse(Settings, told, faults=faults)
    values = flat(run)
    assert not faults and values["model"] == asked.model.name
    config = read_config(tmp_path / "copy" / values["deepspeed_config"])
    micro_batch = config["train_micro_batch_size_per_gpu"]
    assert plan_batches(config["train_batch_size"], micro_batch, gpus) == planned.plan
    asked_run = asked.settings.run
    for name in ("sequence_length", "recompute"):
        assert values[name] == getattr(asked_run, name)
    assert values["mask_probability"] in (None, asked_run.mask_probability)


def test_options_of_the_run_are_passed_on(tmp_path):
    words = ("--duration", "178k-steps", "--recompute", "--price-per-gpu-hour", "1.5")
    assert pretrain_options(question(tmp_path, *words)) == [
        *("--duration", "178k-steps", "--recompute", "--price-per-gpu-hour", "1.5")
    ]
    assert pretrain_options(question(tmp_path, "--gpu", "a100-80")) == []  # all defaults
    (tokens,) = [
        pretrain_options(question(tmp_path, "--gpu", "a100-80", "--tokens", tokens))
        for tokens in ("1.28e9",)
    ]
    assert tokens == ["--duration", "10000000"]


def test_the_file_that_is_right_is_named_and_no_other_written(tmp_path):
    asked = question(tmp_path, "--gpu", "a100-80")
    eight, many = lines_to_paste(asked, [forecast(asked, 8), forecast(asked, 200)])
    assert eight.split("  #")[0].strip() == "sbatch --nodes=1 slurm/pretrain_base.sh"
    assert many == "sbatch --nodes=25 slurm/pretrain_base.sh  # 200 GPUs"
