"""How long ranks exchange data: latency and bandwidth of a ring or a tree, whichever is faster.

The form and the latencies are those of NCCL's own model (src/graph/tuning.cc, protocol Simple). The
time of a collective is

    base + steps x latency of a step + bytes sent / bandwidth

Rings run through all GPUs of a node and leave it once, each by another network card, so that the
cards of a node add up; inside it NVLink limits them. Which collectives there are is what our engine
does with the settings: all-reduces of slices of the gradients beside the last backward pass
(`recipes/engine/gradient_exchange.py`), then the update, then one all-gather of the weights. With
settings that leave the gradients to DeepSpeed 0.19, it sends them after the last micro-batch, in
one piece up to 500 million of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from recipes.common.errors import UserError
from recipes.common.gpus import Gpu
from recipes.common.json_content import Json
from recipes.engine.ds_config import precision

BASE_SECONDS = 8.4e-6
"""Of any collective."""
RING_SECONDS = {"nvlink": 3.4e-6, "network": 14e-6}
"""Of a step around the ring, inside a node and between two."""
TREE_SECONDS = {"nvlink": 4.0e-6, "network": 14e-6}
BUCKET = 500_000_000
"""Values: DeepSpeed starts another all-reduce behind so many (`MEMORY_OPT_ALLREDUCE_SIZE`)."""


@dataclass(frozen=True)
class Collective:
    """One kind of exchange of a step."""

    kind: Literal["all-reduce", "all-gather"]
    bytes: float
    """Of the whole tensor, in all calls together."""
    calls: int
    beside_backward: bool = False
    """All but the last call, if the backward pass takes long enough."""

    @property
    def passes(self) -> int:
        """How often a ring sends every part around."""
        return 2 if self.kind == "all-reduce" else 1

    def sent_bytes(self, ranks: int) -> float:
        """Return what each of so many GPUs sends, in a ring."""
        return self.passes * (ranks - 1) / ranks * self.bytes


@dataclass(frozen=True)
class Fabric:
    """What joins the GPUs of a run."""

    nvlink: float
    """Bytes/s of a GPU to the others of its node, in one direction, as collectives reach it."""
    network: float
    """Bytes/s of a GPU to other nodes, likewise."""
    gpus_per_node: int

    def nodes(self, ranks: int) -> int:
        """Return how many nodes so many ranks fill."""
        return -(-ranks // self.gpus_per_node)

    def bandwidth(self, ranks: int) -> float:
        """Return the bytes/s that pass a point of the rings."""
        if self.nodes(ranks) == 1:
            return self.nvlink
        return min(self.nvlink, self.network * ranks / self.nodes(ranks))


def node_shape(gpus: int, per_node: int) -> tuple[int, int]:
    """Return nodes, and GPUs on each: as few nodes as hold them, which share them evenly.

    Raises:
        UserError: they cannot, with the nearest numbers of GPUs that such nodes share evenly.
    """
    nodes = -(-gpus // per_node)
    if gpus % nodes:
        below, above = gpus, gpus
        while below % -(-below // per_node):
            below -= 1
        while above % -(-above // per_node):
            above += 1
        raise UserError(
            f"{gpus} GPUs: {nodes} nodes of up to {per_node} do not share them evenly, "
            f"{gpus} / {nodes} = {gpus / nodes:.4g}; take {below} or {above}"
        )
    return nodes, gpus // nodes


def fabric(gpu: Gpu, network_gbit_per_s: float, link_share: float) -> Fabric:
    """Return the links as collectives reach them."""
    assert gpu.nvlink_gb_per_s
    network = network_gbit_per_s * 1e9 / 8 * link_share
    return Fabric(gpu.nvlink_gb_per_s * 1e9 * link_share, network, gpu.gpus_per_node)


def collective_seconds(collective: Collective, ranks: int, links: Fabric) -> float:
    """Return the time of an exchange between `ranks` GPUs."""
    if ranks == 1 or not collective.calls:
        return 0.0
    nodes = links.nodes(ranks)
    between = nodes if nodes > 1 else 0
    inside = max(0, ranks - 1 - between)
    ring = inside * RING_SECONDS["nvlink"] + between * RING_SECONDS["network"]
    sent = collective.sent_bytes(ranks) / links.bandwidth(ranks)
    ways = [collective.calls * (BASE_SECONDS + collective.passes * ring) + sent]
    if collective.kind == "all-reduce":
        # Down and up again. Each value leaves a node and comes back once, as in a ring of many.
        local = -(-ranks // nodes) - 1
        depth = local * TREE_SECONDS["nvlink"] + math.log2(nodes) * TREE_SECONDS["network"]
        moved = 2 * collective.bytes / links.bandwidth(ranks)
        ways.append(collective.calls * (BASE_SECONDS + 2 * depth) + moved)
    return min(ways)


def deepspeed_collectives(parameters: int, deepspeed: Json, accumulation: int) -> list[Collective]:
    """List the exchanges of a step: gradients, and with ZeRO the weights.

    Gradients are reduced with an all-reduce at every ZeRO stage; at stage 2 after every
    micro-batch, otherwise once per step.
    """
    zero = deepspeed.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    weight = 2 if precision(deepspeed) == "bf16" else 4
    gradient = {"fp32": 4, "bf16": 2}.get(deepspeed.get("communication_data_type", ""), weight)
    fp32_sums = deepspeed.get("data_types", {}).get("grad_accum_dtype") == "fp32"
    whole = stage == 0 or (stage == 1 and weight == 2 and fp32_sums)
    sliced = sent_in_slices(deepspeed)
    bucket = BUCKET if whole and not sliced else zero.get("reduce_bucket_size", BUCKET)
    times = accumulation if stage == 2 else 1
    calls = times * math.ceil(parameters / bucket)
    beside = sliced or (stage == 2 and bool(zero.get("overlap_comm")))
    found = [Collective("all-reduce", times * gradient * parameters, calls, beside)]
    if stage:
        # BF16_Optimizer gathers in one call; the others have buckets as well.
        gathered = 1 if whole else math.ceil(parameters / zero.get("allgather_bucket_size", BUCKET))
        found.append(Collective("all-gather", weight * parameters, gathered))
    return found


def sent_in_slices(deepspeed: Json) -> bool:
    """Say whether our engine sends the gradients, and not DeepSpeed (`gradient_exchange`)."""
    bf16 = deepspeed.get("bf16", {})
    return (
        bool(bf16.get("enabled") and bf16.get("immediate_grad_update"))
        and deepspeed.get("zero_optimization", {}).get("stage") == 1
        and deepspeed.get("data_types", {}).get("grad_accum_dtype") == "fp32"
        and deepspeed.get("communication_data_type") == "fp32"
        and not deepspeed.get("prescale_gradients")
        and deepspeed.get("gradient_predivide_factor", 1) == 1
    )


def staged_bytes(deepspeed: Json, accumulation: int) -> int:
    """Return what the sending of the gradients moves in a GPU's memory beside the all-reduces.

    Ours moves nothing. DeepSpeed divides the gradients by the ranks and copies them back to their
    places: 16 bytes, each a read and a write in fp32. It moves 8 more to convert them for the
    message and back, or to gather them in one tensor; ZeRO 1 with fp32 sums of bf16 gradients and
    fp32 messages needs neither. tests/rehearsal/ counts it.

    Returns:
        Bytes per parameter and step.
    """
    if sent_in_slices(deepspeed):
        return 0
    fp32_sums = deepspeed.get("data_types", {}).get("grad_accum_dtype") == "fp32"
    as_they_are = fp32_sums and deepspeed.get("communication_data_type") == "fp32"
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    if precision(deepspeed) == "bf16" and stage == 1 and as_they_are:
        return 16
    return 24 * (accumulation if stage == 2 else 1)


def waiting_seconds(mean_delay: float, nodes: int) -> float:
    """Return how much longer a step of several nodes takes because it waits for the slowest.

    Where a node's delay has an exponential tail of that mean, the largest of k delays is
    mean x (1 + 1/2 + ... + 1/k) on average. One node's own delay is in what it was measured to do.
    """
    return mean_delay * sum(1 / k for k in range(2, nodes + 1))
