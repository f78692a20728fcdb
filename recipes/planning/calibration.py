"""The numbers of the model that no data sheet has, from three rows of Table S2; two are held out.

The published code is eager PyTorch with data parallelism (DDP): fp32 gradients, reduced in buckets
of 25 MB beside the last backward pass. What it leaves to be found is physical:

- `matmul_share`: the share of the peak that matrix products reach,
- `published_token_bytes`: what all other kernels of the published code move per token. Eight
  A100-80 and eight A100-40 have the same multiprocessors and memory of another speed: from two
  times follow these two numbers,
- `waiting_seconds`: what of the step on 64 GPUs is left, as the mean delay of a node, for the
  slowest of which each step waits. It stands for everything that several nodes add beyond a ring at
  the links' speed: stragglers, the host's jitter, contention of other jobs.

Held out are 16 and 32 A100-40. Other forms were tried: a constant per step fits 16, 32 and 64 GPUs
within 1%, but misses 8 by 10%; a constant per micro-batch needs none of the memory's speed, but
misses 16 by 10%.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from model.config import preset
from recipes.planning.compute import Rates, TabulatedCurve, work
from recipes.planning.network import Collective, collective_seconds, fabric, waiting_seconds
from recipes.planning.published import (
    MASK_PROBABILITY,
    SEQUENCE_LENGTH,
    TABLE_S2,
    ScalingRow,
)

DDP_BUCKET_BYTES = 25 * 2**20
"""Of PyTorch's DistributedDataParallel."""
BACKWARD_SHARE = 2 / 3
"""Of a micro-batch's time."""
LINK_SHARE = 0.8
"""Of a link's speed that large collectives reach: NCCL's own table has 360 of Hopper's 450 GB/s.
That the network comes as near is assumed."""

# What Table S2 cannot say of our code. None of it was measured on a GPU.
MEMORY_SHARE = 0.65
"""Of the bandwidth, on the bytes that fused kernels need: from instructions and barriers of the
compiled kernels, 19 ms of a Base micro-batch of 512 on an H200."""
HOST_SECONDS_PER_LAYER = 2e-3
"""24 ms of a Base micro-batch on a slow core, once put for 819 launches. 473 were counted since
then, which would be 14 ms: an upper bound."""
UPDATE_SECONDS = 2e-3


@dataclass(frozen=True)
class Fit:
    """What Table S2 says."""

    matmul_share: float
    published_token_bytes: float
    waiting_seconds: float
    used: tuple[ScalingRow, ...]
    """Rows that the numbers are from."""
    held_out: tuple[ScalingRow, ...]

    def step_seconds(self, row: ScalingRow) -> float:
        """Return the time of the published code's step, by the model."""
        links = fabric(row.gpu, row.gpu.network_gbit_per_s or 0, LINK_SHARE)
        curve = _curve(row, self.matmul_share, self.published_token_bytes)
        micro_batch = curve.seconds(row.micro_batch)
        return (
            row.accumulation * micro_batch
            + _exposed_seconds(row, micro_batch)
            + waiting_seconds(self.waiting_seconds, links.nodes(row.gpus))
        )

    def error(self, row: ScalingRow) -> float:
        """Return by which share the model is slower than the table."""
        return self.step_seconds(row) / row.step_seconds - 1

    @property
    def residual(self) -> float:
        """Return the largest error, without its sign, on the rows held out."""
        return max(abs(self.error(row)) for row in self.held_out)


def _curve(row: ScalingRow, matmul_share: float, token_bytes: float) -> TabulatedCurve:
    asked = work(preset(row.model), SEQUENCE_LENGTH, MASK_PROBABILITY, token_bytes=token_bytes)
    # Bytes as the memory's full speed would move them: which share it reaches is in their number.
    return TabulatedCurve(asked, row.gpu, Rates(matmul_share, 1.0, 0.0, 0.0, LINK_SHARE, 0.0))


def _exposed_seconds(row: ScalingRow, micro_batch_seconds: float) -> float:
    """Return what DDP's reduction adds to a step: what the backward pass does not hide.

    The last bucket is full when the backward pass is over.
    """
    links = fabric(row.gpu, row.gpu.network_gbit_per_s or 0, LINK_SHARE)
    size = 4.0 * preset(row.model).parameters()
    buckets = -(-int(size) // DDP_BUCKET_BYTES)
    everything = collective_seconds(Collective("all-reduce", size, buckets), row.gpus, links)
    last = everything / buckets
    return max(last, everything - BACKWARD_SHARE * micro_batch_seconds)


@cache
def fit() -> Fit:
    """Solve for the three numbers, one after the other."""
    eight_80, eight_40, sixteen, thirty_two, sixty_four = (
        row for row in TABLE_S2 if row.model == "rapidbert-base"
    )
    # The time of a row on one node is linear in 1 / matmul_share and in the bytes per token.
    left, right = [], []
    for row in (eight_80, eight_40):
        matmul = row.accumulation * _curve(row, 1.0, 0.0).seconds(row.micro_batch)
        memory = row.accumulation * _curve(row, 1e30, 1.0).seconds(row.micro_batch)
        left.append((matmul, memory))
        right.append(row.step_seconds - _exposed_seconds(row, row.step_seconds / row.accumulation))
    (a, b), (c, d) = left
    determinant = a * d - b * c
    inverse = (right[0] * d - b * right[1]) / determinant
    token_bytes = (a * right[1] - right[0] * c) / determinant
    used, held_out = (eight_80, eight_40, sixty_four), (sixteen, thirty_two)
    alone = Fit(1 / inverse, token_bytes, 0.0, used, held_out)
    rest = sixty_four.step_seconds - alone.step_seconds(sixty_four)
    nodes = sixty_four.gpus // sixty_four.gpu.gpus_per_node
    return Fit(1 / inverse, token_bytes, rest / waiting_seconds(1.0, nodes), used, held_out)


@cache
def expected() -> Rates:
    """Return what predictions for our code stand on."""
    return Rates(
        fit().matmul_share,
        MEMORY_SHARE,
        HOST_SECONDS_PER_LAYER,
        UPDATE_SECONDS,
        LINK_SHARE,
        fit().waiting_seconds,
    )


@cache
def best() -> Rates:
    """Return the fast end of what is plausible: nothing waits, kernels near their limits."""
    return Rates(0.71, 0.80, HOST_SECONDS_PER_LAYER / 3, UPDATE_SECONDS / 2, 0.9, 0.0)


@cache
def worst() -> Rates:
    """Return the slow end."""
    return Rates(
        0.50,
        0.45,
        1.25 * HOST_SECONDS_PER_LAYER,
        2 * UPDATE_SECONDS,
        0.6,
        1.25 * fit().waiting_seconds,
    )
