"""Continued pretraining: where a run starts, what is carried over, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
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
    trained,
    values,
    weights,
    write_config,
    write_data,
)
from safetensors.torch import load_file, save_file

from model.config import ModelOptions
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from model.pretrained import read_export
from model.weights import DECODER_BIAS, WORD_EMBEDDINGS
from recipes import pretrain
from recipes.common.errors import UserError
from recipes.corpus.tokenizer import open_tokenizer
from recipes.engine.world import initialize_world
from recipes.training.run import resolve
from recipes.training.run_description import describe
from recipes.training.settings import Settings
from recipes.training.step import training_batches


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture(scope="module")
def other_data(tmp_path_factory) -> Path:
    """The same documents by number under another tokenizer."""
    return write_data(tmp_path_factory.mktemp("other") / "data", vowels="eiouy")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("deepspeed"), 8, 4)


@pytest.fixture(scope="module")
def first(data, config, tmp_path_factory) -> Path:
    """A run that has finished."""
    output = tmp_path_factory.mktemp("first") / "run"
    values(run_world(1, pretraining, command_line(data, output, config, duration=160)))
    return output


def continued(
    world_size: int, data: Path, output: Path, config: Path, init_from: Path, **options: Any
) -> Outcome:
    chosen = dict(model=None, duration=24, init_from=init_from) | options
    outcomes = run_world(world_size, pretraining, command_line(data, output, config, **chosen))
    assert values(outcomes) == [0] * world_size
    return outcomes[0]


def loss_of_the_first_step(settings: Settings, export: Path) -> float:
    """The loss on a run's first batch of a model that was loaded as a library loads it."""
    run = resolve(settings, int(os.environ["WORLD_SIZE"]))
    world = initialize_world()
    model = RapidBertForMaskedLM.from_pretrained(export, ModelOptions("sdpa"))
    batches = training_batches(run, world, 0)
    loss, masked = 0.0, 0
    for _ in range(run.plan.accumulation):
        batch = next(batches)
        with torch.no_grad():
            loss += float(
                model(
                    batch.input_ids,
                    batch.sequence_offsets,
                    batch.max_sequence_length,
                    batch.masked_positions,
                    batch.labels,
                )
            )
        masked += batch.masked_tokens
    return loss / masked


@pytest.mark.parametrize(
    ("world_size", "stage", "options"),
    [
        (1, 1, {}),
        (2, 2, {}),
        (2, 1, {"tensor_parallel": 2}),
        (1, 0, {"model": "probe-tiny"}),
    ],
)
def test_the_first_loss_is_that_of_the_loaded_model(
    world_size, stage, options, first, data, config, tmp_path
):
    """With another seed, so that it is not the first batch of the run before."""
    config = write_config(tmp_path, 8, 4, stage)
    output = tmp_path / "run"
    outcome = continued(world_size, data, output, config, first, seed=5, **options)
    settings = settings_of(data, tmp_path / "x", config, init_from=first, seed=5, duration=24)
    [expected] = values(run_world(1, loss_of_the_first_step, settings, first / "export"))
    records, _ = trained(output)
    assert records[0]["loss/train"] == pytest.approx(expected, rel=1e-5)
    fresh = json.loads((first / "log.jsonl").read_text().splitlines()[0])["loss/train"]
    assert expected < fresh - 0.3
    assert f"start: {first / 'export'}, probe-tiny in the layout of rapidbert" in outcome.output
    assert "the same tokenizer" in outcome.output
    started = json.loads((output / "export" / "config.json").read_text())
    started = started.get("rapidbert", started)["started_from"]
    assert started["directory"] == str(first / "export")
    assert started == json.loads((output / "config.json").read_text())["started_from"]


def weights_in_the_optimizer(settings: Settings) -> dict[str, torch.Tensor]:
    run = resolve(settings, int(os.environ["WORLD_SIZE"]))
    return weights(pretrain.build(run, initialize_world(), start=True))


@pytest.mark.parametrize("stage", [0, 1])
def test_an_engine_in_bf16_starts_from_all_digits(stage, first, data, tmp_path):
    bf16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    if stage == 0:
        bf16 = {}
    config = write_config(tmp_path, 8, 2, stage, **bf16)
    settings = settings_of(data, tmp_path / "run", config, init_from=first, duration=8)
    found = values(run_world(2, weights_in_the_optimizer, settings))
    export = read_export(first / "export").state("masked_lm")
    assert any(not torch.equal(x, x.bfloat16().float()) for x in export.values())
    for mine in found:
        assert all(torch.equal(mine[name], export[name]) for name in export)


def weights_at_the_start(settings: Settings) -> dict[str, torch.Tensor]:
    run = resolve(settings, 1)
    initialize_parallel()
    torch.manual_seed(run.identity.seed)
    model = RapidBertForMaskedLM(run.model)
    assert run.initial
    run.initial.load_into(model, run.identity.seed)
    return {name: x.detach().clone() for name, x in model.named_parameters()}


