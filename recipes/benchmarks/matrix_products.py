"""The matrix products of a linear layer as training computes them, and other ways to compute them.

A layer y = x W^T of `rows` tokens has three: forward x W^T, the gradient of the input dy W (dgrad)
and the gradient of the weight dy^T x (wgrad).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from recipes.benchmarks.records import NotHere

PASSES = ("forward", "dgrad", "wgrad")
AS_TRAINED = "as trained"
CUBLASLT = "cuBLASLt"
FP8, FP8_WITH_CASTS = "fp8", "fp8 with casts"
PARTS = (2, 4)
"""Parts that the rows of a wgrad are split in, and summed over in fp32."""
PADDED_TO = 512
"""Rows are padded to a multiple of these, in one of the ways."""
MASKED_SHARE = 0.3
"""Of the rows are masked, and the vocabulary's layer sees only these."""
WEIGHTS_FP8, GRADIENTS_FP8 = torch.float8_e4m3fn, torch.float8_e5m2
TILE = (128, 256)
"""Rows and columns of a result that one multiprocessor computes at a time, as cuBLAS' fastest
kernels for bf16 on Hopper do; which kernel it takes is not asked."""

Way = Callable[[], Tensor]


@dataclass(frozen=True)
class Layer:
    """A linear layer's sizes, and how often a micro-batch goes through such a one."""

    name: str
    rows: int
    inputs: int
    outputs: int
    calls: int

    @property
    def flops(self) -> int:
        """FLOPs of one pass."""
        return 2 * self.rows * self.inputs * self.outputs

    def result_shape(self, which: str) -> tuple[int, int]:
        """Rows and columns of what a pass gives."""
        shapes = {
            "forward": (self.rows, self.outputs),
            "dgrad": (self.rows, self.inputs),
            "wgrad": (self.outputs, self.inputs),
        }
        return shapes[which]


def layers(model: ModelConfig, rows: int) -> list[Layer]:
    """List the layers of a model with a gated feed-forward, the most costly first.

    The last layer computes only the masked rows behind its attention; that is left out.
    """
    h, f, deep = model.hidden_size, model.ffn_size, model.num_layers
    masked = max(1, round(MASKED_SHARE * rows / 128)) * 128
    return [
        Layer("glu_in", rows, h, 2 * f, deep - 1),
        Layer("glu_out", rows, f, h, deep - 1),
        Layer("qkv", rows, h, 3 * h, deep),
        Layer("projection", rows, h, h, deep - 1),
        Layer("vocabulary", masked, h, model.padded_vocab_size, 1),
    ]


@dataclass(frozen=True)
class Waves:
    """How the tiles of a result fall on the multiprocessors."""

    tiles: int
    waves: float
    """Tiles for each multiprocessor; the last wave is as long as a whole one."""
    efficiency: float
    """Of the multiprocessors' time in which they have a tile."""


