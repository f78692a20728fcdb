"""The scripts' settings, looked at before anything is started; SLURM's commands only note calls."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTE = '#!/bin/bash\nprintf "%s\\0" {name} "$@" end >>"$CALLS"\n'


class Scripts:
    """Runs the repository's scripts with SLURM's commands replaced by ones that note words."""

    def __init__(self, directory: Path):
        self.directory = directory
        (directory / "bin").mkdir()
        for name, more in (("srun", ""), ("sbatch", "echo 77\n"), ("scontrol", "exit 1\n")):
            command = directory / "bin" / name
            command.write_text(NOTE.format(name=name) + more)
            command.chmod(0o755)
        (directory / "data").mkdir()
        (directory / "data" / "manifest.json").write_text("{}")

    def run(self, script: str, **settings: str) -> tuple[int, list[str]]:
        """Exit status, and the faults."""
        (self.directory / "calls").unlink(missing_ok=True)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        clean |= {
            "PATH": f"{self.directory / 'bin'}:{clean['PATH']}",
            "CALLS": str(self.directory / "calls"),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "5",
            "SLURM_JOB_NODELIST": "n0",
            "SLURM_NTASKS": "8",
            "DATA": str(self.directory / "data"),
            "OUTPUT": str(self.directory / "run"),
            "SWEEP_OUTPUT": str(self.directory / "sweep"),
        }
        done = subprocess.run(
            ["bash", f"slurm/{script}.sh"],
            cwd=ROOT,
            env=clean | settings,
            capture_output=True,
            text=True,
            timeout=60,
        )
        faults = done.stderr.split("error: ")[1:]
        return done.returncode, [fault.strip() for fault in faults]

    def calls(self) -> list[list[str]]:
        """What was started and submitted, word by word."""
        noted = self.directory / "calls"
        text = noted.read_text() if noted.exists() else ""
        return [call.split("\0") for call in text.split("\0end\0") if call]


@pytest.fixture
def scripts(tmp_path) -> Scripts:
    return Scripts(tmp_path)


WRONG = {
    "pretrain_base": {
        "MODEL": "rapidbert-bse",
        "DATA": "nowhere",
        "DEEPSPEED_CONFIG": "none.json",
        "MAX_RESTARTS": "abc",
        "TASK_END_SECONDS": "1.5",
        "CPUS_PER_GPU": "08",
        "FINETUNE": "never",
        "PRETRAIN_OPTIONS": "--documents 'split",
        "GLUE_OPTIONS": '--tasks "rte',
        "OUTPUT": "README.md",
    },
    "finetune_glue": {
        "CHECKPOINT": "nowhere",
        "GLUE_STAGE": "all",
        "CPUS_PER_GPU": "0",
        "TASK_END_SECONDS": "-1",
        "GLUE_OPTIONS": "--output=3",
    },
    "scaling_sweep": {
        "MODEL": "base",
        "DATA": "nowhere",
        "DEEPSPEED_CONFIG": "none.json",
        "NODE_COUNTS": "1 two",
        "GPUS_PER_NODE": "8x",
        "CPUS_PER_GPU": "1e1",
        "GLOBAL_BATCHES": "4096\n0",
        "SWEEP_STEPS": "-60",
        "SWEEP_STAGE": "plan",
        "PRETRAIN_OPTIONS": "--deepspeed_config=x.json",
    },
}
WRONG["pretrain_large"] = WRONG["pretrain_base"]


@pytest.mark.parametrize("script", WRONG)
def test_every_wrong_setting_is_named_before_anything_is_started(scripts, script):
    status, faults = scripts.run(script, **WRONG[script])
    assert status == 2 and scripts.calls() == []
    for setting in WRONG[script]:
        assert sum(fault.startswith(setting) for fault in faults) == 1, (setting, faults)
    assert len(faults) == len(WRONG[script])
    assert not (scripts.directory / "run").exists() and not (scripts.directory / "sweep").exists()


def test_each_setting_is_refused_alone(scripts):
    """None hides behind another."""
    right = {"MODEL": "rapidbert-tiny", "DEEPSPEED_CONFIG": "ds_configs/tiny_cpu.json"}
    for setting, value in WRONG["scaling_sweep"].items():
        status, faults = scripts.run("scaling_sweep", **(right | {setting: value}))
        assert (status, len(faults), scripts.calls()) == (2, 1, []), (setting, faults)


@pytest.mark.parametrize("script", ["pretrain_base", "pretrain_large", "scaling_sweep"])
def test_a_job_is_no_dry_run(scripts, script):
    """It would end well: the finetuning is submitted, the sweep's point is done, without a run."""
    right = {"MODEL": "rapidbert-tiny", "DEEPSPEED_CONFIG": "ds_configs/tiny_cpu.json"}
    status, faults = scripts.run(script, **right, PRETRAIN_OPTIONS="--seed 3 --dry_run")
    wrong = "PRETRAIN_OPTIONS: --dry-run cannot be given here: the script decides it"
    assert (status, faults, scripts.calls()) == (2, [wrong], [])


