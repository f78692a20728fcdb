"""The estimate against engines that were really built and tensors that autograd really kept."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from pretrain_scenarios import (
    build,
    command_line,
    pretraining,
    run_world,
    settings_of,
    values,
    write_config,
    write_data,
)

from model import padded_attention
from model.config import PRESETS, ModelConfig, ModelOptions
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from recipes.common.errors import UserError
from recipes.corpus.token_shards import MANIFEST_NAME
from recipes.engine.batch_plan import BatchPlan, plan_batches
from recipes.engine.world import shut_down
from recipes.planning import memory
from recipes.planning.memory import MemoryEstimate
from recipes.training.settings import Settings
from recipes.training.step import training_batches

ROOT = Path(__file__).resolve().parents[3]
BF16 = {"bf16": {"enabled": True}}
ACCUMULATED = {**BF16, "data_types": {"grad_accum_dtype": "fp32"}}
IMMEDIATE = {**ACCUMULATED, "bf16": {"enabled": True, "immediate_grad_update": True}}
SIZES: dict[str, Any] = dict(vocab_size=128, hidden_size=64, num_heads=2, ffn_size=128)
SMALL = replace(PRESETS["rapidbert-tiny"], vocab_size=512)


def kept_bytes(
    config: ModelConfig,
    dtype: torch.dtype,
    sequences: int,
    sequence_length: int,
    mask_probability: float,
    attention: str = "sdpa",
    kernels: str = "torch",
) -> int:
    """Bytes that the backward pass keeps of the real layers' forward pass, without parameters.

    Attention pads the whole batch, as on a GPU; what layers share for that is counted as well.
    """
    initialize_parallel()
    model = RapidBertForMaskedLM(config, ModelOptions(attention, kernels)).to(dtype)
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}  # storages, held so that no address is used twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    def plan_whole(*arguments: Any, one_call: bool) -> padded_attention.PaddingPlan:
        plan = padded_attention.plan_padding(*arguments, one_call=True)
        [call] = plan.calls
        for tensor in (call.bias, *vars(call.padding).values()):
            if isinstance(tensor, torch.Tensor):
                note(tensor)
        return plan

    tokens = sequences * sequence_length
    masked = round(mask_probability * sequence_length)
    starts = torch.arange(sequences) * sequence_length
    positions = (starts[:, None] + torch.arange(masked)).flatten()
    with (
        mock.patch("model.attention.plan_padding", plan_whole),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        model(
            torch.zeros(tokens, dtype=torch.long),
            torch.arange(sequences + 1, dtype=torch.int32) * sequence_length,
            sequence_length,
            positions,
            torch.zeros(len(positions), dtype=torch.long),
            sequence_keys=torch.zeros(sequences, dtype=torch.long),
        )
    return sum(storage.nbytes() for storage in kept.values())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("preset", ["rapidbert-base", "rapidbert-tiny", "bert-base", "bert-tiny"])
@pytest.mark.parametrize("attention", ["reference", "sdpa"])
def test_activations_are_those_that_autograd_keeps(attention, preset, dtype):
    """With and without dropout; a deep model and several sequences, counted whole."""
    config = replace(PRESETS[preset], **SIZES, num_layers=4)
    each = memory.activation_bytes(config, dtype, 64, 0.3, attention=attention)
    assert 3 * each == pytest.approx(kept_bytes(config, dtype, 3, 64, 0.3, attention), rel=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is off")
@pytest.mark.parametrize(
    ("preset", "attention", "dtype", "length"),
    [
        ("rapidbert-base", "triton", torch.float32, 48),
        ("rapidbert-base", "triton", torch.bfloat16, 136),  # in tiles
        ("rapidbert-base", "sdpa", torch.float32, 48),
        ("bert-base", "sdpa", torch.bfloat16, 48),
        ("bert-tiny", "triton", torch.bfloat16, 48),
    ],
)
def test_activations_of_the_triton_kernels(preset, attention, dtype, length):
    """What autograd keeps when the kernels really run, in the interpreter."""
    config = replace(PRESETS[preset], **SIZES, num_layers=2)
    options: dict[str, str] = dict(attention=attention, kernels="triton")
    formula = memory.activation_bytes(config, dtype, length, 0.3, **options)
    kept = kept_bytes(config, dtype, 2, length, 0.3, attention, "triton")
    assert 2 * formula == pytest.approx(kept, rel=0.04)


def test_recomputing_keeps_inputs_and_one_layer():
    config = replace(PRESETS["rapidbert-base"], num_layers=12)
    whole, again = (
        memory.activation_bytes(config, torch.bfloat16, 128, 0.3, recompute=recompute)
        for recompute in (False, True)
    )
    assert again < whole / 3
    one = replace(config, num_layers=1)
    assert memory.activation_bytes(one, torch.bfloat16, 128, 0.3) == memory.activation_bytes(
        one, torch.bfloat16, 128, 0.3, recompute=True
    )


@pytest.mark.parametrize("preset", ["rapidbert-base", "bert-large"])
def test_an_estimate_allocates_nothing(preset, monkeypatch):
    """At 200,000 tokens the bias alone would be a terabyte."""
    for make in ("empty", "zeros", "arange"):
        monkeypatch.setattr(torch, make, None)
    config = {**BF16, "zero_optimization": {"stage": 1}}
    needed = memory.estimate(
        PRESETS[preset],
        config,
        BatchPlan(8, 1, 1, 8),
        sequence_length=200_000,
        mask_probability=0.3,
        attention="sdpa",
    )
    assert needed.activations > 12 * 2 * 200_000**2
    with pytest.raises(UserError, match="not even one sequence fits"):
        memory.check_fit(needed, 1, 80)


def test_activations_grow_with_width_and_shrink_with_precision():
    """Twice the width keeps about twice the bytes; bf16 keeps about half of fp32."""
    wide = replace(SMALL, hidden_size=384, num_heads=6, ffn_size=2 * SMALL.ffn_size)
    small, large = (memory.activation_bytes(c, torch.float32, 64, 0.3) for c in (SMALL, wide))
    half = memory.activation_bytes(SMALL, torch.bfloat16, 64, 0.3)
    assert 1.6 < large / small < 2.05
    assert 0.45 < half / small < 0.75


def states(settings: Settings) -> tuple[int, int, int]:
    """Bytes of the tensors that a real engine holds in the middle of a step: weights, gradients,
    optimizer.
    """
    run, world, engine = build(settings)
    batch = next(training_batches(run, world, 0))
    length = batch.max_sequence_length
    places = (batch.masked_positions, batch.labels)
    loss = engine(batch.input_ids, batch.sequence_offsets, length, *places)
    engine.backward(loss, scale_wrt_gas=False)
    engine.step()  # ends a micro-batch, not the step
    weights = sum(p.numel() * p.element_size() for p in engine.module.parameters())
    optimizer = engine.optimizer
    gradients = sum(p.grad.nbytes for p in engine.module.parameters() if p.grad is not None)
    if hasattr(optimizer, "fp32_groups_gradients_flat"):  # BF16_Optimizer, fp32 accumulation
        gradients += sum(t.nbytes for t in optimizer.fp32_groups_gradients_flat)
    inner = getattr(optimizer, "optimizer", optimizer)
    from recipes.training.checkpoints import state as optimizer_state

    list(optimizer_state.pieces(engine, world))  # makes the moments
    moments = sum(
        tensor.nbytes
        for state in inner.state.values()
        for tensor in state.values()
        if tensor.dim() > 0
    )
    held = {p.data_ptr(): p.nbytes for g in inner.param_groups for p in g["params"]}
    own = {p.data_ptr() for p in engine.module.parameters()}
    masters = sum(size for pointer, size in held.items() if pointer not in own)
    shut_down()
    return weights, gradients, moments + masters


@pytest.mark.parametrize(
    ("ranks", "stage", "keys"),
    [(2, 0, {}), (2, 1, {}), (2, 1, BF16), (2, 1, ACCUMULATED), (2, 1, IMMEDIATE)],
)
def test_states_are_those_of_a_real_engine(data, tmp_path, ranks, stage, keys):
    config = write_config(tmp_path, 8, 2, stage, **keys)
    arguments = settings_of(data, tmp_path / "run", config, model="rapidbert-tiny", duration=8)
    weights, gradients, optimizer = values(run_world(ranks, states, arguments))[0]
    parameters = weights // (2 if keys else 4)
    deepspeed = {**keys, "zero_optimization": {"stage": stage}}
    found = memory.state_bytes(parameters, deepspeed, ranks)
    assert found[0] == weights
    assert found[2] == pytest.approx(optimizer, rel=0.01)
    if keys in (ACCUMULATED, IMMEDIATE):
        assert found[1] == pytest.approx(gradients, rel=0.01)


# Bytes per parameter of all live tensors in the middle of an accumulation, counted on rank 0 of a
# fake world with real engines; the estimate is of the states alone.
COUNTED = [(1, "fp32", 8, 9.50), (1, "fp32", 200, 8.06), (2, "fp32", 8, 4.00), (2, None, 8, 3.76)]


@pytest.mark.parametrize(("stage", "accumulation", "ranks", "counted"), COUNTED)
def test_bytes_per_parameter_of_bf16(stage, accumulation, ranks, counted):
    config: dict[str, Any] = {**BF16, "zero_optimization": {"stage": stage}}
    if accumulation:
        config["data_types"] = {"grad_accum_dtype": accumulation}
    parameters, gradients, optimizer = memory.state_bytes(10**6, config, ranks)
    # Gradients in bf16 come and go; what DeepSpeed holds of them is at least this.
    assert (parameters + gradients + optimizer) / 10**6 == pytest.approx(counted, rel=0.02)


def test_what_does_not_fit_is_told_the_largest_micro_batch():
    needed = MemoryEstimate(10**9, 2 * 10**9, 10**9, 60 * 10**9, 10**9)
    memory.check_fit(needed, 512, 80)
    with pytest.raises(UserError, match=r"do not fit into 40 GB.*= 65.00 GB.*; 298 sequences fit"):
        memory.check_fit(needed, 512, 40)  # (40 - 5) / 60 * 512 = 298.7
    with pytest.raises(UserError, match="not even one sequence fits"):
        memory.check_fit(needed, 512, 4)


@pytest.fixture(scope="module")
def english(data, tmp_path_factory) -> Path:
    """Data that say their tokenizer has as many pieces as the published one."""
    directory = shutil.copytree(data, tmp_path_factory.mktemp("english") / "data")
    manifest = json.loads((directory / MANIFEST_NAME).read_text())
    manifest["tokenizer"]["vocab_size"] = 30_522
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest))
    return directory


def dry_run(data: Path, size: str, gpus: int, *more: Any) -> int:
    arguments = ["--dry-run", "--gpus", str(gpus), "--model", f"rapidbert-{size}"]
    arguments += ["--data", str(data), "--output", str(data / "none")]
    config = ROOT / "ds_configs" / f"{size}.json"
    status = pretraining([*arguments, "--deepspeed_config", str(config), *map(str, more)])
    assert not (data / "none").exists()
    return status


# By hand. Embeddings with norm, layers, head: word 30,528 h, types 2 h, norm 2 h; per layer
# q, k, v and output 4 (h h + h), GLU h x 2 f without bias, f h + h, two norms 4 h; head h h + h,
# norm 2 h, bias 30,528; h, f = 768, 3,072 in 12 layers and 1,024, 4,096 in 24.
PARAMETERS = {"base": 137_400_384, "large": 435_221_312}
GPUS = [8, 16, 32, 64, 128, 200]
# Sequences per micro-batch and micro-batches per step: 4,096 over the GPUs, cut by 512 and 256.
CUT = {
    "base": [(512, 1), (256, 1), (128, 1), (64, 1), (32, 1), (20, 1)],
    "large": [(256, 2), (256, 1), (128, 1), (64, 1), (32, 1), (20, 1)],
}


@pytest.mark.parametrize("size", ["base", "large"])
def test_dry_runs_show_what_each_of_8_to_200_gpus_would_do_and_hold(english, size, capsys):
    activations = {}
    for gpus, (micro, accumulation) in zip(GPUS, CUT[size], strict=True):
        assert dry_run(english, size, gpus) == 0
        shown = capsys.readouterr().out
        batch = 4000 if gpus == 200 else 4096
        for line in (
            f"nodes: {gpus // 8} nodes x 8 GPUs",
            f"global batch {batch} = {micro} sequences x {accumulation} micro-batches x "
            f"{gpus} ranks",
            # 70,000 x 4,096 sequences, in batches of 4,000 on 200 GPUs.
            f"duration: {'71,680' if gpus == 200 else '70,000'} steps, 286,720,000 sequences",
            f"model: rapidbert-{size}, {PARAMETERS[size] / 1e6:.1f}M parameters",
        ):
            assert line in shown, shown
        assert ("(rounded from 4096" in shown) == (gpus == 200)
        memory_line = re.search(r"memory: (.*) = ([\d.]+) GB per GPU \(estimate\)", shown)
        assert memory_line
        parts = {name: float(gb) for name, gb in re.findall(r"(\w+) ([\d.]+)", memory_line[1])}
        gigabyte = PARAMETERS[size] / 1e9
        assert parts["parameters"] == pytest.approx(2 * gigabyte, abs=0.005)  # bf16
        assert parts["gradients"] == pytest.approx(4 * gigabyte, abs=0.005)  # the fp32 sum
        # ZeRO-1: a part of the fp32 weights and of both moments.
        assert parts["optimizer"] == pytest.approx(12 * gigabyte / gpus, abs=0.005)
        assert parts["reserve"] == 3
        assert float(memory_line[2]) == pytest.approx(sum(parts.values()), abs=0.03)
        activations[micro] = parts["activations"]
    # In proportion to the micro-batch, whatever the number of GPUs.
    largest = max(activations)
    for micro, size_of in activations.items():
        assert size_of == pytest.approx(activations[largest] * micro / largest, abs=0.01)


@pytest.mark.parametrize(
    ("size", "gpus", "gigabytes", "states"),
    # What is there without activations: 6 bytes a parameter, 12 / GPUs of them, the reserve.
    [("large", 8, 16, "2.61 + 0.65 + 3"), ("base", 8, 20, "0.82 + 0.21 + 3")],
)
def test_a_dry_run_refuses_what_cannot_fit_and_its_advice_is_the_largest_that_does(
    english, size, gpus, gigabytes, states, tmp_path, capsys
):
    memory_of = ["--gpu-memory-gb", gigabytes]
    with pytest.raises(UserError, match=f"do not fit into {gigabytes} GB") as refusal:
        dry_run(english, size, gpus, *memory_of)
    advised = int(re.findall(r"(\d+) sequences fit", str(refusal.value))[0])
    activations = float(re.findall(r"activations ([\d.]+)", str(refusal.value))[0])
    micro = CUT[size][GPUS.index(gpus)][0]
    left = gigabytes - sum(map(float, states.split(" + ")))
    assert advised == pytest.approx(left / (activations / micro), abs=1)
    config = json.loads((ROOT / "ds_configs" / f"{size}.json").read_text())
    for sequences, fits in ((advised, True), (advised + 1, False)):
        # So many at once: as many in a global batch as the GPUs take in one go.
        config["train_micro_batch_size_per_gpu"] = sequences
        config["train_batch_size"] = sequences * gpus
        (tmp_path / "config.json").write_text(json.dumps(config))
        more = [*memory_of, "--deepspeed_config", tmp_path / "config.json"]
        if fits:
            assert dry_run(english, size, gpus, *more) == 0
        else:
            with pytest.raises(UserError, match="do not fit"):
                dry_run(english, size, gpus, *more)


def on_devices_of(arguments: list[str], sizes: list[int]) -> Any:
    """Pretrain where the rank sees so many bytes."""
    memory.device_bytes = lambda device: sizes[int(os.environ["RANK"])]
    return pretraining(arguments)


def test_a_start_on_devices_that_are_too_small_is_refused_on_every_rank(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    arguments = command_line(data, tmp_path / "run", config, duration=8)
    enough, short = 4 * 10**9, 10**6  # shared by the two ranks of this machine
    for outcome in run_world(2, on_devices_of, arguments, [enough, short]):
        assert isinstance(outcome.error, UserError)
        assert str(outcome.error).startswith("rank 1 (")
        assert "micro-batches of 4 sequences do not fit into 0.0005 GB: parameters " in str(
            outcome.error
        )
        assert " reserve 0.00 = " in str(outcome.error)  # of CUDA
    assert not (tmp_path / "run").exists()
    # What the estimate does not know, the user may; and what fits is trained.
    arguments += ["--gpu-memory-gb", "4"]
    assert values(run_world(2, on_devices_of, arguments, [short, short])) == [0, 0]
    assert (tmp_path / "run" / "export").exists()


def test_a_micro_batch_that_this_machine_cannot_hold_is_refused(data, tmp_path):
    config = write_config(tmp_path, 10**7, 10**7)
    arguments = command_line(data, tmp_path / "run", config, duration=10**7)
    [outcome] = run_world(1, pretraining, arguments)
    assert "micro-batches of 10000000 sequences do not fit into" in str(outcome.error)
    assert "set train_micro_batch_size_per_gpu to at most that" in str(outcome.error)


@pytest.mark.parametrize("gpus", [8, 16, 32, 64, 128, 200])
def test_more_gpus_never_need_more_memory_each(gpus):
    deepspeed = {**ACCUMULATED, "zero_optimization": {"stage": 1}}

    def total(ranks: int) -> int:
        plan: BatchPlan = plan_batches(4096, 512, ranks)
        options = dict(sequence_length=32, mask_probability=0.3)
        return memory.estimate(SMALL, deepspeed, plan, **options).total

    assert total(gpus) <= total(max(8, gpus // 2))
