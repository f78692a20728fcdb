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
    settings_of,
    trained,
    values,
    weights,
    write_config,
    write_data,
)
from safetensors.torch import load as safetensors_load
from safetensors.torch import load_file, save_file

from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from model.pretrained import read_description
from model.weights import NEVER_PREDICTED
from recipes import pretrain
from recipes.common.errors import SaveError, UserError
from recipes.common.files import PARTIAL
from recipes.common.settings import parse
from recipes.engine.world import World, shut_down
from recipes.training import export
from recipes.training.checkpoints import manifest, state, store, writer
from recipes.training.checkpoints.manifest import MANIFEST
from recipes.training.checkpoints.store import Checkpoints
from recipes.training.progress import Progress
from recipes.training.settings import Settings

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
    shard = step / "tp00-dp00001.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)


def bit_flipped(step: Path) -> None:
    shard = step / "tp00-dp00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def shard_missing(step: Path) -> None:
    (step / "tp00-dp00000.safetensors").unlink()


def zero_length(step: Path) -> None:
    (step / "tp00-dp00001.safetensors").write_bytes(b"")


def manifest_half_written(step: Path) -> None:
    (step / MANIFEST).write_bytes((step / MANIFEST).read_bytes()[:-40])


def of_another_format(step: Path) -> None:
    manifest = json.loads((step / MANIFEST).read_text())
    (step / MANIFEST).write_text(json.dumps({**manifest, "format": 1}))


def manifest_missing(step: Path) -> None:
    (step / MANIFEST).unlink()


def manifest_garbled(step: Path) -> None:
    (step / MANIFEST).write_bytes(b"\x00garbage")


def manifest_of_another_kind(step: Path) -> None:
    (step / MANIFEST).write_text('{"files": {"tp00-dp00000.safetensors": 3}}')


def progress_missing(step: Path) -> None:
    manifest = json.loads((step / MANIFEST).read_text())
    del manifest["progress"]
    (step / MANIFEST).write_text(json.dumps(manifest))


def never_published(step: Path) -> None:
    step.rename(step.with_name(step.name + ".0123abcd.partial"))


DAMAGES = {
    truncated: "tp00-dp00001.safetensors",
    zero_length: "0 bytes",
    manifest_half_written: MANIFEST,
    of_another_format: "format 1",
    bit_flipped: "checksum differs",
    shard_missing: "No such file",
    manifest_missing: MANIFEST,
    manifest_garbled: MANIFEST,
    manifest_of_another_kind: MANIFEST,
    progress_missing: MANIFEST,
    never_published: None,
}


def opened(run: Any, world: Any, **options: Any) -> Checkpoints:
    return Checkpoints(run.places.output / "checkpoints", world, **options)


def resumed(arguments: list[str]) -> Progress:
    """How far the run is that goes on here."""
    run, world, engine = build(parse(Settings, arguments))
    done = opened(run, world).resume(engine, expected=True)
    shut_down()
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
    assert not list(manifest.damage(run / "checkpoints" / NEWEST))


def test_without_a_whole_checkpoint_a_run_does_not_start_over(copy):
    run, arguments = copy
    bit_flipped(run / "checkpoints" / NEWEST)
    truncated(run / "checkpoints" / OLDER)
    log = (run / "log.jsonl").read_bytes()
    for outcome in run_world(2, pretraining, arguments):
        assert isinstance(outcome.error, UserError)
        assert "no whole checkpoint to resume from" in str(outcome.error)
        assert f"{NEWEST}/tp00-dp00000.safetensors" in str(outcome.error)
        assert f"{OLDER}/tp00-dp00001.safetensors" in str(outcome.error)
    assert (run / "log.jsonl").read_bytes() == log


def test_a_run_killed_in_its_first_save_starts_again(copy):
    run, arguments = copy
    shutil.rmtree(run / "export")
    (run / manifest.CHECKPOINTED).unlink()
    shutil.rmtree(run / "checkpoints" / OLDER)
    never_published(run / "checkpoints" / NEWEST)
    outcomes = run_world(2, pretraining, arguments)
    assert values(outcomes) == [0, 0]
    assert "step 1/5" in outcomes[0].output


