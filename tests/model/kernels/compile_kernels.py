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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from model.kernels import norm_dropout, residual_norm
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
        once = signature(self, bound_arguments(self, arguments, options), options)
        if once in seen:
            return
        seen.add(once)
        self.device_caches.clear()  # they are by device, whatever its capability
        compiled = plain_run(self, *arguments, grid=grid, warmup=True, **options)
        found.append(code_of(self.fn.__name__, compiled, capability))

    driver.set_active(NoDriver(capability))
    with launches_go_to(compile_only):
        yield found


@contextmanager
def launches_go_to(run: Callable[..., None]) -> Iterator[None]:
    """Have `run` take every launch of a kernel, as from a model on an H100."""
    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(residual_norm, "multiprocessors", lambda _: 132),
        mock.patch.object(norm_dropout, "multiprocessors", lambda _: 132),
    ):
        yield


def signatures() -> set[str]:
    """Of all kernels that are compiled here."""
    found: set[str] = set()

    def look(self, *arguments, grid, warmup, **options) -> None:
        found.add(signature(self, bound_arguments(self, arguments, options), options))

    with launches_go_to(look):
        launch_all()
    return found


def bound_arguments(
    kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> dict[str, Any]:
    """The values of a launch by the names of the kernel's arguments."""
    bound = dict(zip(kernel.arg_names, arguments, strict=False))
    return bound | {key: value for key, value in options.items() if key in kernel.arg_names}


_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_TYPES |= {torch.int16: "i16", torch.int32: "i32", torch.int64: "i64"}


def signature(kernel: Any, bound: dict[str, Any], options: dict[str, Any]) -> str:
    """Write what Triton compiles a kernel apart for: types, what is constant, and options."""
    parts = []
    for parameter in kernel.params:
        value = bound[parameter.name]
        special = not parameter.do_not_specialize
        if parameter.is_constexpr:
            text = str(value)
        elif isinstance(value, torch.Tensor):
            text = f"*{_TYPES.get(value.dtype, value.dtype)}"
        elif isinstance(value, int):
            text = "1" if value == 1 and special else "i32"
            text += " by 16" if value % 16 == 0 and special else ""
        else:
            text = "None" if value is None else "fp32"
        parts.append(f"{parameter.name}={text}")
    rest = {key: value for key, value in options.items() if key not in bound}
    parts += [f"{key}={value}" for key, value in sorted(rest.items())]
    return f"{kernel.fn.__name__}({', '.join(parts)})"


def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=True)


TOKENS, SEQUENCES = 4096, 32
"""Multiples of 16, as in training: Triton compiles other numbers apart."""


def attend(
    max_length: int, heads: int = 12, *, alibi: bool = True, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Attention and its gradient."""
    offsets = torch.empty(SEQUENCES + 1, dtype=torch.int32, device="meta")
    slopes = torch.ones(heads, device="meta") if alibi else None
    qkv, bias = leaf(TOKENS, heads, 3, 64, dtype=dtype), leaf(heads * 3 * 64, dtype=dtype)
    attention(qkv, offsets, slopes, max_length, bias).sum().backward()


def norm(width: int, dropout: float, *, both: bool = True) -> None:
    """A residual sum with its norm, and the gradient; of the last layer one output is used."""
    keys = torch.empty(TOKENS, dtype=torch.long, device="meta")
    layer = nn.LayerNorm(width, dtype=torch.bfloat16, device="meta")
    x, residual = leaf(TOKENS, 1, width), leaf(TOKENS, 1, width)
    one, two = ops.residual_norm(x, leaf(width), residual, layer, dropout, keys, 1, "triton")
    (one + two if both else one).sum().backward()


def around(width: int, inner: int) -> None:
    """The other operations between the matmuls, and their gradients."""
    keys = torch.empty(TOKENS, dtype=torch.long, device="meta")
    ops.gated_gelu(leaf(TOKENS, 1, 2 * inner), 0.1, keys, 1, 0, "triton").sum().backward()
    ops.dropout(leaf(TOKENS, width), 0.1, keys, 0, "triton").sum().backward()
    layer = nn.LayerNorm(width, dtype=torch.bfloat16, device="meta")
    for bias in (leaf(width), None):  # BERT adds its own before the positions
        ops.norm_dropout(leaf(TOKENS, width), bias, layer, 0.1, keys, 0, "triton").sum().backward()


def launch_all() -> None:
    """Launch each kernel that a GPU is to take."""
    for max_length in (32, 64, 128, 256):
        attend(max_length)
    for max_length in (128, 256):
        attend(max_length, alibi=False)
        attend(max_length, dtype=torch.float32)
    for width, heads, inner in SIZES:
        attend(128, heads)
        around(width, inner)
        norm(width, 0.1)
        norm(width, 0.0)
        norm(width, 0.0, both=False)
        if width < SIZES[-1][0]:  # BERT, which drops there, too
            norm(width, 0.1, both=False)
    labels = torch.empty(TOKENS, dtype=torch.long, device="meta")
    ops.cross_entropy(leaf(TOKENS, 30528), labels, -100, "triton").backward()
    real = torch.empty((), dtype=torch.int32, device="meta")
    for dtype in (torch.bfloat16, torch.float32):
        for rows in (512, 30528, 40960):  # 40,960 ids do not fit 16 bits
            table = leaf(rows, 768, dtype=dtype)
            ops.embedding(table, labels, real, "triton").sum().backward()


def main() -> None:
    with compiling(int(sys.argv[1])) as found:
        launch_all()
    for code in found:
        print(json.dumps(asdict(code)), flush=True)


if __name__ == "__main__":
    main()
