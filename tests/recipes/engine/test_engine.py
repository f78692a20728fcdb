"""What the engine computes, on one rank and on 200."""

from __future__ import annotations

import itertools
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from pretrain_scenarios import (
    build,
    one_step,
    one_update,
    run_world,
    settings_of,
    values,
    weights,
    write_config,
    write_data,
)
from torch.utils._python_dispatch import TorchDispatchMode

from model import layer
from model.config import PRESETS
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from recipes.corpus.mlm_batches import MlmBatches
from recipes.corpus.token_shards import open_shards
from recipes.engine import engine as engine_module
from recipes.engine.batch_plan import plan_batches
from recipes.engine.engine import build_engine
from recipes.engine.world import World, shut_down
from recipes.training.run import resolve
from recipes.training.settings import Settings
from recipes.training.step import fetch, training_batches
from recipes.training.stragglers import RankTimes

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "ds_configs").glob("*.json"))
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


def gradients(settings: Settings) -> tuple[float, list[int], dict[str, torch.Tensor]]:
    """Loss, masked tokens of this rank's micro-batches, and whole gradients of the first step."""
    run, world, engine = build(settings)
    batches = training_batches(run, world, 0)
    masked = [next(batches).masked_tokens for _ in range(run.plan.accumulation)]
    found: dict[str, torch.Tensor] = {}
    step = engine.step

    def look_before_stepping() -> None:
        if engine.is_gradient_accumulation_boundary():
            for name, parameter in engine.module.named_parameters():
                found[name] = deepspeed.utils.safe_get_full_grad(parameter).clone()
        step()

    engine.step = look_before_stepping
    loss = one_step(run, world, engine, 0)
    shut_down()
    return loss, masked, found


def plain_gradients(data: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """The same from plain PyTorch: one batch, one mean, one backward."""
    initialize_parallel()
    torch.manual_seed(17)
    shards = open_shards(data, "train")
    changes = {"vocab_size": shards.vocab_size}
    model = RapidBertForMaskedLM(replace(PRESETS["dropout-tiny"], **changes))
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
        settings = settings_of(data, tmp_path / "run", config, seed=17, model="dropout-tiny")
        results = values(run_world(world_size, gradients, settings))
        masked = [count for _, counts, _ in results for count in counts]
        assert len(masked) == 4 and len(set(masked)) > 1  # a mean of means would differ
        for got_loss, _, found in results:
            assert got_loss == pytest.approx(loss, rel=1e-6)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def compiler_after_a_step(settings: Settings) -> bool:
    """Whether Inductor was loaded by a rank that Muon was not imported for."""
    for name in [name for name in sys.modules if name.startswith("deepspeed.runtime.zero.muon")]:
        del sys.modules[name]
    one_step(*build(settings), 0)
    shut_down()
    assert "deepspeed.runtime.zero.muon.muon_optimizer" in sys.modules
    return "torch._inductor.compile_fx" in sys.modules


@pytest.mark.parametrize("keys", [{}, BF16], ids=["fp32", "bf16"])
def test_training_does_not_load_the_compiler(data, tmp_path, keys):
    settings = settings_of(data, tmp_path / "run", write_config(tmp_path, 8, 8, **keys))
    assert values(run_world(1, compiler_after_a_step, settings)) == [False]


def masters(settings: Settings) -> bool:
    """Whether the fp32 weights, which round to the model's bf16 on every rank, say more."""
    run, world, engine = build(settings)
    one_step(run, world, engine, 0)
    precise = weights(engine)
    finer = False
    for name, parameter in engine.module.named_parameters():
        assert parameter.dtype == torch.bfloat16 and precise[name].dtype == torch.float32
        assert torch.equal(precise[name].bfloat16(), parameter)
        finer |= not torch.equal(precise[name], parameter.float())
        other = precise[name].clone()
        dist.broadcast(other, src=0)
        assert torch.equal(other, precise[name])
    shut_down()
    return finer


def test_full_precision_parameters_are_the_master_weights(data, tmp_path):
    config = write_config(tmp_path, 8, 4, 1, **BF16)
    settings = settings_of(data, tmp_path / "run", config)
    assert values(run_world(2, masters, settings)) == [True, True]


def weights_after(settings: Settings, steps: int) -> dict[str, torch.Tensor]:
    run, world, engine = build(settings)
    for step in range(steps):
        one_step(run, world, engine, step)
    found = weights(engine)
    shut_down()
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_summed_in_one_pass_are_the_same_to_the_bit(data, tmp_path, ranks):
    """DeepSpeed's own sum, which copies every gradient to fp32 first, against ours."""
    immediate = {**BF16, "bf16": {"enabled": True, "immediate_grad_update": True}}
    after = []
    for number, keys in enumerate((BF16, immediate)):
        (tmp_path / str(number)).mkdir()
        config = write_config(tmp_path / str(number), 8, 8 // ranks // 4, 1, **keys)
        settings = settings_of(data, tmp_path / "run", config, model="dropout-tiny")
        after.append(values(run_world(ranks, weights_after, settings, 3))[0])
    assert after[0].keys() == after[1].keys()
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])


