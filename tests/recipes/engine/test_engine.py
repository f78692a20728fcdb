"""Batch arithmetic, the DeepSpeed JSON, launch environments, and what the engine computes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from megatron.core import parallel_state
from pretrain_scenarios import (
    build,
    command_line,
    one_step,
    run_world,
    values,
    weights,
    write_config,
    write_data,
)

from model.config import PRESETS
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from recipes import pretrain
from recipes.common.errors import UserError
from recipes.corpus.mlm_batches import MlmBatches
from recipes.corpus.token_shards import open_shards
from recipes.engine import engine
from recipes.engine.engine import BatchPlan, plan_batches, read_config

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "ds_configs").glob("*.json"))
BATCHES = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


@given(st.integers(1, 10_000), st.integers(1, 600), st.integers(1, 300))
def test_plans(requested, limit, ranks):
    try:
        plan = plan_batches(requested, limit, ranks)
    except UserError as error:
        nearest = int(str(error).split("train_batch_size to ")[1].split()[0].rstrip("."))
        assert plan_batches(nearest, limit, ranks).global_batch == nearest
        if " or use " in str(error):
            plan_batches(requested, limit, int(str(error).split(" or use ")[1].split()[0]))
        # Nothing was near: not even with any number of micro-batches of the largest size.
        whole = max(1, round(requested / (limit * ranks))) * limit * ranks
        assert abs(whole - requested) > requested / 10
        return
    assert 1 <= plan.micro_batch <= limit
    assert plan.global_batch == plan.micro_batch * plan.accumulation * ranks
    off = abs(plan.global_batch - requested)
    assert off <= requested / 10
    for micro_batch in (plan.micro_batch - 1, plan.micro_batch + 1):
        if 1 <= micro_batch <= limit:
            assert off <= abs(micro_batch * plan.accumulation * ranks - requested)
    if plan.accumulation > 1:  # fewer micro-batches do not fit the memory, or fit less well
        fewer = limit * (plan.accumulation - 1) * ranks
        assert fewer < requested and off < requested - fewer


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (512, {8: (512, 1), 16: (256, 1), 32: (128, 1), 64: (64, 1), 128: (32, 1), 200: (20, 1)}),
        (256, {8: (256, 2), 16: (256, 1), 32: (128, 1), 64: (64, 1), 128: (32, 1), 200: (20, 1)}),
    ],
    ids=["base", "large"],
)
def test_the_published_batch_on_8_to_200_gpus(limit, expected):
    for gpus, (micro_batch, accumulation) in expected.items():
        plan = plan_batches(4096, limit, gpus)
        assert plan == BatchPlan(4096, micro_batch, accumulation, gpus)
        assert plan.global_batch == (4000 if gpus == 200 else 4096)
    assert "rounded from 4096" in str(plan_batches(4096, limit, 200))


def test_batches_that_the_limit_cuts_unevenly():
    # One more micro-batch would be 30 sequences.
    assert plan_batches(21, 1, 10) == BatchPlan(21, 1, 2, 10)
    # Two micro-batches of 4 would be no nearer than one of 8.
    assert plan_batches(100, 8, 12) == BatchPlan(100, 8, 1, 12)


def test_more_ranks_than_sequences_shows_the_arithmetic_and_two_ways_out():
    with pytest.raises(UserError) as caught:
        plan_batches(64, 32, 200)
    message = str(caught.value)
    assert "64 / 200 ranks = 0.32" in message
    assert "train_batch_size to 200" in message
    assert "use 70 ranks" in message  # one sequence each: 70 is within a tenth of 64


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configurations_of_the_recipe(path):
    config = read_config(path, batch_sizes=not path.name.startswith("finetune"))
    expected = "fp32" if path.stem.endswith("_cpu") else "bf16"
    assert engine.precision(config) == expected


FAULTS = {
    '"train_batchsize": 8': "'train_batchsize' (did you mean 'train_batch_size'?)",
    '"optimizer": {"type": "Adam"}': "--learning-rate, --weight-decay",
    '"scheduler": {}': "--warmup-fraction",
    '"gradient_clipping": 1.0': "without clipping",
    '"gradient_accumulation_steps": 2': "follows from the batch sizes",
    '"tensorboard": {}': "writes TensorBoard itself",
    '"fp16": {"enabled": true}': "bf16 or fp32",
    '"torch_autocast": {"enabled": true}': "'torch_autocast' has no place",
    '"bf16": {"enabled": "maybe"}': "bf16.enabled",
    '"bf16": {"enabled": "false"}': "bf16.enabled must be bool",
    '"bf16": {"enable": true}': "bf16.enable",
    '"bf16": true': "bf16 must be an object",
    '"zero_optimization": {"stages": 1}': "zero_optimization.stages",
    '"zero_optimization": {"stage": 4}': "zero_optimization.stage must be 0, 1 or 2, got 4",
    '"zero_optimization": {"stage": "1"}': "zero_optimization.stage must be 0, 1 or 2, got '1'",
    '"zero_optimization": {"stage": 3}': "must be 0, 1 or 2, got 3; 3 shards the weights",
    '"zero_optimization": {"offload_optimizer": {"device": "cpu"}}': "offload_optimizer",
    '"zero_optimization": []': "zero_optimization must be an object",
    '"data_types": {"grad_accum_dtype": "fp8"}': "data_types.grad_accum_dtype must be 'fp32' or",
    '"data_types": {"grad_acum_dtype": "fp32"}': "'data_types.grad_acum_dtype'; known: grad_accum",
    '"comms_logger": {"enabled": 1}': "comms_logger.enabled must be bool",
    '"communication_data_type": "fp8"': "communication_data_type must be 'fp32' or 'bf16'",
    '"prescale_gradients": "yes"': "prescale_gradients must be bool",
    '"gradient_predivide_factor": true': "gradient_predivide_factor must be float",
    '"steps_per_print": "never"': "steps_per_print must be int",
    '"bf16": {"enabled": true}': "needs ZeRO",
    '"bf16": {}, "bf16": {}': "key bf16 given twice",
    '"zero_optimization": {"stage": 1, "stage": 2}': "key stage given twice",
}


@pytest.mark.parametrize("faulty", FAULTS, ids=lambda text: text.replace('"', ""))
def test_a_faulty_configuration_is_refused(tmp_path, faulty):
    path = tmp_path / "config.json"
    path.write_text(f"{json.dumps(BATCHES)[:-1]}, {faulty}}}")
    with pytest.raises(UserError) as caught:
        read_config(path)
    assert len(caught.value.faults) == 1
    assert str(path) in str(caught.value) and FAULTS[faulty] in str(caught.value)


@pytest.mark.parametrize("wrong", [0, -8, 8.0, "8", True, None, [8], 10**20, float("inf")])
def test_batch_sizes_are_positive_whole_numbers(tmp_path, wrong):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**BATCHES, "train_batch_size": wrong}))
    with pytest.raises(UserError, match="train_batch_size must be a positive whole number"):
        read_config(path)


def test_all_faults_of_a_configuration_at_once(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"train_batch_size": 0, "optimizer": {}, "bf61": {}, "steps_per_print": []}')
    with pytest.raises(UserError) as caught:
        read_config(path)
    assert len(caught.value.faults) == 5  # the micro-batch is missing


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[]", "must be a JSON object")],
)
def test_a_file_that_is_no_configuration(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_config(path)


def test_a_missing_configuration_is_told_which_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(CONFIGS[0].parents[1])
    with pytest.raises(UserError, match="No such file or directory; there are .*base.json"):
        read_config(tmp_path / "absent.json")


def gradients(arguments: list[str]) -> tuple[float, list[int], dict[str, torch.Tensor]]:
    """Loss, masked tokens of this rank's micro-batches, and whole gradients of the first step."""
    settings, world, trainer = build(arguments)
    batches = pretrain.training_batches(settings, world, 0)
    masked = [next(batches).masked_tokens for _ in range(settings.plan.accumulation)]
    found: dict[str, torch.Tensor] = {}
    step = trainer.step

    def look_before_stepping() -> None:
        if trainer.is_gradient_accumulation_boundary():
            for name, parameter in trainer.module.named_parameters():
                found[name] = deepspeed.utils.safe_get_full_grad(parameter).clone()
        step()

    trainer.step = look_before_stepping
    loss = one_step(settings, world, trainer, 0)
    engine.shut_down()
    return loss, masked, found


