"""Compiles every kernel for a GPU that need not be there, called as the model calls it.

    python tests/model/kernels/compile_kernels.py 90

prints a line of JSON for each: name, shared memory of a block in bytes, registers of a thread and
bytes of them that are spilled, whether it uses tensor cores.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile

import torch
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from model.kernels import operations as ops
from model.kernels.attention import attention


class NoDriver:
    """Names the GPU to compile for; nothing is launched."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(sys.argv[1]), 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


plain_run = JITFunction.run


def resources(ptx: str) -> tuple[int, int]:
    """Registers of a thread, and bytes that it stores for want of more, as ptxas counts them."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = re.findall(r"\.target (\w+)", ptx)[0]
        ptxas = get_ptxas(int(sys.argv[1])).path
        command = [ptxas, "-v", f"--gpu-name={target}", file.name, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.findall(r"Used (\d+) registers", said)
    spilled = re.findall(r"(\d+) bytes spill stores", said)
    return int(registers[0]), int(spilled[0])


def compile_only(self, *arguments, grid, warmup, **options) -> None:
    compiled = plain_run(self, *arguments, grid=grid, warmup=True, **options)
    registers, spilled = resources(compiled.asm["ptx"])
    facts = {
        "name": self.fn.__name__,
        "shared_bytes": compiled.metadata.shared,
        "registers": registers,
        "spilled_bytes": spilled,
        "tensor_cores": "mma" in compiled.asm["ptx"],
    }
    print(json.dumps(facts), flush=True)


def main() -> None:
    driver.set_active(NoDriver())
    JITFunction.run = compile_only  # type: ignore[method-assign]
    tokens, heads, width = 64, 12, 768
    keys = torch.zeros(tokens, dtype=torch.long)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=torch.bfloat16, requires_grad=True)

    offsets = torch.tensor([0, tokens], dtype=torch.int32)
    for max_length in (128, 256):
        for slopes in (torch.ones(heads), None):
            context = attention(leaf(tokens, heads, 3, 64), offsets, slopes, max_length)
            context.sum().backward()
    norm = nn.LayerNorm(width, dtype=torch.bfloat16)
    x, residual = leaf(tokens, 1, width), leaf(tokens, 1, width)
    for dropout in (0.0, 0.1):
        one, two = ops.residual_norm(x, leaf(width), residual, norm, dropout, keys, 1, "triton")
        (one + two).sum().backward()
        ops.gated_gelu(leaf(tokens, 1, 6144), dropout, keys, 1, 0, "triton").sum().backward()
    ops.dropout(x, 0.1, keys, 0, "triton")
    labels = torch.zeros(tokens, dtype=torch.long)
    ops.cross_entropy(leaf(tokens, 30528), labels, -100, "triton").backward()


if __name__ == "__main__":
    main()