def wave_arithmetic(rows: int, columns: int, multiprocessors: int) -> Waves:
    """Count the tiles of a result, laid in the direction that needs fewer of them."""
    tiles = min(-(-rows // a) * -(-columns // b) for a, b in (TILE, TILE[::-1]))
    whole_waves = -(-tiles // multiprocessors)
    return Waves(tiles, tiles / multiprocessors, tiles / (whole_waves * multiprocessors))


@dataclass(frozen=True)
class Operands:
    """What the three passes of a layer multiply."""

    x: Tensor
    """[rows, inputs]."""
    weight: Tensor
    """[outputs, inputs]."""
    dy: Tensor
    """[rows, outputs]."""

    @classmethod
    def random(cls, layer: Layer, device: torch.device, dtype: torch.dtype) -> Operands:
        shapes = (
            (layer.rows, layer.inputs),
            (layer.outputs, layer.inputs),
            (layer.rows, layer.outputs),
        )
        return cls(*(torch.randn(shape, device=device, dtype=dtype) for shape in shapes))

    def product(self, which: str) -> Tensor:
        """Compute a pass as autograd does for `torch.nn.functional.linear`."""
        if which == "forward":
            return F.linear(self.x, self.weight)
        return self.dy @ self.weight if which == "dgrad" else self.dy.t() @ self.x


def ways(which: str, operands: Operands, *, cublaslt: bool) -> dict[str, Way]:
    """List the ways to compute a pass but fp8; the first is that of training."""
    found: dict[str, Way] = {AS_TRAINED: lambda: operands.product(which)}
    if cublaslt:
        found[CUBLASLT] = lambda: _by_cublaslt(lambda: operands.product(which))
    rows = operands.x.shape[0]
    if rows % PADDED_TO:
        found[f"rows padded to {-(-rows // PADDED_TO) * PADDED_TO:,}"] = padded(which, operands)
    if which == "wgrad":
        for parts in PARTS:
            if rows % parts == 0:
                found[f"rows in {parts} parts"] = functools.partial(split_wgrad, operands, parts)
    return found


def fp8_ways(which: str, operands: Operands) -> dict[str, Way]:
    """List fp8 beside training's way, the first; the casts are compiled when they are listed."""
    pair = fp8_pair(which, operands)
    return {
        AS_TRAINED: lambda: operands.product(which),
        FP8: lambda: fp8_product(*pair),
        FP8_WITH_CASTS: lambda: fp8_product(*fp8_pair(which, operands)),
    }


def _by_cublaslt(work: Way) -> Tensor:
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library("cublaslt")
    try:
        return work()
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def padded(which: str, operands: Operands) -> Way:
    """Give the way with rows of zeros behind, which a batch could as well bring along."""
    rows = operands.x.shape[0]
    more = -rows % PADDED_TO
    x, dy = (F.pad(tensor, (0, 0, 0, more)) for tensor in (operands.x, operands.dy))
    longer = Operands(x, operands.weight, dy)
    if which == "wgrad":
        return lambda: longer.product(which)
    return lambda: longer.product(which)[:rows]


def split_wgrad(operands: Operands, parts: int) -> Tensor:
    """Compute the weight's gradient of each part of the rows, and their sum in fp32."""
    # Each [rows, N] to [parts, rows of a part, N].
    dy, x = (tensor.view(parts, -1, tensor.shape[1]) for tensor in (operands.dy, operands.x))
    if x.is_cuda:  # the only device with a result of another type
        sums = torch.bmm(dy.transpose(1, 2), x, out_dtype=torch.float32)
    else:
        sums = torch.bmm(dy.transpose(1, 2), x).float()
    return sums.sum(0).to(x.dtype)


def check_fp8(what: str, device: torch.device) -> None:
    """Raise NotHere where fp8 is not computed by tensor cores."""
    if device.type != "cuda":
        raise NotHere("the CPU's matrix products in fp8 are not timed")
    if torch.cuda.get_device_capability(device) < (8, 9):
        raise NotHere("tensor cores have fp8 from compute capability 8.9 on")


def fp8_pair(which: str, operands: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cast what a pass multiplies, each with one scale for all of it.

    Weights and activations as e4m3, gradients as e5m2.

    Returns:
        left [M, K], right [N, K], both contiguous, as tensor cores want them, and their scales.
    """
    cast = _compiled_cast() if operands.x.is_cuda else _cast
    x, weight, dy = operands.x, operands.weight, operands.dy
    left, kind, right = {
        "forward": (x, WEIGHTS_FP8, weight),
        "dgrad": (dy, GRADIENTS_FP8, weight.t()),
        "wgrad": (dy.t(), GRADIENTS_FP8, x.t()),
    }[which]
    (a, scale_a), (b, scale_b) = cast(left, kind), cast(right, WEIGHTS_FP8)
    return a, b, scale_a, scale_b


def fp8_product(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    """Multiply a pair of `fp8_pair`: [M, N] in bf16."""
    return torch._scaled_mm(a, b.t(), scale_a, scale_b, out_dtype=torch.bfloat16)


def _cast(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    largest = torch.finfo(dtype).max
    scale = (tensor.abs().amax().float() / largest).clamp(min=1e-12)
    scaled = (tensor.float() / scale).clamp(-largest, largest)
    return scaled.to(dtype, memory_format=torch.contiguous_format), scale


@functools.cache
def _compiled_cast() -> Any:
    # One pass for the largest value and one for the cast, as a training step in fp8 would have. Of
    # each layer, pass and operand a graph: past the default limit of 8 they would run uncompiled.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(_cast, dynamic=False)
