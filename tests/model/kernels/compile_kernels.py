"""Compiles every kernel for a GPU that need not be there, called as the model calls it.

    PYTHONPATH=. python tests/model/kernels/compile_kernels.py 90

prints a line of JSON for each: name, shared memory of a block in bytes, registers of a thread and
bytes of them that are spilled, instructions of a warp in the whole code and in its largest loop and
how many of them wait at a barrier, whether it uses tensor cores.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from model.kernels import operations as ops
from model.kernels.attention import attention

SIZES = ((768, 12, 3072), (1024, 16, 4096), (1792, 28, 7168))
"""Width, heads and inner width of Base, Large and XL."""


class NoDriver:
    """Names the GPU to compile for; nothing is launched."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass
class Code:
    """A kernel as it would run on the GPU."""

    name: str
    first: str
    """Type of the first argument, *bf16 for a tensor in it."""
    warps: int
    shared_bytes: int
    registers: int
    spilled_bytes: int
    tensor_cores: bool
    instructions: int
    barriers: int
    loop_instructions: int
    """In the largest loop; 0 where there is none."""
    loop_barriers: int


def code_of(name: str, compiled: Any, capability: int) -> Code:
    """Assemble a kernel that Triton has compiled, and count what it is made of."""
    tool = Path(get_ptxas(capability).path)
    ptx = compiled.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        text, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        text.write_text(ptx)
        target = re.findall(r"\.target (\w+)", ptx)[0]
        said = _run(tool, "-v", f"--gpu-name={target}", text, "-o", cubin).stderr
        listing = _run(tool.with_name("cuobjdump"), "-sass", cubin).stdout
    found = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", listing)
    instructions = [(int(at, 16), what) for at, what in found if "NOP" not in what]
    loop = _largest_loop(instructions)
    return Code(
        name=name,
        first=next(iter(compiled.src.signature.values())),
        warps=compiled.metadata.num_warps,
        shared_bytes=compiled.metadata.shared,
        registers=int(re.findall(r"Used (\d+) registers", said)[0]),
        spilled_bytes=int(re.findall(r"(\d+) bytes spill stores", said)[0]),
        tensor_cores="mma" in ptx,
        instructions=len(instructions),
        barriers=_barriers(instructions),
        loop_instructions=len(loop),
        loop_barriers=_barriers(loop),
    )


def _run(*command: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)


def _barriers(instructions: list[tuple[int, str]]) -> int:
    return sum("BAR." in what for _, what in instructions)


def _largest_loop(instructions: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """From the target of a branch backwards to the branch."""
    number_of = {at: number for number, (at, _) in enumerate(instructions)}
    loops = [(0, 0)]
    for number, (at, what) in enumerate(instructions):
        target = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", what)
        begin = number_of.get(int(target[1], 16)) if target else None
        if begin is not None and instructions[begin][0] < at:
            loops.append((begin, number + 1))
    begin, end = max(loops, key=lambda loop: loop[1] - loop[0])
    return instructions[begin:end]


@contextmanager
def compiling(capability: int) -> Iterator[list[Code]]:
    """Have every launch compile its kernel only; the list fills with what came of it."""
    found: list[Code] = []
    seen: set[str] = set()
    plain_run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options) -> None:
        self.device_caches.clear()  # they are by device, whatever its capability
        compiled = plain_run(self, *arguments, grid=grid, warmup=True, **options)
        if compiled.asm["ptx"] not in seen:
            seen.add(compiled.asm["ptx"])
            found.append(code_of(self.fn.__name__, compiled, capability))

    driver.set_active(NoDriver(capability))
    JITFunction.run = compile_only  # type: ignore[method-assign]
    try:
        yield found
    finally:
        JITFunction.run = plain_run  # type: ignore[method-assign]


def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype, requires_grad=True)


def attend(
    max_length: int, heads: int = 12, *, alibi: bool = True, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Attention and its gradient."""
    tokens = 64
    offsets = torch.tensor([0, tokens], dtype=torch.int32)
    slopes = torch.ones(heads) if alibi else None
    qkv, bias = leaf(tokens, heads, 3, 64, dtype=dtype), leaf(heads * 3 * 64, dtype=dtype)
    attention(qkv, offsets, slopes, max_length, bias).sum().backward()


def around(width: int, inner: int, dropout: float) -> None:
    """The operations between the matmuls, and their gradients."""
    tokens = 64
    keys = torch.zeros(tokens, dtype=torch.long)
    norm = nn.LayerNorm(width, dtype=torch.bfloat16)
    x, residual = leaf(tokens, 1, width), leaf(tokens, 1, width)
    one, two = ops.residual_norm(x, leaf(width), residual, norm, dropout, keys, 1, "triton")
    (one + two).sum().backward()
    ops.gated_gelu(leaf(tokens, 1, 2 * inner), dropout, keys, 1, 0, "triton").sum().backward()
    for bias in (leaf(width), None):
        ops.norm_dropout(x, bias, norm, dropout, keys, 0, "triton").sum().backward()
    ops.dropout(x, 0.1, keys, 0, "triton")


def main() -> None:
    with compiling(int(sys.argv[1])) as found:
        for max_length in (32, 64, 128, 256):
            attend(max_length)
        for max_length in (128, 256):
            attend(max_length, alibi=False)
            attend(max_length, dtype=torch.float32)
        for width, heads, inner in SIZES:
            attend(128, heads)
            around(width, inner, 0.1)
        around(*SIZES[0][::2], 0.0)
        labels = torch.zeros(64, dtype=torch.long)
        ops.cross_entropy(leaf(64, 30528), labels, -100, "triton").backward()
        real = torch.tensor(60, dtype=torch.int32)
        for dtype in (torch.bfloat16, torch.float32):
            for rows in (512, 30528, 40960):  # 40,960 ids do not fit 16 bits
                table = leaf(rows, 768, dtype=dtype)
                ops.embedding(table, labels, real, "triton").sum().backward()
    for code in found:
        print(json.dumps(asdict(code)), flush=True)


if __name__ == "__main__":
    main()