def test_a_new_tokenizer_keeps_the_rows_of_shared_pieces(first, other_data, config, tmp_path):
    settings = settings_of(other_data, tmp_path / "run", config, init_from=first, duration=8)
    [found] = values(run_world(1, weights_at_the_start, settings))
    old = load_file(first / "export" / "model.safetensors")
    before = open_tokenizer(first / "export").pieces
    after = open_tokenizer(other_data).pieces
    shared = [piece for piece in after if piece in before]
    assert 5 + 256 < len(shared) < len(after)
    for theirs, ours in (
        (WORD_EMBEDDINGS, "encoder.embedding.word_embeddings.weight"),
        (DECODER_BIAS, "head.decoder_bias"),
    ):
        for piece in shared:
            row = found[ours][after.index(piece)]
            assert torch.equal(row, old[theirs][before.index(piece)]), (theirs, piece)
    name = "cls.predictions.transform.dense.weight"
    assert torch.equal(found["head.dense.weight"], old[name])
    said = continued(1, other_data, tmp_path / "run", config, first, duration=8).output
    assert f"another tokenizer: {len(shared):,} of {len(after):,} pieces keep their rows" in said


def hf_bert(directory: Path, tokenizer: Path, kind: str = "BertForMaskedLM") -> Any:
    """A BERT of no preset's size, saved by transformers, with the tokenizer of our data."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = getattr(transformers, kind)(
        transformers.BertConfig(
            vocab_size=open_tokenizer(tokenizer).vocab_size,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    model.save_pretrained(directory)
    shutil.copy(tokenizer, directory)
    return model


def test_weights_of_transformers_in_a_size_that_is_no_preset(data, config, tmp_path):
    hf_bert(tmp_path / "bert", data / "tokenizer.model")
    output = tmp_path / "run"
    said = continued(1, data, output, config, tmp_path / "bert").output
    assert "start: " in said and "bert-1x32 in the layout of bert" in said
    assert json.loads((output / "config.json").read_text())["run"]["learning_rate"] == 1e-3
    again = continued(1, data, tmp_path / "again", config, output).output  # from its own export
    assert "bert-1x32 in the layout of rapidbert" in again
    assert read_export(output / "export").config.name == "bert-1x32"


def test_an_encoder_alone_gets_a_new_head(data, config, tmp_path):
    encoder = hf_bert(tmp_path / "bert", data / "tokenizer.model", "BertModel")
    settings = settings_of(
        data, tmp_path / "run", config, init_from=tmp_path / "bert", model=None, duration=8
    )
    [found] = values(run_world(1, weights_at_the_start, settings))
    words = encoder.embeddings.word_embeddings.weight
    assert torch.equal(found["encoder.embedding.word_embeddings.weight"][: len(words)], words)
    assert found["head.dense.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert "no masked-token head there, it begins new" in describe(resolve(settings, 1))


def test_a_resumed_run_goes_on_from_its_checkpoint(first, data, config, tmp_path):
    """To the bit as the straight one, and never from the initial weights again."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    continued(1, data, straight, config, first, duration=40)
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000000005")
    shutil.rmtree(resumed / "export")
    assert "resumed at step 3" in continued(1, data, resumed, config, first, duration=40).output
    records, state = trained(straight)
    again, state_again = trained(resumed)
    assert again == records
    assert all(torch.equal(state[name], state_again[name]) for name in state)


def refusal(data: Path, output: Path, config: Path, **options: Any) -> str:
    words = command_line(data, output, config, **(dict(duration=24, model=None) | options))
    [outcome] = run_world(1, pretraining, words)
    assert isinstance(outcome.error, UserError), outcome
    return str(outcome.error)


def test_other_initial_weights_are_another_run(first, data, config, tmp_path):
    output = tmp_path / "run"
    continued(1, data, output, config, first)
    # The same weights in another place are the same; one number changed makes others.
    moved = shutil.copytree(first / "export", tmp_path / "moved")
    continued(1, data, output, config, moved)
    tensors = load_file(moved / "model.safetensors")
    tensors[DECODER_BIAS][7] += 1e-3
    save_file(tensors, moved / "model.safetensors")
    said = refusal(data, output, config, init_from=moved)
    assert re.search(r"initial_weights: was '[0-9a-f]{64}', is '[0-9a-f]{64}'", said)
    assert "initial_weights: was '" in refusal(data, output, config, model="probe-tiny")
    said = refusal(data, first, config, duration=160, model="probe-tiny", init_from=moved)
    assert "initial_weights: was None" in said


