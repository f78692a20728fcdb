"""The numbers of the model that no data sheet has, from the rows of Table S2 with RapidBERT-Base.

The published code is eager PyTorch with data parallelism (DDP): fp32 gradients, reduced in buckets
of 25 MB beside the last backward pass. What it leaves to be found is physical:

- `matmul_share`: the share of the peak that matrix products reach,
- `published_token_bytes`: what all other kernels of the published code move per token. Eight
  A100-80 and eight A100-40 have the same multiprocessors and memory of another speed: from two
  times follow these two numbers,
- `waiting_seconds`: what of the step on 64 GPUs is left, as the mean delay of a node, for the
  slowest of which each step waits. It stands for everything that several nodes add beyond a ring at
  the links' speed: stragglers, the host's jitter, contention of other jobs.

What the table cannot settle: the first two numbers hang on 1.1e6 tokens/s, printed with two digits
(`share_range`); no other row tests them, since all others are of the other memory. And the form of
the waiting was chosen by these very rows, by leaving each out (`left_out_errors`): their errors say
how the form bends, they are no test of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

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
MEMORY_SHARE = 0.70
"""Of the bandwidth, in all that is no matrix product: with the counted bytes it gives the times
that a model of every compiled kernel gives (`docs/results/predictions.json`), to 4%."""
LAUNCH_SECONDS = 30e-6
"""The host's time for a launch and its Python: 24 ms for 800 of them, assumed for a slow core."""
UPDATE_SECONDS = 2e-3
LARGEST_MATMUL_SHARE = 0.80
"""Of large matrix products by themselves: 790 of 989 TFLOP/s, on an H200 and not by this code."""
HALF_A_DIGIT = 0.05e6
"""Tokens/s: 1.1e6 is what 1.05e6 to 1.15e6 round to."""

WAITING: dict[str, Callable[[int], float]] = {
    "constant": lambda nodes: float(nodes > 1),
    "linear": lambda nodes: nodes - 1.0,
    "logarithm": lambda nodes: float(np.log2(nodes)),
    "slowest node": lambda nodes: waiting_seconds(1.0, nodes),
}
"""Forms of the waiting by the number of nodes. The last is the one used: of the four the only one
with a reason, and the one with the smallest of the largest errors. The logarithm is as good (25
nodes wait 62 ms by the one and 59 by the other), the first two miss a row by more than 15%."""


@dataclass(frozen=True)
class Fit:
    """What Table S2 says."""

    matmul_share: float
    published_token_bytes: float
    waiting_seconds: float
    used: tuple[ScalingRow, ...]
    """Rows that the numbers are from."""
    unused: tuple[ScalingRow, ...]
    """Those of the same model that they are not from."""

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
        """Return the largest error, without its sign, on a row that was left out."""
        return max(abs(error) for error in left_out_errors().values())


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


def _rows() -> list[ScalingRow]:
    """Return the rows of RapidBERT-Base: 8 x A100-80, then 8, 16, 32 and 64 x A100-40."""
    return [row for row in TABLE_S2 if row.model == "rapidbert-base"]


def _on_one_node(eight_80: ScalingRow, eight_40: ScalingRow) -> tuple[float, float]:
    """Solve for the share of the peak and the bytes per token.

    The time of a row on one node is linear in 1 / share and in the bytes.
    """
    left, right = [], []
    for row in (eight_80, eight_40):
        matmul = row.accumulation * _curve(row, 1.0, 0.0).seconds(row.micro_batch)
        memory = row.accumulation * _curve(row, 1e30, 1.0).seconds(row.micro_batch)
        left.append((matmul, memory))
        right.append(row.step_seconds - _exposed_seconds(row, row.step_seconds / row.accumulation))
    inverse, token_bytes = np.linalg.solve(left, right)
    return float(1 / inverse), float(token_bytes)


@cache
def fit() -> Fit:
    """Solve for the three numbers, one after the other."""
    eight_80, eight_40, sixteen, thirty_two, sixty_four = _rows()
    share, token_bytes = _on_one_node(eight_80, eight_40)
    used, unused = (eight_80, eight_40, sixty_four), (sixteen, thirty_two)
    alone = Fit(share, token_bytes, 0.0, used, unused)
    rest = sixty_four.step_seconds - alone.step_seconds(sixty_four)
    return replace(alone, waiting_seconds=rest / waiting_seconds(1.0, _nodes(sixty_four)))


def _nodes(row: ScalingRow) -> int:
    return row.gpus // row.gpu.gpus_per_node


@cache
def share_range() -> tuple[float, float]:
    """Return the shares of the peak that the printed digits allow, without any cap."""
    eight_80, eight_40 = _rows()[:2]
    rates = (eight_80.tokens_per_second - HALF_A_DIGIT, eight_80.tokens_per_second + HALF_A_DIGIT)
    low, high = (
        _on_one_node(replace(eight_80, tokens_per_second=rate), eight_40)[0] for rate in rates
    )
    return low, high


@cache
def left_out_errors(form: str = "slowest node") -> dict[ScalingRow, float]:
    """Predict each row of A100-40 from the other three.

    Two numbers are fitted to the three by least squares of the relative errors: the speed of a
    micro-batch and the scale of the waiting.

    Args:
        form: key of `WAITING`.

    Returns:
        By which share the prediction is slower than the table, by row.
    """
    rows, found = _rows()[1:], fit()
    parts = []
    for row in rows:
        curve = _curve(row, found.matmul_share, found.published_token_bytes)
        micro_batch = curve.seconds(row.micro_batch)
        waiting = WAITING[form](_nodes(row))
        exposed = _exposed_seconds(row, micro_batch)
        parts.append((row.accumulation * micro_batch, waiting, 1 - exposed / row.step_seconds))
    left = np.array([part[:2] for part in parts]) / [[row.step_seconds] for row in rows]
    right = np.array([part[2] for part in parts])
    errors = {}
    for place, row in enumerate(rows):
        others = np.arange(len(rows)) != place
        scales = np.linalg.lstsq(left[others], right[others], rcond=None)[0]
        errors[row] = float(left[place] @ scales - right[place])
    return errors


@cache
def expected() -> Rates:
    """Return what predictions for our code stand on."""
    return Rates(
        fit().matmul_share,
        MEMORY_SHARE,
        LAUNCH_SECONDS,
        UPDATE_SECONDS,
        LINK_SHARE,
        fit().waiting_seconds,
    )


@cache
def best() -> Rates:
    """Return the fast end of what is plausible: nothing waits, kernels near their limits."""
    share = min(share_range()[1], LARGEST_MATMUL_SHARE)
    return Rates(share, 0.85, LAUNCH_SECONDS / 3, UPDATE_SECONDS / 2, 0.9, 0.0)


@cache
def worst() -> Rates:
    """Return the slow end."""
    return Rates(
        share_range()[0],
        0.50,
        1.25 * LAUNCH_SECONDS,
        2 * UPDATE_SECONDS,
        0.6,
        1.25 * fit().waiting_seconds,
    )