@pytest.mark.parametrize("left", ["export", manifest.CHECKPOINTED])
def test_a_run_that_has_lost_its_checkpoints_does_not_start_over(copy, left):
    run, arguments = copy
    for lost in {"checkpoints", "export", manifest.CHECKPOINTED} - {left}:
        path = run / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    log = (run / "log.jsonl").read_bytes()
    for outcome in run_world(2, pretraining, arguments):
        assert "no whole checkpoint to resume from" in str(outcome.error)
    assert (run / "log.jsonl").read_bytes() == log


def test_the_checkpoint_knows_the_settings_of_its_run(copy):
    run, arguments = copy
    recorded = json.loads((run / "config.json").read_text())["identity"]
    assert set(manifest.identities(run / "checkpoints")) == {
        run / "checkpoints" / NEWEST,
        run / "checkpoints" / OLDER,
    }
    assert all(found == recorded for found in manifest.identities(run / "checkpoints").values())
    (run / "config.json").unlink()
    for outcome in run_world(2, pretraining, [*arguments, "--learning-rate", "0.5"]):
        assert isinstance(outcome.error, UserError)
        assert f"{NEWEST} belongs to a run with other settings" in str(outcome.error)
        assert "learning_rate: was 0.001, is 0.5" in str(outcome.error)
    assert not (run / "config.json").exists()


def poisoned_state(settings: Settings, kind: str) -> list[str]:
    """What saving and exporting say when one number of one rank is not one."""
    run, world, engine = build(settings)
    one_step(run, world, engine, 0)
    checkpoints = opened(run, world)
    if world.rank == world.world_size - 1:
        piece = list(state.pieces(engine, world))[-1]
        with torch.no_grad():
            piece.tensors[kind][-1] = torch.nan
    refusals = []
    output = run.places.output
    for write in (
        lambda: checkpoints.save(engine, Progress(1)),
        lambda: export.export(engine, run.model, run.places.data, output, {}),
    ):
        try:
            write()
        except UserError as error:
            refusals.append(f"{type(error).__name__}: {error}")
    checkpoints.wait()
    shut_down()
    return refusals


@pytest.mark.parametrize(("kind", "stage"), [("weight", 1), ("exp_avg", 0), ("exp_avg_sq", 2)])
def test_what_is_not_a_number_is_not_written(data, tmp_path, kind, stage):
    output = tmp_path / "run"
    arguments = settings_of(data, output, write_config(tmp_path, 8, 4, stage), duration=80)
    for saving, *exporting in values(run_world(2, poisoned_state, arguments, kind)):
        assert saving.startswith("UserError: ")
        assert "checkpoint of step 1 could not be written: rank 1: " in saving
        assert f"({kind}) of " in saving and "not finite" in saving
        if kind == "weight":
            [refusal] = exporting
            assert refusal.startswith(f"UserError: {output / 'export'}: not written: ")
    assert not manifest.published(output / "checkpoints")
    assert (output / "export").exists() == (kind != "weight")


def resumed_and_saved(arguments: list[str], step: int) -> None:
    run, world, engine = build(parse(Settings, arguments))
    checkpoints = opened(run, world, keep=1)
    checkpoints.resume(engine, expected=True)
    checkpoints.save(engine, Progress(step))
    checkpoints.wait()
    shut_down()


@pytest.mark.parametrize("step", [4, 5])
def test_a_damaged_checkpoint_does_not_take_a_good_ones_place(copy, step):
    run, arguments = copy
    truncated(run / "checkpoints" / NEWEST)
    values(run_world(2, resumed_and_saved, arguments, step))
    [kept] = manifest.published(run / "checkpoints")
    assert kept.name == f"step-{step:09d}" and not list(manifest.damage(kept))


def limited(arguments: list[str], rank: int, limit: int) -> Any:
    """Pretrain with a disk that is full for one rank: no file of it may exceed `limit` bytes."""
    if os.environ["RANK"] == str(rank):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    return pretraining(arguments)


