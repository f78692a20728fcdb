"""Resume state under damage and full disks, and the export."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_scenarios import (
    build,
    command_line,
    one_step,
    pretraining,
    run_world,
    trained,
    values,
    weights,
    write_config,
    write_data,
)
from safetensors.torch import load_file, save_file

from model.parallel import initialize_parallel
from recipes import checkpoint, engine, export
from recipes.checkpoint import MANIFEST, Progress
from recipes.cli import UserError

BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
NEWEST, OLDER = "step-000000005", "step-000000003"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> tuple[Path, list[str]]:
    """A finished run of two ranks with checkpoints at steps 3 and 5, and its arguments."""
    directory = tmp_path_factory.mktemp("finished")
    config = write_config(directory, 8, 4)
    arguments = command_line(data, directory / "run", config, duration=40)
    values(run_world(2, pretraining, arguments))
    return directory / "run", arguments


@pytest.fixture
def copy(finished, tmp_path) -> tuple[Path, list[str]]:
    run, arguments = finished
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run", [str(tmp_path / "run") if x == str(run) else x for x in arguments]


def truncated(step: Path) -> None:
    shard = next(step.glob("zero_pp_rank_1_*"))
    os.truncate(shard, shard.stat().st_size - 1)


def bit_flipped(step: Path) -> None:
    shard = step / "mp_rank_00_model_states.pt"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def shard_missing(step: Path) -> None:
    next(step.glob("zero_pp_rank_0_*")).unlink()


def manifest_missing(step: Path) -> None:
    (step / MANIFEST).unlink()


def manifest_garbled(step: Path) -> None:
    (step / MANIFEST).write_bytes(b"\x00garbage")


def manifest_of_another_kind(step: Path) -> None:
    (step / MANIFEST).write_text('{"files": {"mp_rank_00_model_states.pt": 3}}')


def progress_missing(step: Path) -> None:
    manifest = json.loads((step / MANIFEST).read_text())
    del manifest["progress"]
    (step / MANIFEST).write_text(json.dumps(manifest))


def never_published(step: Path) -> None:
    step.rename(step.with_name(step.name + ".partial"))


DAMAGES = {
    truncated: "zero_pp_rank_1_mp_rank_00_optim_states.pt",
    bit_flipped: "checksum differs",
    shard_missing: "No such file",
    manifest_missing: MANIFEST,
    manifest_garbled: MANIFEST,
    manifest_of_another_kind: MANIFEST,
    progress_missing: MANIFEST,
    never_published: None,
}


def resumed(arguments: list[str]) -> Progress:
    """How far the run is that goes on here."""
    settings, world, trainer = build(arguments)
    directory = settings.options.output / "checkpoints"
    done = checkpoint.resume(trainer, directory, world, expected=True)
    engine.shut_down()
    return done


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(copy, damage):
    run, arguments = copy
    damage(run / "checkpoints" / NEWEST)
    outcomes = run_world(2, resumed, arguments)
    assert [done.step for done in values(outcomes)] == [3, 3]
    assert [done.sequences for done in values(outcomes)] == [24, 24]
    if DAMAGES[damage]:
        assert f"{NEWEST}/" in outcomes[0].output
        assert DAMAGES[damage] in outcomes[0].output


def test_a_run_with_a_damaged_checkpoint_ends_like_the_straight_one(finished, copy):
    run, arguments = copy
    truncated(run / "checkpoints" / NEWEST)
    values(run_world(2, pretraining, arguments))
    records, state = trained(finished[0])
    again, state_again = trained(run)
    assert again == records
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    # Written again in place of the damaged one.
    assert not list(checkpoint.damage(run / "checkpoints" / NEWEST))


def test_without_a_whole_checkpoint_a_run_does_not_start_over(copy):
    run, arguments = copy
    bit_flipped(run / "checkpoints" / NEWEST)
    truncated(run / "checkpoints" / OLDER)
    log = (run / "log.jsonl").read_bytes()
    for outcome in run_world(2, pretraining, arguments):
        assert isinstance(outcome.error, UserError)
        assert "no whole checkpoint to resume from" in str(outcome.error)
        assert f"{NEWEST}/mp_rank_00_model_states.pt" in str(outcome.error)
        assert f"{OLDER}/zero_pp_rank_1" in str(outcome.error)
    assert (run / "log.jsonl").read_bytes() == log


def test_a_run_killed_in_its_first_save_starts_again(copy):
    run, arguments = copy
    shutil.rmtree(run / "checkpoints" / OLDER)
    never_published(run / "checkpoints" / NEWEST)
    outcomes = run_world(2, pretraining, arguments)
    assert values(outcomes) == [0, 0]
    assert "step 1/5" in outcomes[0].output


def test_another_world_size_is_refused_with_the_right_one(copy):
    run, arguments = copy
    for outcome in run_world(1, pretraining, arguments):
        assert isinstance(outcome.error, UserError)
        assert "resume with 2" in str(outcome.error)


def limited(arguments: list[str], rank: int, limit: int) -> Any:
    """Pretrain with a disk that is full for one rank: no file of it may exceed `limit` bytes."""
    if os.environ["RANK"] == str(rank):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    return pretraining(arguments)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_ends_every_rank_and_leaves_the_older_checkpoint(finished, copy, rank):
    run, arguments = copy
    shutil.rmtree(run / "checkpoints" / NEWEST)
    shutil.rmtree(run / "export")
    for outcome in run_world(2, limited, arguments, rank, 50_000):
        assert isinstance(outcome.error, UserError)
        assert f"the checkpoint could not be written: rank {rank}" in str(outcome.error)
    assert not (run / "checkpoints" / NEWEST).exists()
    assert not (run / "export").exists()

    values(run_world(2, pretraining, arguments))
    state, state_again = trained(finished[0])[1], trained(run)[1]
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    assert not list((run / "checkpoints").glob("*.partial"))


def test_a_full_disk_at_the_export_leaves_the_earlier_one(copy):
    run, arguments = copy
    before = trained(run)[1]
    for outcome in run_world(2, limited, arguments, 0, 50_000):  # no step is left to be done
        assert isinstance(outcome.error, UserError)
        assert "export could not be written: rank 0" in str(outcome.error)
    assert all(torch.equal(before[name], value) for name, value in trained(run)[1].items())


def saved_thrice(arguments: list[str], keep: int) -> None:
    settings, world, trainer = build(arguments)
    directory = settings.options.output / "checkpoints"
    for step in range(3):
        one_step(settings, world, trainer, step)
        checkpoint.save(trainer, directory, Progress(step + 1), world, keep)
    engine.shut_down()


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_checkpoints_are_kept(data, tmp_path, keep):
    config = write_config(tmp_path, 8, 8)
    arguments = command_line(data, tmp_path / "run", config, duration=80)
    values(run_world(1, saved_thrice, arguments, keep))
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept == ["step-000000002", "step-000000003"][-keep:]
    for name in kept:
        assert not list(checkpoint.damage(tmp_path / "run" / "checkpoints" / name))


def exported(arguments: list[str]) -> tuple[float, float]:
    """Export after two steps; largest differences of weights and of logits to the trained model.

    The logits of a bf16 model are compared with those of the exported fp32 weights cast to bf16.
    """
    settings, world, trainer = build(arguments)
    for step in range(2):
        one_step(settings, world, trainer, step)
    output = settings.options.output
    export.export(trainer, settings.model, settings.options.data, output, {"step": 2})
    loaded = export.load_model(output)
    masters = weights(trainer)
    weight_error = max(
        float((parameter - masters[name]).abs().max())
        for name, parameter in loaded.named_parameters()
    )
    dtype = next(trainer.module.parameters()).dtype
    ids = torch.arange(20) + 5
    batch = (ids, torch.tensor([0, 12, 20], dtype=torch.int32), 32)
    with torch.no_grad():
        logits = loaded.to(dtype).logits(*batch)
        logit_error = float((trainer.module.eval().logits(*batch) - logits).abs().max())
    engine.shut_down()
    return weight_error, logit_error


@pytest.mark.parametrize("keys", [{}, BF16], ids=["fp32", "bf16"])
def test_the_export_is_the_trained_model(data, tmp_path, keys):
    config = write_config(tmp_path, 8, 4, 1, **keys)
    arguments = command_line(data, tmp_path / "run", config, duration=80, attention="reference")
    for weight_error, logit_error in values(run_world(2, exported, arguments)):
        assert weight_error == 0
        assert logit_error == 0
    export = tmp_path / "run" / "export"
    assert {t.dtype for t in load_file(export / "model.safetensors").values()} == {torch.float32}
    assert json.loads((export / "config.json").read_text())["step"] == 2
    for name in ("tokenizer.model", "tokenizer.vocab"):
        assert (export / name).read_bytes() == (data / name).read_bytes()


class Exploding:
    def __reduce__(self) -> tuple:
        return os.abort, ()


def cut(weights_file: Path) -> None:
    os.truncate(weights_file, weights_file.stat().st_size // 2)


def pickled(weights_file: Path) -> None:
    weights_file.write_bytes(pickle.dumps(Exploding()))


def tensor_missing(weights_file: Path) -> None:
    state = load_file(weights_file)
    del state["bert.embeddings.LayerNorm.weight"]
    save_file(state, weights_file)


def removed(weights_file: Path) -> None:
    weights_file.unlink()


def other_shape(weights_file: Path) -> None:
    state = load_file(weights_file)
    state["bert.embeddings.LayerNorm.weight"] = torch.ones(3)
    save_file(state, weights_file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "damaged export"),
        (pickled, "damaged export"),
        (tensor_missing, "missing bert.embeddings.LayerNorm.weight"),
        (removed, "model.safetensors is missing"),
        (other_shape, "layer_norm|layernorm|LayerNorm"),
    ],
)
def test_a_damaged_export_is_refused(copy, damage, message):
    run, _ = copy
    damage(run / "export" / "model.safetensors")
    with pytest.raises(UserError, match=message):
        values(run_world(1, load, run))


def load(run: Path) -> None:
    initialize_parallel()
    export.load_model(run)


def test_an_export_with_unknown_settings_is_refused(copy):
    run, _ = copy
    path = run / "export" / "config.json"
    description = json.loads(path.read_text())
    description["model"]["hidden_dropuot"] = 0.1
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match="hidden_dropuot"):
        export.read_tensors(run)