def test_a_run_with_checkpoints_goes_on_without_what_it_started_from(first, data, config, tmp_path):
    """Changed in its place, and then gone, with the run's record and without it."""
    base, output, straight = tmp_path / "base", tmp_path / "run", tmp_path / "straight"
    shutil.copytree(first / "export", base / "export")
    continued(1, data, output, config, base, duration=40)
    shutil.copytree(output, straight)
    record = json.loads((output / "config.json").read_text())
    expected, state = trained(straight)

    def go_on(init_from: Path) -> str:
        shutil.rmtree(output / "export")
        shutil.rmtree(output / "checkpoints" / "step-000000005")
        said = continued(1, data, output, config, init_from, duration=40).output
        assert "resumed at step 3" in said
        records, state_again = trained(output)
        assert records == expected
        assert all(torch.equal(state[name], state_again[name]) for name in state)
        exported = json.loads((output / "export" / "config.json").read_text())["rapidbert"]
        again = json.loads((output / "config.json").read_text())
        assert again["identity"] == record["identity"]
        assert exported["started_from"] == again["started_from"]
        return said

    tensors = load_file(base / "export" / "model.safetensors")
    tensors[DECODER_BIAS][7] += 1e-3
    save_file(tensors, base / "export" / "model.safetensors")
    note = "the run goes on from its checkpoints, which do not need them"
    for spelling in (base, base / ".." / "base" / "export"):
        said = go_on(spelling)
        assert "no longer those that the run started from" in said and note in said
    elsewhere = shutil.copytree(base, tmp_path / "elsewhere")
    assert "initial_weights: was '" in refusal(
        data, output, config, init_from=elsewhere, duration=40
    )
    assert note not in go_on(first)
    # A run that has only begun still needs the weights that are named.
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(output / "config.json", begun)
    assert "initial_weights: was '" in refusal(data, begun, config, init_from=base, duration=40)
    shutil.rmtree(base)
    said = go_on(base)
    assert "cannot be read there now" in said and note in said
    assert (
        json.loads((output / "config.json").read_text())["started_from"] == (record["started_from"])
    )
    assert faults_of(data, begun, config, init_from=base, duration=40)[0].endswith(
        "no such directory"
    )
    (output / "config.json").unlink()
    assert note in go_on(base)


def faults_of(data: Path, output: Path, config: Path, **options: Any) -> list[str]:
    settings = settings_of(data, output, config, **(dict(duration=24, model=None) | options))
    with pytest.raises(UserError) as error:
        resolve(settings, 1)
    return list(error.value.faults)


def test_everything_wrong_with_the_start_is_said_at_once(first, data, config, tmp_path):
    output, nowhere = tmp_path / "run", tmp_path / "nowhere"
    assert faults_of(data, output, config, init_from=nowhere) == [f"{nowhere}: no such directory"]
    paper, model = faults_of(
        *(data, output, config), init_from=first, model="bert-tiny", sequence_length=128, paper=True
    )[:2]
    assert paper.endswith("starts from random weights; leave out --init-from or --paper")
    assert model.startswith("--model bert-tiny is not the model of --init-from: num_layers 3, the")
    hf_bert(tmp_path / "bert", data / "tokenizer.model")
    (tmp_path / "bert" / "tokenizer.model").unlink()
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"damaged")
    said = faults_of(tmp_path, output, config, init_from=tmp_path / "bert")
    for part in (
        "manifest.json",
        "model.safetensors: damaged",
        "no tokenizer there",
        "import --tokenizer",
    ):
        assert any(part in fault for fault in said), part
    assert faults_of(data, output, config) == [
        "--model: name a preset, or weights to start from with --init-from"
    ]


def test_a_start_whose_tokenizer_is_not_that_of_its_weights(
    first, data, other_data, config, tmp_path
):
    start = shutil.copytree(first / "export", tmp_path / "start")
    shutil.copy(other_data / "tokenizer.model", start)
    said = faults_of(data, tmp_path / "run", config, init_from=start)
    trained = open_tokenizer(first / "export").fingerprint
    assert any(f"the weights were trained with {trained}" in fault for fault in said)
    # In the layout of others, which records no tokenizer, the rows alone can tell.
    hf_bert(tmp_path / "bert", data / "tokenizer.model")
    pieces = open_tokenizer(data).vocab_size
    kept = json.loads((tmp_path / "bert" / "config.json").read_text())
    tensors = load_file(tmp_path / "bert" / "model.safetensors")
    for name, tensor in tensors.items():
        if len(tensor) == pieces:
            tensors[name] = torch.cat([tensor, tensor[:128]])
    save_file(tensors, tmp_path / "bert" / "model.safetensors", {"format": "pt"})
    (tmp_path / "bert" / "config.json").write_text(json.dumps(kept | {"vocab_size": pieces + 128}))
    [said] = faults_of(data, tmp_path / "run", config, init_from=tmp_path / "bert")
    assert f"{pieces:,} pieces, and the embeddings have {pieces + 128:,} rows" in said


def test_learned_positions_are_not_outgrown(data, config, tmp_path):
    hf_bert(tmp_path / "bert", data / "tokenizer.model")
    assert faults_of(
        data, tmp_path / "run", config, init_from=tmp_path / "bert", sequence_length=33
    ) == ["--sequence-length 33: bert-1x32 has learned positions for 32 tokens at most"]


def test_a_run_that_has_exported_nothing_says_so(first, data, config, tmp_path):
    run = shutil.copytree(first, tmp_path / "unfinished")
    shutil.rmtree(run / "export")
    [said] = faults_of(data, tmp_path / "run", config, init_from=run)
    assert "this run has done all of its 20 steps, and exported nothing" in said