@pytest.mark.parametrize(("rank", "policy"), [(0, "continue"), (1, "continue"), (1, "stop")])
def test_a_full_disk_at_the_end_leaves_the_older_checkpoint(finished, copy, rank, policy):
    run, arguments = copy
    shutil.rmtree(run / "checkpoints" / NEWEST)
    shutil.rmtree(run / "export")
    outcomes = run_world(2, limited, [*arguments, "--on-save-failure", policy], rank, 50_000)
    fault = f"step 5 could not be written: rank {rank}"
    if policy == "stop":
        assert all(fault in str(outcome.error) for outcome in outcomes)
    else:  # the export is tried all the same, by rank 0
        assert fault in outcomes[0].output
        assert "going on without it" in outcomes[0].output
    if (rank, policy) == (1, "continue"):
        assert values(outcomes) == [0, 0]
        assert (run / "export").exists()
        shutil.rmtree(run / "export")
    else:
        assert all(isinstance(outcome.error, SaveError) for outcome in outcomes)
        assert all(outcome.error.status == 74 for outcome in outcomes)
    assert "File too large" in outcomes[rank].output
    assert not (run / "checkpoints" / NEWEST).exists()
    assert (run / "checkpoints" / OLDER).exists()
    assert not (run / "export").exists()

    values(run_world(2, pretraining, arguments))
    state, state_again = trained(finished[0])[1], trained(run)[1]
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    assert not list((run / "checkpoints").glob("*.partial"))


def full_for_a_while(arguments: list[str], rank: int) -> Any:
    """Pretrain with a disk that is full for one rank until step 6 is over."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    compute_gradients = pretrain.compute_gradients

    def step(*args: Any, **named: Any) -> Any:
        if os.environ["RANK"] == str(rank):
            limit = 20_000 if named["step"] < 6 else hard
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        return compute_gradients(*args, **named)

    pretrain.compute_gradients = step
    return pretraining(arguments)


@pytest.mark.parametrize(("policy", "rank"), [("continue", 0), ("continue", 1), ("stop", 1)])
def test_a_full_disk_in_between_is_said_and_the_run_goes_on_or_stops(data, tmp_path, policy, rank):
    config = write_config(tmp_path, 8, 4)
    arguments = command_line(
        data, tmp_path / "run", config, duration=72, save_every=2, on_save_failure=policy
    )
    outcomes = run_world(2, full_for_a_while, arguments, rank)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    if policy == "continue":
        assert values(outcomes) == [0, 0]
        assert "going on without it" in outcomes[0].output
        assert kept == ["step-000000008", "step-000000009"]
    else:
        assert all(isinstance(outcome.error, SaveError) for outcome in outcomes)
        assert "step 2 could not be written: rank 1" in str(outcomes[0].error)
        assert kept == []


def test_a_full_disk_at_the_export_leaves_the_earlier_one(copy):
    run, arguments = copy
    before = trained(run)[1]
    for outcome in run_world(2, limited, arguments, 0, 50_000):  # no step is left to be done
        assert isinstance(outcome.error, UserError)
        assert "export could not be written: rank 0" in str(outcome.error)
    assert all(torch.equal(before[name], value) for name, value in trained(run)[1].items())


def saved_every_step(settings: Settings, keep: int, keep_every: int) -> None:
    run, world, engine = build(settings)
    checkpoints = opened(run, world, keep=keep, keep_every=keep_every)
    for step in range(5):
        one_step(run, world, engine, step)
        checkpoints.save(engine, Progress(step + 1))
    checkpoints.wait()
    shut_down()


@pytest.mark.parametrize(
    ("keep", "every", "expected"), [(1, 0, [5]), (2, 0, [4, 5]), (1, 2, [2, 4, 5])]
)
def test_the_newest_checkpoints_and_every_nth_are_kept(data, tmp_path, keep, every, expected):
    config = write_config(tmp_path, 8, 8)
    arguments = settings_of(data, tmp_path / "run", config, duration=80)
    values(run_world(1, saved_every_step, arguments, keep, every))
    kept = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert [path.name for path in kept] == [f"step-{step:09d}" for step in expected]
    for checkpoint_directory in kept:
        assert not list(manifest.damage(checkpoint_directory))


def test_the_library_reads_what_is_written_without_it():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"weight/{n}/0": torch.randn(n, generator=generator) for n in (1, 3, 1000)}
    written = b"".join(writer.safetensors_parts(tensors))
    read = safetensors_load(written)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert safetensors_load(b"".join(writer.safetensors_parts({}))) == {}


def interrupted_writer(settings: Settings) -> str:
    """A fault that is nobody's file system, in the thread that writes."""
    run, world, engine = build(settings)
    checkpoints = opened(run, world)
    writer.Save._write = lambda save, name: 1 / 0  # type: ignore[method-assign]
    checkpoints.save(engine, Progress(1))
    with pytest.raises(SaveError, match="division by zero") as refusal:
        checkpoints.wait()
    shut_down()
    return str(refusal.value)


