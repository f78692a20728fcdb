"""`config.json`: written once, compared when a run goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_scenarios import (
    Outcome,
    command_line,
    pretraining,
    run_world,
    settings_of,
    values,
    write_config,
    write_data,
)

from recipes.common.errors import UserError
from recipes.common.files import why_no_directory
from recipes.engine.rendezvous import launched_world_size
from recipes.engine.world import initialize_world, shut_down
from recipes.training import provenance, run_record
from recipes.training.run import resolve
from recipes.training.run_description import describe
from recipes.training.settings import Settings


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


def started(*chosen: Settings) -> list[bool | str]:
    """Start these runs one after the other; whether each had made progress, or its refusal."""
    results: list[bool | str] = []
    for settings in chosen:
        run = resolve(settings, launched_world_size())
        if not torch.distributed.is_initialized():
            world = initialize_world()
        try:
            results.append(run_record.start(run, world))
        except UserError as error:
            results.append(str(error))
    shut_down()
    return results


def rehearsed(there: Settings, *commands: list[str]) -> list[int | str | None]:
    """Start a run; then what dry runs of these commands end with."""
    started(there)
    results: list[int | str | None] = []
    for words in commands:
        try:
            results.append(pretraining([*words, "--dry-run"]))
        except UserError as error:
            results.append(str(error))
    return results


def test_a_dry_run_is_refused_by_what_the_start_is_refused_by(data, tmp_path):
    """A job had waited for its nodes to hear that the directory is another run's."""
    config, output = write_config(tmp_path, 8, 8), tmp_path / "run"
    there = settings_of(data, output, config, duration=16)
    same, other = (command_line(data, output, config, duration=16, seed=s) for s in (17, 4))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    model = command_line(data, tmp_path / "model", config, duration=16)
    [found] = values(run_world(1, rehearsed, there, same, other, model))
    assert found[0] == 0 and "holds a run with other settings" in found[1]
    assert "seed: was 17, is 4" in found[1] and "not the record of a run" in found[2]


