"""The choice of kernels, a whole model with each, and that a GPU's compiler takes them all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import triton
from exact import GPU, KERNELS
from torch import Tensor

from model import kernels
from model.config import ModelOptions, preset
from model.kernels import (
    attention_short,
    attention_tiled,
    column_sums,
    cross_entropy,
    dropout,
    embedding,
    gated_gelu,
    norm_dropout,
    residual_norm,
)
from model.masked_lm import RapidBertForMaskedLM

ATTENTION = (attention_short, attention_tiled)
AROUND = (column_sums, cross_entropy, dropout, embedding, gated_gelu, norm_dropout, residual_norm)


def launched(*modules: ModuleType) -> set[str]:
    """Names of the kernels in these files; what kernels call is named otherwise."""
    return {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, triton.runtime.KernelInterface)
        if re.fullmatch(
            r"_dropout|_column_sums|_(forward|backward)_.*|_.*_(forward|backward)", name
        )
    }


def test_what_cannot_run_is_named(monkeypatch):
    with pytest.raises(ValueError, match="unknown kernels 'fast'; known: torch, compile, triton"):
        kernels.check_kernels("fast", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernels.check_kernels("triton", "cpu")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="'triton': they need a GPU .*; use 'torch' or 'compile'"):
        kernels.check_kernels("triton", "cpu")
    assert kernels.best_kernels("cpu") == "torch" and kernels.best_kernels("cuda") == "triton"


@pytest.mark.gpu
@pytest.mark.parametrize("fast", [name for name in KERNELS if name != "torch"])
def test_a_model_trains_with_each_as_with_plain_pytorch(fast, on_device):
    """On a GPU at Base's widths. In fp32 a whole model's rounding adds up to less than 1e-4."""
    toy = dict(hidden_size=48, num_heads=3, ffn_size=64, vocab_size=128)
    config = preset("rapidbert-base", num_layers=2, **({} if GPU else toy))
    lengths = [128, 1, 127, 77] if GPU else [7, 1, 12, 4]
    tokens = sum(lengths)
    positions = torch.arange(0, tokens, 3)

    def train(options: ModelOptions) -> list[Tensor]:
        torch.manual_seed(0)
        model = RapidBertForMaskedLM(config, options).to("cuda" if GPU else "cpu").train()
        loss = model(
            torch.arange(tokens) * 7 % config.vocab_size,
            torch.tensor([0, *lengths]).cumsum(0).int(),
            max(lengths),
            positions,
            positions % config.vocab_size,
            sequence_keys=torch.arange(len(lengths)) * 2**40,
        )
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return [loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])]

    plain = train(ModelOptions("reference", "torch"))
    found = train(ModelOptions("triton" if fast == "triton" else "sdpa", fast))
    for ours, theirs in zip(found, plain, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


# Shared memory that a block may have (CUDA programming guide, compute capabilities).
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Bytes of a thread's registers that go to memory and back: some do in the backward pass of
# attention.
SPILLED_BYTES = 450
# Instructions for each column of a row: of more, the kernel would wait for arithmetic rather than
# for memory. 1,024 columns are 8 for each of the 128 threads.
GLU_INSTRUCTIONS = {"_gated_gelu_forward": 42, "_gated_gelu_backward": 48}
# Of a thread that reads 16 logits of the vocabulary: 13 for each, where memory takes as long as 14
# (2 bytes at 4.3 TB/s, 132 multiprocessors at 1.755 GHz); and none waits for other threads.
CROSS_ENTROPY_INSTRUCTIONS = 16 * 13
# Of all warps of a program that computes the gradients of one head of 128 tokens.
ATTENTION_INSTRUCTIONS, ATTENTION_BARRIERS = {80: 26_000, 90: 21_000, 100: 29_000}, 100


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_kernels_compile_for_gpus(capability):
    """The interpreter takes more than the compiler does. No A100, H100 or B200 need be here."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[3])}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(script), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = list(map(json.loads, done.stdout.splitlines()))
    named = {code["name"] for code in found}
    assert named == launched(*ATTENTION, *AROUND) and len(named) == 17
    for code in found:
        assert code["shared_bytes"] <= SHARED_BYTES[capability], code
        assert code["spilled_bytes"] <= SPILLED_BYTES, code
        multiplying = {"_embedding_backward", *launched(*ATTENTION)}
        multiplies = code["name"] in multiplying and code["first"] == "*bf16"
        assert code["tensor_cores"] == multiplies, code
        if code["name"] in GLU_INSTRUCTIONS:
            assert code["instructions"] <= 8 * GLU_INSTRUCTIONS[code["name"]], code
        if code["name"] == "_cross_entropy_forward":
            assert code["loop_instructions"] <= CROSS_ENTROPY_INSTRUCTIONS, code
            assert not code["loop_barriers"], code
        if code["name"] == "_backward_whole":
            instructions = code["instructions"] * code["warps"]
            assert instructions <= ATTENTION_INSTRUCTIONS[capability], code
            assert code["barriers"] <= ATTENTION_BARRIERS, code
