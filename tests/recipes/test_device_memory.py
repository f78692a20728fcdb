"""The estimate against engines that were really built and tensors that autograd really kept."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_scenarios import build, command_line, run_world, values, write_config, write_data

from model.config import PRESETS
from model.parallel import initialize_parallel
from recipes import device_memory as memory
from recipes import engine
from recipes.cli import UserError
from recipes.device_memory import MemoryEstimate
from recipes.engine import BatchPlan, plan_batches

ROOT = Path(__file__).resolve().parents[2]
BF16 = {"bf16": {"enabled": True}}
ACCUMULATED = {**BF16, "data_types": {"grad_accum_dtype": "fp32"}}
SMALL = replace(PRESETS["rapidbert-tiny"], vocab_size=512)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


def test_activations_of_a_deep_model_and_a_large_batch_are_those_counted(monkeypatch):
    """Four layers and eight sequences, counted whole, against one and two layers, two sequences."""
    for dtype in (torch.float32, torch.bfloat16):
        for preset in ("rapidbert-tiny", "bert-tiny"):
            config = replace(PRESETS[preset], vocab_size=512, num_layers=4)
            each = memory.activation_bytes(config, dtype, 64, 0.3)
            whole = memory.kept_bytes(config, dtype, 8, 64, 0.3, "sdpa")
            assert 8 * each == pytest.approx(whole, rel=0.02)


def test_activations_of_the_triton_kernels_are_those_of_the_formula():
    """What autograd keeps when the kernels really run, in the interpreter."""
    initialize_parallel()
    sizes = dict(vocab_size=128, num_layers=2, hidden_size=64, num_heads=1, ffn_size=128)
    config = replace(PRESETS["rapidbert-base"], **sizes)
    for dtype, length in ((torch.float32, 48), (torch.bfloat16, 136)):
        formula = memory.triton_activation_bytes(config, dtype, length, 0.3)
        kept = memory.kept_bytes(config, dtype, 2, length, 0.3, "triton", "triton")
        assert 2 * formula == pytest.approx(kept, rel=0.04)
        again = memory.triton_activation_bytes(config, dtype, length, 0.3, recompute=True)
        assert again < formula


def test_activations_grow_with_width_and_shrink_with_precision():
    """Twice the width keeps about twice the bytes; bf16 keeps about half of fp32."""
    wide = replace(SMALL, hidden_size=384, num_heads=6, ffn_size=2 * SMALL.ffn_size)
    small, large = (memory.activation_bytes(c, torch.float32, 64, 0.3) for c in (SMALL, wide))
    half = memory.activation_bytes(SMALL, torch.bfloat16, 64, 0.3)
    assert 1.6 < large / small < 2.05
    assert 0.45 < half / small < 0.75


def states(arguments: list[str]) -> tuple[int, int, int]:
    """Bytes of the tensors that a real engine holds: weights, gradients, optimizer."""
    settings, world, trainer = build(arguments)
    weights = sum(p.numel() * p.element_size() for p in trainer.module.parameters())
    optimizer = trainer.optimizer
    gradients = 0
    if hasattr(optimizer, "fp32_groups_gradients_flat"):  # BF16_Optimizer, fp32 accumulation
        gradients = sum(t.nbytes for t in optimizer.fp32_groups_gradients_flat)
    inner = getattr(optimizer, "optimizer", optimizer)
    from recipes import optimizer_state

    list(optimizer_state.pieces(trainer, world))  # makes the moments
    moments = sum(
        tensor.nbytes
        for state in inner.state.values()
        for tensor in state.values()
        if tensor.dim() > 0
    )
    held = {p.data_ptr(): p.nbytes for g in inner.param_groups for p in g["params"]}
    own = {p.data_ptr() for p in trainer.module.parameters()}
    masters = sum(size for pointer, size in held.items() if pointer not in own)
    engine.shut_down()
    return weights, gradients, moments + masters


@pytest.mark.parametrize(
    ("ranks", "stage", "keys"), [(2, 0, {}), (2, 1, {}), (2, 1, BF16), (4, 1, ACCUMULATED)]
)
def test_states_are_those_of_a_real_engine(data, tmp_path, ranks, stage, keys):
    config = write_config(tmp_path, 8, 2, stage, **keys)
    arguments = command_line(data, tmp_path / "run", config, model="rapidbert-tiny", duration=8)
    weights, gradients, optimizer = values(run_world(ranks, states, arguments))[0]
    parameters = weights // (2 if keys else 4)
    deepspeed = {**keys, "zero_optimization": {"stage": stage}}
    found = memory.state_bytes(parameters, deepspeed, ranks)
    assert found[0] == weights
    assert found[2] == pytest.approx(optimizer, rel=0.01)
    if keys is ACCUMULATED:
        assert found[1] == pytest.approx(gradients + 2 * parameters, rel=0.01)


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
    with pytest.raises(UserError, match=r"do not fit into 40 GB.*= 65.0 GB.*; 298 sequences fit"):
        memory.check_fit(needed, 512, 40)  # (40 - 5) / 60 * 512 = 298.7
    with pytest.raises(UserError, match="not even one sequence fits"):
        memory.check_fit(needed, 512, 4)


def dry_run(data: Path, size: str, gpus: int, *more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "recipes/pretrain.py", "--dry-run", "--gpus", str(gpus)]
    command += ["--model", f"rapidbert-{size}", "--data", str(data), "--output", "none"]
    command += ["--deepspeed_config", f"ds_configs/{size}.json", *map(str, more)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_a_dry_run_for_200_gpus_shows_what_each_would_hold(data, size):
    shown = dry_run(data, size, 200)
    assert shown.returncode == 0, shown.stderr
    assert "nodes: 25 nodes x 8 GPUs" in shown.stdout
    assert "4000 = 20 sequences x 1 micro-batches x 200 ranks (rounded from 4096" in shown.stdout
    assert "duration: 71,680 steps, 286,720,000 sequences" in shown.stdout  # 70,000 x 4,096 / 4,000
    assert " GB per GPU (estimate)" in shown.stdout


@pytest.mark.slow
def test_a_dry_run_refuses_what_cannot_fit(data):
    refused = dry_run(data, "large", 8, "--gpu-memory-gb", 16)
    assert refused.returncode == 2
    assert "micro-batches of 256 sequences do not fit into 16 GB" in refused.stderr


@pytest.mark.parametrize("gpus", [8, 16, 32, 64, 128, 200])
def test_more_gpus_never_need_more_memory_each(gpus):
    deepspeed = {**ACCUMULATED, "zero_optimization": {"stage": 1}}

    def total(ranks: int) -> int:
        plan: BatchPlan = plan_batches(4096, 512, ranks)
        options = dict(sequence_length=32, mask_probability=0.3)
        return memory.estimate(SMALL, deepspeed, plan, **options).total

    assert total(gpus) <= total(max(8, gpus // 2))