def test_what_is_recorded(data, tmp_path):
    config = write_config(tmp_path, 17, 4)
    output = tmp_path / "run"
    settings = settings_of(data, output, config, duration=100)
    [outcome] = run_world(1, started, settings)
    assert values([outcome]) == [[False]]
    record = json.loads((output / "config.json").read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert {"python", "deepspeed", "megatron-core"} <= record["versions"].keys()
    assert record["git_revision"] == provenance.git_revision()
    assert abs(datetime.now(UTC) - datetime.fromisoformat(record["started"])) < timedelta(hours=1)
    assert record["run"]["duration"] == "100" and record["run"]["seed"] == 17
    assert record["deepspeed"]["train_batch_size"] == record["requested_global_batch"] == 17
    assert (record["micro_batch"], record["accumulation"], record["global_batch"]) == (4, 4, 16)
    assert record["sequences"] == record["total_steps"] * 16 == 112
    # The published decay per step at peak learning rate, handed to AdamW.
    assert record["adamw_weight_decay"] * record["run"]["learning_rate"] == pytest.approx(1e-5)
    for line in ("rounded from 17", "7 steps, 112 sequences", "fp32, ZeRO stage 1"):
        assert line in outcome.output


def test_other_settings_are_named_and_free_ones_may_change(data, tmp_path):
    config, other = write_config(tmp_path, 8, 4), write_config(tmp_path, 16, 4)
    output = tmp_path / "run"
    first = settings_of(data, output, config, learning_rate=2e-3)
    free = dict(log_every=7, save_every=11, eval_every=5, keep=4, price_per_gpu_hour=9)
    changed = dict(seed=18, mask_probability=0.15, model="dropout-tiny", learning_rate=1e-4)
    [results] = values(
        run_world(
            2,
            started,
            first,
            settings_of(data, output, config, learning_rate=2e-3, **free),
            settings_of(data, output, other, **changed),
            first,
        )
    )[:1]
    assert results[0] is results[1] is results[3] is False
    refusal = str(results[2])
    assert str(output) in refusal
    for difference in (
        "seed: was 17, is 18",
        "mask_probability: was 0.3, is 0.15",
        "model.hidden_dropout: was 0.0, is 0.1",
        "learning_rate: was 0.002, is 0.0001",
        "global_batch: was 8, is 16",
    ):
        assert difference in refusal


def test_shards_with_other_documents_or_another_validation_split_are_another_run(data, tmp_path):
    copies = {}
    for kind, split in (("idx", "train"), ("bin", "validation")):
        copies[kind] = shutil.copytree(data, tmp_path / kind)
        manifest = json.loads((data / "manifest.json").read_text())
        manifest["splits"][split]["shards"][0][f"{kind}_sha256"] = "0" * 64
        (copies[kind] / "manifest.json").write_text(json.dumps(manifest))
    config, output = write_config(tmp_path, 8, 4), tmp_path / "run"
    first, other_documents, other_validation = (
        settings_of(directory, output, config, duration=16)
        for directory in (data, *copies.values())
    )
    [[began, documents, validation]] = values(
        run_world(1, started, first, other_documents, other_validation)
    )
    assert began is False
    assert "--data: another division of the training text" in documents
    assert "held-out" not in documents
    assert "--data: another held-out text" in validation and "training text" not in validation
    # The record of an older version says nothing about them.
    record = json.loads((output / "config.json").read_text())
    del record["identity"]["train_indexes"], record["identity"]["validation_shards"]
    (output / "config.json").write_text(json.dumps(record))
    assert values(run_world(1, started, other_documents)) == [[False]]


def test_very_many_epochs_are_told_with_what_to_type(data, tmp_path):
    config = write_config(tmp_path, 16, 16)

    def described(**duration):
        settings = settings_of(data, tmp_path / "run", config, **duration)
        return describe(resolve(settings, 1))

    default = described()
    epoch = int(
        re.search(r"of ([\d,]+) sequences, the training text once", default)[1].replace(",", "")
    )
    assert f"reads the same text {286_720_000 / epoch:,.0f} times" in default
    told = re.search(r"--duration (\d+) would do that", default)[1]
    assert 40 * epoch - 16 < int(told) <= 40 * epoch and int(told) % 16 == 0
    assert "look out" not in described(duration=told)
    assert "look out" in described(duration=int(told) + 32)


def with_checkpoint(output: Path, identity: Any) -> Path:
    """A checkpoint's manifest, as far as a start looks at it."""
    step = output / "checkpoints" / "step-000000007"
    step.mkdir(parents=True, exist_ok=True)
    manifest = dict(format=2, tensor_parallel_size=1, progress={}, facts={}, files={})
    if identity:
        manifest["identity"] = identity
    (step / "manifest.json").write_text(json.dumps(manifest))
    return step


def test_checkpoints_and_config_are_of_one_run_or_it_is_said_which_is_not(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    mine, other = tmp_path / "mine", tmp_path / "other"
    line = settings_of(data, mine, config)
    assert values(run_world(1, started, line, settings_of(data, other, config, seed=3)))
    own, foreign = (
        json.loads((run / "config.json").read_text())["identity"] for run in (mine, other)
    )

    step = with_checkpoint(mine, own)
    (mine / "config.json").unlink()
    [outcome] = run_world(1, started, line)
    assert values([outcome]) == [[True]] and "config.json was missing" in outcome.output
    assert json.loads((mine / "config.json").read_text())["identity"] == own

    (mine / "config.json").write_bytes((other / "config.json").read_bytes())
    assert "config.json is another run's" in _only(run_world(1, started, line)[0])
    theirs = settings_of(data, mine, config, seed=3)
    refusal = _only(run_world(1, started, theirs)[0])
    assert f"{step} belongs to a run with other settings" in refusal
    assert "config.json is not that run's" in refusal and "seed: was 17, is 3" in refusal

    with_checkpoint(mine, foreign)
    (mine / "config.json").unlink()
    assert "seed: was 3, is 17" in _only(run_world(1, started, line)[0])
    assert not (mine / "config.json").exists()


def test_checkpoints_of_versions_that_did_not_record_the_settings(data, tmp_path):
    line = settings_of(data, tmp_path / "run", write_config(tmp_path, 8, 4))
    values(run_world(1, started, line))
    with_checkpoint(tmp_path / "run", None)
    [outcome] = run_world(1, started, line)
    assert values([outcome]) == [[True]]
    assert "written by an earlier version, its settings are in config.json only" in outcome.output
    (tmp_path / "run" / "config.json").unlink()
    assert "does not say which settings" in _only(run_world(1, started, line)[0])


def test_a_micro_batch_of_another_size_is_the_same_run(data, tmp_path):
    """It only cuts the same global batch differently, when memory asks for it."""
    output = tmp_path / "run"
    lines = [settings_of(data, output, write_config(tmp_path, 8, size)) for size in (8, 4)]
    assert values(run_world(1, started, *lines)) == [[False, False]]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"identity": 1}'])
def test_a_file_that_is_no_record(data, tmp_path, content):
    output = tmp_path / "run"
    output.mkdir()
    (output / "config.json").write_text(content)
    settings = settings_of(data, output, write_config(tmp_path, 8, 4))
    for outcome in run_world(2, started, settings):
        assert "not the record of a run" in _only(outcome)


def test_an_output_that_is_a_file(data, tmp_path):
    output = tmp_path / "run"
    output.write_text("mine")
    settings = settings_of(data, output, write_config(tmp_path, 8, 4))
    with pytest.raises(UserError, match="is a file"):
        resolve(settings, 2)
    assert output.read_text() == "mine"


def _only(outcome: Outcome) -> Any:
    [result] = values([outcome])[0]
    return result


def test_an_output_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert why_no_directory(tmp_path / "file" / "run") == f"{tmp_path / 'file'} is a file"
    assert why_no_directory(tmp_path / "new" / "run") is None
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert f"{tmp_path} cannot be written" in str(why_no_directory(tmp_path / "new" / "run"))


def test_what_changes_speed_alone_is_no_other_setting():
    """Earlier versions recorded it."""
    before = {"deepspeed.bf16": {"enabled": True, "immediate_grad_update": False}, "seed": 1}
    now = {"deepspeed.bf16": {"enabled": True}, "seed": 1}
    assert run_record._differences(before, now) == []
    other = {"deepspeed.bf16": {"enabled": False}, "seed": 1}
    assert len(run_record._differences(before, other)) == 1