def plain_gradients(data: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """The same from plain PyTorch: one batch, one mean, one backward."""
    initialize_parallel()
    torch.manual_seed(17)
    shards = open_shards(data, "train")
    changes = {"vocab_size": shards.vocab_size}
    model = RapidBertForMaskedLM(pretrain.replace(PRESETS["dropout-tiny"], **changes))
    batch = MlmBatches(shards, sequence_length=32, seed=17, micro_batch=8)[0]
    hidden = model.encoder(
        *(batch.input_ids, batch.sequence_offsets, 32),
        keep=batch.masked_positions,
        sequence_keys=batch.sequence_keys,
    )
    logits = model.head(hidden, model.encoder.embedding.word_embeddings.weight)
    loss = torch.nn.functional.cross_entropy(logits, batch.labels)  # ignores -100, divides by rest
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def test_the_gradient_is_that_of_the_mean_over_the_global_batch(data, tmp_path):
    [(loss, expected)] = values(run_world(1, plain_gradients, data))
    for world_size, stage in ((1, 0), (2, 0), (2, 1)):
        config = write_config(tmp_path, 8, 2, stage)
        arguments = command_line(data, tmp_path / "run", config, seed=17, model="dropout-tiny")
        results = values(run_world(world_size, gradients, arguments))
        masked = [count for _, counts, _ in results for count in counts]
        assert len(masked) == 4 and len(set(masked)) > 1  # a mean of means would differ
        for got_loss, _, found in results:
            assert got_loss == pytest.approx(loss, rel=1e-6)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def masters(arguments: list[str]) -> bool:
    """Whether the fp32 weights, which round to the model's bf16 on every rank, say more."""
    settings, world, trainer = build(arguments)
    one_step(settings, world, trainer, 0)
    precise = weights(trainer)
    finer = False
    for name, parameter in trainer.module.named_parameters():
        assert parameter.dtype == torch.bfloat16 and precise[name].dtype == torch.float32
        assert torch.equal(precise[name].bfloat16(), parameter)
        finer |= not torch.equal(precise[name], parameter.float())
        other = precise[name].clone()
        dist.broadcast(other, src=0)
        assert torch.equal(other, precise[name])
    engine.shut_down()
    return finer


def test_full_precision_parameters_are_the_master_weights(data, tmp_path):
    config = write_config(tmp_path, 8, 4, 1, **BF16)
    arguments = command_line(data, tmp_path / "run", config)
    assert values(run_world(2, masters, arguments)) == [True, True]


def engine_of_rank(rank: int, data: Path, config: Path) -> tuple[Any, ...]:
    """Batch sizes of the engine that one rank of 200 builds, in torch's fake process group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.update(RANK=str(rank), WORLD_SIZE="200")
    arguments = command_line(data, data / "run", config, model="probe-tiny")
    settings = pretrain.resolve(pretrain.parse_arguments(arguments), 200)
    dist.init_process_group("fake", rank=rank, world_size=200, store=FakeStore())
    # DeepSpeed would compile its shared-memory all-reduce, Megatron connect real gloo groups.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    world = engine.World(rank, rank % 8, 200, torch.device("cpu"), rank, 200, 1)
    model = RapidBertForMaskedLM(settings.model)
    optimizer = pretrain.optimizer(settings.options)
    trainer = engine.build_engine(model, settings.deepspeed, settings.plan, world, **optimizer)
    return (
        trainer.train_batch_size(),
        trainer.train_micro_batch_size_per_gpu(),
        trainer.gradient_accumulation_steps(),
        trainer.zero_optimization_stage(),
    )


@pytest.mark.parametrize("rank", [0, 1, 199])
def test_the_engine_of_a_rank_of_200(data, rank):
    base = next(path for path in CONFIGS if path.name == "base.json")
    [sizes] = values(run_world(1, engine_of_rank, rank, data, base))
    assert sizes == (4000, 20, 1, 1)


def test_200_ranks_together_read_what_one_rank_reads(data):
    shards = open_shards(data, "train")
    settings: dict[str, Any] = dict(sequence_length=32, seed=3)

    def sequences(ranks: int, micro_batch: int, items: range) -> list[list[int]]:
        """What the micro-batches of all ranks hold, sequence by sequence, masked as they are."""
        found = []
        for item in items:
            for rank in range(ranks):
                batches = MlmBatches(
                    shards, micro_batch=micro_batch, rank=rank, world_size=ranks, **settings
                )
                batch = batches[item]
                bounds = batch.sequence_offsets.tolist()
                ids = batch.input_ids.tolist()
                found += [ids[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        return found

    # Step 3 of a global batch of 400: one micro-batch of 2 a rank, two of 1, or 4 of 100 on one.
    expected = sequences(1, 100, range(12, 16))
    assert len(expected) == 400
    assert sequences(200, 2, range(3, 4)) == expected
    assert sequences(200, 1, range(6, 8)) == expected
    assert math.prod(plan_batches(400, 2, 200).__dict__.values()) == 400 * 400
