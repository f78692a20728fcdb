"""How long one GPU takes for a micro-batch: a curve over the micro-batch's size.

Where `benchmark.py throughput` has measured this GPU, the curve runs through what it measured.
Where it has not, the curve is tabulated: matrix products at a share of the data sheet's peak, all
other passes at a share of its memory bandwidth, and two things that make small micro-batches less
efficient (appendix C). The last wave of a matrix product's tiles fills half of the multiprocessors
on average; and the host needs its time to launch the kernels, whatever their size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from model.config import ModelConfig, preset, training_flops
from recipes.common.gpus import Gpu
from recipes.common.places import RESULTS

COUNTED = RESULTS / "step_counted.json"
TILE = 128 * 256
"""Values of an output tile of a large matrix product."""
ACCUMULATION_BYTES = 10
"""Moved per parameter and micro-batch: a bf16 gradient is read, its fp32 sum read and written."""


@dataclass(frozen=True)
class Rates:
    """How near to the data sheets a run comes, and what it pays beside."""

    matmul_share: float
    """Of the peak, in matrix products that fill the GPU."""
    memory_share: float
    """Of the memory bandwidth, in all other kernels."""
    launch_seconds: float
    """Time that the host needs to launch a kernel, with the Python around it."""
    update_seconds: float
    """Of each step, whatever its size: the host's part of the update, and waiting for the norm."""
    link_share: float
    """Of NVLink and of the network, in large collectives."""
    waiting_seconds: float
    """Mean delay of a node in a step; each step waits for the slowest node."""


@dataclass(frozen=True)
class Work:
    """What a micro-batch asks of a GPU, forward and backward."""

    sequence_flops: float
    """Of the matrix products, for a sequence."""
    sequence_bytes: float
    """Read and written by all other kernels, for a sequence."""
    micro_batch_bytes: float
    """The same for a micro-batch, whatever its size."""
    half_waves: float
    """Sum over the matrix products of half the products' inner width: times 2 x `TILE` x
    multiprocessors, the FLOPs that the unfilled last waves could have done."""
    launches: float
    """Kernels, as counted (`launches`)."""


def work(
    model: ModelConfig,
    sequence_length: int,
    mask_probability: float,
    *,
    recompute: bool = False,
    token_bytes: float | None = None,
) -> Work:
    """Count what full sequences ask of a GPU.

    Args:
        recompute: whether layers are computed twice.
        token_bytes: moved per token by other kernels; what ours move if not given.
    """
    n, h, f = sequence_length, model.hidden_size, model.ffn_size
    gated = model.feed_forward != "standard"
    flops = training_flops(
        model, tokens=n, masked_tokens=round(mask_probability * n), token_pairs=n * n
    )
    # Values of 2 bytes read and written per token, forward and backward, as the rehearsal counts
    # them for RapidBERT; BERT is taken to be alike. A layer: attention 11 widths, the two residual
    # sums with their norms 18, the activation 8 inner widths; the last layer does all but attention
    # for the tokens to predict alone. Embedding and head: 19 widths, and the logits of a token to
    # predict 4 times.
    behind_attention = model.num_layers - 1 + mask_probability
    values = model.num_layers * 11 * h + behind_attention * (18 * h + 8 * f)
    values += 19 * h + mask_probability * 4 * model.padded_vocab_size
    # Inner widths of a layer's products with the weights whose number of tiles grows with the
    # micro-batch: QKV, projection, into and out of the feed-forward; then their input gradients.
    up = 2 * f if gated else f
    inner = (h + h + h + f) + (3 * h + h + up + h)
    again = 4 / 3 if recompute else 1.0
    return Work(
        sequence_flops=flops * again,
        sequence_bytes=n * (2 * values * again if token_bytes is None else token_bytes),
        micro_batch_bytes=0 if token_bytes is not None else ACCUMULATION_BYTES * model.parameters(),
        half_waves=model.num_layers * inner / 2,
        launches=launches(model) * again,
    )


@cache
def launches(model: ModelConfig) -> float:
    """Return how many kernels forward and backward pass of a micro-batch launch.

    They were counted for two depths of each kind of layer (tests/rehearsal/rehearse.py); other
    depths lie on a straight line with them.
    """
    counted: dict[int, float] = {}
    for row in json.loads(COUNTED.read_bytes())["rows"]:
        other = preset(row["model"])
        kind = (model.feed_forward, model.positions)
        if kind == (other.feed_forward, other.positions):
            parts = row["per_micro_batch"].values()
            counted[other.num_layers] = sum(part["launches"] for part in parts)
    least, most = min(counted), max(counted)
    each = (counted[most] - counted[least]) / (most - least)
    return counted[least] + (model.num_layers - least) * each


class Curve(Protocol):
    """Seconds that a GPU takes for a micro-batch of so many sequences."""

    def seconds(self, sequences: int) -> float:
        """Return the time of forward and backward pass."""
        ...

    def is_measured(self, sequences: int) -> bool:
        """Say whether this size lies within what was measured."""
        ...


def memory_bandwidth(gpu: Gpu, rates: Rates) -> float:
    """Return the bytes/s that kernels other than matrix products reach."""
    assert gpu.memory_gb_per_s
    return gpu.memory_gb_per_s * 1e9 * rates.memory_share


@dataclass(frozen=True)
class TabulatedCurve:
    """Predicted from data sheets."""

    work: Work
    gpu: Gpu
    rates: Rates

    def device_seconds(self, sequences: int) -> float:
        """Return the time of the GPU alone."""
        assert self.gpu.multiprocessors
        flops = sequences * self.work.sequence_flops
        flops += self.work.half_waves * 2 * TILE * self.gpu.multiprocessors
        moved = sequences * self.work.sequence_bytes + self.work.micro_batch_bytes
        computing = flops / (self.gpu.peak_bf16_tflops * 1e12 * self.rates.matmul_share)
        return computing + moved / memory_bandwidth(self.gpu, self.rates)

    def host_seconds(self) -> float:
        """Return the time that the host takes to launch it all."""
        return self.rates.launch_seconds * self.work.launches

    def seconds(self, sequences: int) -> float:
        """Return the longer of both: host and GPU work side by side."""
        return max(self.device_seconds(sequences), self.host_seconds())

    def is_measured(self, sequences: int) -> bool:
        """Say no: nothing of it is measured."""
        return False


@dataclass(frozen=True)
class MeasuredCurve:
    """Through measured points, straight between them.

    Beyond the largest one a sequence costs what it cost there. Below the smallest one the time goes
    down no further: what is left is mostly the host's.
    """

    points: tuple[tuple[int, float], ...]
    """Sequences of a micro-batch and its seconds, by size."""

    def seconds(self, sequences: int) -> float:
        """Return the time of a micro-batch."""
        sizes = [size for size, _ in self.points]
        if sequences <= sizes[0]:
            return self.points[0][1]
        if sequences >= sizes[-1]:
            return self.points[-1][1] * sequences / sizes[-1]
        above = next(place for place, size in enumerate(sizes) if size >= sequences)
        (left, low), (right, high) = self.points[above - 1 : above + 1]
        return low + (high - low) * (sequences - left) / (right - left)

    def is_measured(self, sequences: int) -> bool:
        """Say whether it lies between the smallest and the largest point."""
        return self.points[0][0] <= sequences <= self.points[-1][0]