def test_no_rank_waits_for_a_writer_that_has_failed(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    arguments = settings_of(data, tmp_path / "run", config, duration=80)
    values(run_world(2, interrupted_writer, arguments))


def taken_over(settings: Settings) -> tuple[str, bytes]:
    """A start that was thought dead wakes up and saves; what it is told."""
    run, world, engine = build(settings)
    stale = opened(run, world)
    one_step(run, world, engine, 0)
    current = opened(run, world)
    current.save(engine, Progress(1))
    current.wait()
    before = (current.directory / "step-000000001" / MANIFEST).read_bytes()
    one_step(run, world, engine, 1)
    stale.save(engine, Progress(1, sequences=99))
    with pytest.raises(SaveError, match="another start of this run has taken over") as refusal:
        stale.wait()
    assert (current.directory / "step-000000001" / MANIFEST).read_bytes() == before
    shut_down()
    return str(refusal.value), before


def test_a_stale_writer_publishes_nothing(data, tmp_path):
    config = write_config(tmp_path, 8, 8)
    values(run_world(1, taken_over, settings_of(data, tmp_path / "run", config, duration=80)))


def blind(arguments: list[str]) -> Any:
    """Each rank has an `--output` of its own, as on nodes without a common file system."""
    writer.VISIBLE_SECONDS = 0.5
    word = arguments.index("--output") + 1
    arguments[word] += os.environ["RANK"]
    return pretraining(arguments)


def test_ranks_that_do_not_share_the_directory_are_told(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    arguments = command_line(data, tmp_path / "run", config, duration=80)
    for outcome in run_world(2, blind, arguments):
        assert isinstance(outcome.error, UserError)
        assert "file system that all nodes share" in str(outcome.error)
        assert "rank 1" in str(outcome.error)


def blind_later(arguments: list[str]) -> Any:
    """Rank 1 writes elsewhere once the run has begun, or what it writes is never seen."""
    writer.VISIBLE_SECONDS = 0.5
    write = writer.Save._write

    def elsewhere(save: Any, name: str) -> None:
        if os.environ["RANK"] == "1":
            save.partial = save.partial.with_name(f"elsewhere{PARTIAL}")
        write(save, name)

    writer.Save._write = elsewhere  # type: ignore[method-assign]
    return pretraining(arguments)


def test_a_shard_that_rank_0_does_not_see_is_named(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    arguments = command_line(*(data, tmp_path / "run", config), duration=8, on_save_failure="stop")
    for outcome in run_world(2, blind_later, arguments):
        assert isinstance(outcome.error, SaveError)
        assert "does not see tp00-dp00001.safetensors, which other ranks" in str(outcome.error)
    assert not manifest.has_checkpointed(tmp_path / "run")


def exported(settings: Settings) -> tuple[float, float]:
    """Export after two steps; largest differences of weights and of logits to the trained model.

    Rows that only pad the vocabulary are never predicted by the exported one.
    The logits of a bf16 model are compared with those of the exported fp32 weights cast to bf16.
    """
    run, world, engine = build(settings)
    for step in range(2):
        one_step(run, world, engine, step)
    output = run.places.output
    export.export(engine, run.model, run.places.data, output, {"step": 2})
    loaded = RapidBertForMaskedLM.from_pretrained(output / "export")
    masters = weights(engine)
    masters["head.decoder_bias"][run.model.vocab_size :] = NEVER_PREDICTED
    weight_error = max(
        float((parameter - masters[name]).abs().max())
        for name, parameter in loaded.named_parameters()
    )
    dtype = next(engine.module.parameters()).dtype
    ids = torch.arange(20) + 5
    batch = (ids, torch.tensor([0, 12, 20], dtype=torch.int32), 32)
    with torch.no_grad():
        logits = loaded.to(dtype).logits(*batch)[:, : run.model.vocab_size]
        trained = engine.module.eval().logits(*batch)[:, : run.model.vocab_size]
        logit_error = float((trained - logits).abs().max())
    shut_down()
    return weight_error, logit_error


@pytest.mark.parametrize("keys", [{}, BF16], ids=["fp32", "bf16"])
def test_the_export_is_the_trained_model(data, tmp_path, keys):
    config = write_config(tmp_path, 8, 4, 1, **keys)
    arguments = settings_of(data, tmp_path / "run", config, duration=80, attention="reference")
    for weight_error, logit_error in values(run_world(2, exported, arguments)):
        assert weight_error == 0
        assert logit_error == 0
    export = tmp_path / "run" / "export"
    assert {t.dtype for t in load_file(export / "model.safetensors").values()} == {torch.float32}
    assert read_description(export)["step"] == 2
    for name in ("tokenizer.model", "tokenizer.vocab"):
        assert (export / name).read_bytes() == (data / name).read_bytes()


class Exploding:
    def __reduce__(self) -> tuple:
        return os.abort, ()


def test_weights_that_are_not_numbers_are_named_when_they_are_read(copy):
    run, _ = copy
    file = run / "export" / "model.safetensors"
    state = load_file(file)
    state["cls.predictions.decoder.bias"][3] = torch.inf
    save_file(state, file)
    with pytest.raises(UserError) as caught:
        export.read_tensors(run)
    assert "model.safetensors: cls.predictions.decoder.bias of " in str(caught.value)
    assert "not finite" in str(caught.value)


def test_a_run_that_has_not_finished_says_how_far_it_is(copy):
    run, _ = copy
    (run / "export").rename(run / "at-25")
    with pytest.raises(UserError, match="has done all of its 5 steps, and exported nothing"):
        export.read_tensors(run)  # as after an end in steps without effect
    shutil.rmtree(run / "checkpoints" / NEWEST)
    with pytest.raises(UserError) as caught:
        export.read_tensors(run)
    assert "has not finished" in str(caught.value)
    assert "newest checkpoint is of step 3 of 5. The command that started it" in str(caught.value)
    assert "on its way" not in str(caught.value)
    shutil.rmtree(run / "checkpoints")
    (run / "part").mkdir()
    (run / "at-25").rename(run / "part" / "export")
    (run / "part").rename(run / "at-25")
    with pytest.raises(UserError, match=f"step none yet.*on its way: {run / 'at-25'}"):
        export.read_tensors(run)
    assert export.read_tensors(run / "at-25")[0].name == "probe-tiny"


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
    export.load_with_tokenizer(run)


def test_an_export_with_unknown_settings_is_refused(copy):
    run, _ = copy
    path = run / "export" / "config.json"
    description = json.loads(path.read_text())
    description["rapidbert"]["model"]["hidden_dropuot"] = 0.1
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match="hidden_dropuot"):
        export.read_tensors(run)


def test_only_the_first_rank_lists_the_checkpoints(tmp_path, monkeypatch):
    """Another rank that failed there would leave the first waiting for it."""

    def stale(_: Path) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Checkpoints, "_take_over", lambda self: "token")
    monkeypatch.setattr(store, "published", stale)
    monkeypatch.setattr(store, "told_by_first", lambda mine: mine)
    for rank in (1, 0):
        checkpoints = Checkpoints(tmp_path, World(rank, rank, 2, torch.device("cpu"), rank, 2, 1))
        if rank:
            assert checkpoints.resume(None, expected=False) == Progress()
    with pytest.raises(OSError, match="Stale"):
        checkpoints.resume(None, expected=False)