def test_options_keep_all_lines_and_quoted_spaces(scripts):
    options = "--duration 100\n  --eval-every 5\t--export-at '0.5'\n\n--seed=3 \"a b\" '' $HOME *\n"
    status, faults = scripts.run("pretrain_base", PRETRAIN_OPTIONS=options, FINETUNE="No")
    assert (status, faults) == (0, [])
    (call,) = scripts.calls()
    expected = ["--duration", "100", "--eval-every", "5", "--export-at", "0.5", "--seed=3", "a b"]
    assert call[call.index("--duration") :] == [*expected, "", "$HOME", "*"]


@pytest.mark.parametrize(
    ("finetune", "submitted"),
    [("No", 0), ("NO", 0), ("no", 0), ("", 1), ("yes", 1), ("Yes", 1)],
)
def test_finetuning_follows_if_it_is_wanted(scripts, finetune, submitted):
    assert scripts.run("pretrain_large", FINETUNE=finetune) == (0, [])
    started, *later = scripts.calls()
    assert started[0] == "srun" and "recipes/pretrain.py" in started
    assert [call[-1] for call in later] == ["slurm/finetune_glue.sh"] * submitted


def test_the_sweep_changes_the_global_batch_and_nothing_else(scripts):
    config = scripts.directory / "config.json"
    given = {"note": '"train_batch_size": 7', "train_batch_size": 1, "zero_optimization": {}}
    config.write_text(json.dumps(given))
    settings = {
        "MODEL": "rapidbert-tiny",
        "DEEPSPEED_CONFIG": str(config),
        "GLOBAL_BATCHES": "64\n128",
        "NODE_COUNTS": "1\n2 25",
    }
    assert scripts.run("scaling_sweep", **settings) == (0, [])
    assert [call[2] for call in scripts.calls()] == ["--nodes=1", "--nodes=2", "--nodes=25"]
    assert scripts.run("scaling_sweep", **settings, SWEEP_STAGE="run") == (0, [])
    for batch, call in zip((64, 128), scripts.calls(), strict=True):
        path = call[call.index("--deepspeed_config") + 1]
        assert json.loads(Path(path).read_text()) == given | {"train_batch_size": batch}
        assert str(batch * 60) in call
    for text in ("{", "[]", "{}"):
        config.write_text(text)
        status, (fault,) = scripts.run("scaling_sweep", **settings)
        assert status == 2 and fault.startswith(f"DEEPSPEED_CONFIG={config}: ")


def test_every_model_is_known_to_the_scripts(scripts):
    models = [f"{kind}bert-{size}" for kind in ("rapid", "") for size in ("tiny", "base", "large")]
    check = 'source slurm/job.sh; for m; do check_training "$m" README.md "$DATA"; done; '
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", check + "stop_at_faults", "_", *models, "bert-bse"],
        cwd=ROOT,
        env=os.environ | {"DATA": str(scripts.directory / "data")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: MODEL: unknown model 'bert-bse' (did you mean bert-base?)"
    )
    assert done.stderr.count("error: ") == 1


def test_a_point_of_the_sweep_is_done_only_with_the_same_settings(scripts):
    settings = {"MODEL": "rapidbert-tiny", "DEEPSPEED_CONFIG": "ds_configs/tiny_cpu.json"}
    settings |= {"SWEEP_STAGE": "run", "GLOBAL_BATCHES": "64", "PRETRAIN_OPTIONS": "--seed 3"}
    assert scripts.run("scaling_sweep", **settings)[0] == 0 and len(scripts.calls()) == 1
    assert scripts.run("scaling_sweep", **settings)[0] == 0 and scripts.calls() == []
    for other in ({"PRETRAIN_OPTIONS": "--seed 4"}, {"SWEEP_STEPS": "5"}):
        assert scripts.run("scaling_sweep", **(settings | other))[0] == 1
        assert scripts.calls() == []
    (done,) = (scripts.directory / "sweep").rglob("done")
    done.write_text("job 5\n")  # of an older version, which did not say
    assert scripts.run("scaling_sweep", **settings)[0] == 0 and scripts.calls() == []
