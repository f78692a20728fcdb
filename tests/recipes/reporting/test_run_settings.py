"""Settings of a run: defaults folded away, and a command that asks for the same."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from report_scenarios import write_run

from recipes.common.settings import flat, parse
from recipes.reporting.run_settings import pretraining_command, settings_part
from recipes.reporting.runs import load_runs
from recipes.training.settings import Settings

WORDS = [
    *("--model", "rapidbert-base", "--data", "my data/c4", "--output", "runs/a & b"),
    *("--deepspeed-config", "ds_configs/base.json", "--export-at", "0.25", "0.5"),
    *("--learning-rate", "0.001", "--paper", "--seed", "3"),
]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    settings = flat(parse(Settings, WORDS))
    return write_run(tmp_path / "base", run=json.loads(json.dumps(settings, default=str)))


def test_the_command_parses_to_the_settings_of_the_record(recorded):
    [run] = load_runs([recorded])
    words = shlex.split(pretraining_command(run))
    assert words[:4] == ["deepspeed", "--num_gpus", "8", "recipes/pretrain.py"]
    assert flat(parse(Settings, words[4:])) == flat(parse(Settings, WORDS))
    assert "--log-every" not in words, "a default"


def test_several_nodes_and_processors(tmp_path):
    many, cpu = write_run(tmp_path / "many", world_size=32), write_run(tmp_path / "c", device="cpu")
    first, second = (pretraining_command(run) for run in load_runs([many, cpu]))
    assert first.endswith(" sbatch --nodes=4 slurm/pretrain_base.sh") and "DATA=data/c4 " in first
    assert second.startswith("DS_ACCELERATOR=cpu deepspeed --num_gpus 8 ")


def test_a_job_of_slurm_asks_for_the_settings_of_the_record(recorded):
    """Its environment is what slurm/pretrain_base.sh reads; 12 GPUs are two nodes of 6."""
    record = json.loads((recorded / "config.json").read_text())
    (recorded / "config.json").write_text(json.dumps({**record, "world_size": 12}))
    words = shlex.split(pretraining_command(load_runs([recorded])[0]))
    at = words.index("sbatch")
    job = dict(word.split("=", 1) for word in words[:at])
    assert words[at + 1 :] == [
        *("--nodes=2", "--ntasks-per-node=6", "--gpus-per-node=6"),
        "slurm/pretrain_base.sh",
    ]
    given = [f"--{name.lower().replace('_', '-')}={value}" for name, value in job.items()]
    given = [word for word in given if not word.startswith("--pretrain-options")]
    again = parse(Settings, [*given, *shlex.split(job["PRETRAIN_OPTIONS"])])
    assert flat(again) == flat(parse(Settings, WORDS))


def test_defaults_are_folded_away(recorded):
    text = settings_part(load_runs([recorded])[0])
    shown, folded = text.split("<details>", 1)
    for name, value in (("learning_rate", "0.001"), ("seed", "3"), ("paper", "True")):
        assert f">{name}</th><td>{value}</td>" in shown.replace(' class="number"', "")
    for name in ("log_every", "beta1", "keep"):
        assert f">{name}<" not in shown and f">{name}<" in folded
    assert ">torch<" in folded


def test_a_record_of_a_version_with_other_settings_is_shown_whole(tmp_path):
    run = write_run(tmp_path / "old", run={"colour": "red", "seed": 17}, versions=None)
    text = settings_part(load_runs([run])[0])
    assert ">colour<" in text.split("<details>", 1)[0]