def norms(settings: Settings) -> list[tuple[float, float]]:
    """Norms of three gradients: what DeepSpeed found, and the norm parameter by parameter."""
    engine_module.NORM_PIECE = 1000
    run, world, engine = build(settings)
    optimizer, found = engine.optimizer, []
    step = optimizer.step

    def look_before_stepping() -> None:
        parts = [torch.linalg.vector_norm(g) for g in optimizer.fp32_groups_gradients[0]]
        expected = float(torch.stack(parts).norm())
        step()
        found.append((float(optimizer._global_grad_norm), expected))

    optimizer.step = look_before_stepping
    for number in range(3):
        one_step(run, world, engine, number)
    shut_down()
    return found


def test_the_norm_in_pieces_is_that_of_all_parameters(data, tmp_path):
    keys = {**BF16, "bf16": {"enabled": True, "immediate_grad_update": True}}
    config = write_config(tmp_path, 8, 2, 1, **keys)
    settings = settings_of(data, tmp_path / "run", config, model="dropout-tiny")
    for ranks in values(run_world(2, norms, settings)):
        assert len(ranks) == 3
        for found, expected in ranks:
            assert found == pytest.approx(expected, rel=1e-6) and found > 0


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers read from it, shapes that follow from
    its data, copies back, and `synchronize`.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if name.startswith(self.WAITING):
            self.found.append(name)
        return function(*arguments, **(keywords or {}))


def waits(settings: Settings) -> list[list[str]]:
    """What each of five steps waits for; DeepSpeed's timer would begin in the third."""
    run, world, engine = build(settings)
    plan = layer.plan_attention

    def plan_uncounted(*arguments, **keywords):
        with (
            torch.utils._python_dispatch._disable_current_modes()
        ):  # on the CPU it asks for lengths
            return plan(*arguments, **keywords)

    layer.plan_attention = plan_uncounted
    device = deepspeed.accelerator.get_accelerator()
    batches = training_batches(run, world, 0)
    found = []
    for step in range(5):
        batch = fetch(batches, run.plan.accumulation, {}, world)
        with Waits() as counted:
            device.synchronize = lambda *_: counted.found.append("synchronize")
            torch.cuda.synchronize = device.synchronize
            one_update(engine, batch, RankTimes(world), 17, step)
        found.append(counted.found)
    shut_down()
    return found


def test_a_step_waits_once_for_the_norm_of_its_gradient(data, tmp_path):
    """However many micro-batches it has: the update is skipped where the norm is not finite."""
    keys = {**BF16, "bf16": {"enabled": True, "immediate_grad_update": True}}
    for micro_batch in (8, 2):
        config = write_config(tmp_path, 8, micro_batch, 1, **keys)
        settings = settings_of(data, tmp_path / "run", config, model="dropout-tiny")
        [found] = values(run_world(1, waits, settings))
        assert found == [["_local_scalar_dense"]] * 5, micro_batch


def engine_of_rank(rank: int, data: Path, config: Path) -> tuple[Any, ...]:
    """Batch sizes of the engine that one rank of 200 builds, in torch's fake process group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.update(RANK=str(rank), WORLD_SIZE="200")
    settings = settings_of(data, data / "run", config, model="probe-tiny")
    run = resolve(settings, 200)
    dist.init_process_group("fake", rank=rank, world_size=200, store=FakeStore())
    # DeepSpeed would compile its shared-memory all-reduce, Megatron connect real gloo groups.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    world = World(rank, rank % 8, 200, torch.device("cpu"), rank, 200, 1)
    model = RapidBertForMaskedLM(run.model)
    engine = build_engine(model, run.deepspeed, run.plan, world, **run.optimizer)
    return (
        engine.train_batch_size(),
        engine.train_micro_batch_size_per_gpu(),
        engine.gradient_accumulation_steps(),
        engine.zero_optimization_stage(),
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
                found += [ids[a:b] for a, b in itertools.pairwise(bounds)]
        return found

    # Step 3 of a global batch of 400: one micro-batch of 2 a rank, two of 1, or 4 of 100 on one.
    expected = sequences(1, 100, range(12, 16))
    assert len(expected) == 400
    assert sequences(200, 2, range(3, 4)) == expected
    assert sequences(200, 1, range(6, 8)) == expected
    assert math.prod(plan_batches(400, 2, 200).__dict__.values()) == 400 * 400
