"""Attention backends against each other and against the floor that the hardware sets.

Full sequences at a constant number of tokens, in the layout of training: qkv [T, H, 3, D] where the
QKV matmul leaves it. The floor of a pass is the larger of two times: the bytes that it must move
(forward: read qkv, write the context; backward: read qkv and the context's gradient, write qkv's)
over the bandwidth of a large copy, and its matrix multiplications (two forward, five backward)
over the rate of a large one, both measured here. The backward's time is that of both passes less
the forward's of the same round. FlexAttention gets its mask made beforehand; what the making costs
is in the record.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter
from torch import Tensor

from model.attention import BACKENDS, packed_attention, slopes_on
from model.padding import sequence_of_row
from recipes.benchmarks.mode import Mode, ModeSettings
from recipes.benchmarks.presentation import panels, shown
from recipes.benchmarks.records import NotHere, Record, Rows
from recipes.benchmarks.timing import (
    alternate,
    release_memory,
    seconds_per_call,
    spread,
    synchronize,
)
from recipes.benchmarks.training_step import check_attention_timed
from recipes.common.json_content import Json
from recipes.common.numbers import whole
from recipes.common.settings import number_in
from recipes.reporting.figures import COLORS, count_axis

FLEX = "FlexAttention"
REPEATS = 7
TURN_SECONDS = 0.01
PASSES = ("forward", "backward")


@dataclass(frozen=True)
class Sizes:
    """Sizes that one kind of device is measured at."""

    tokens: int
    lengths: tuple[int, ...]
    heads: int
    head_dim: int
    dtype: torch.dtype
    copied_bytes: int
    """Bytes of the buffer whose copy gives the bandwidth: more than any cache holds."""
    matmul: int
    """Rows and columns of the square matrices whose product gives the rate."""


FULL = Sizes(65_536, (128, 512, 64, 4096, 256, 1024, 2048), 12, 64, torch.bfloat16, 2**31, 8192)
TOY = Sizes(1024, (128, 32, 64), 3, 64, torch.float32, 2**27, 1024)


@dataclass(frozen=True)
class Settings(ModeSettings):
    """Compares attention backends with each other, and with the shortest time that the hardware
    allows for the bytes and the matrix multiplications of a pass."""

    lengths: tuple[Annotated[int, number_in(whole(1, 65_536))], ...] = ()
    """Tokens of a sequence; 64 to 4,096 unless given."""


def bytes_moved(tokens: int, heads: int, head_dim: int, itemsize: int) -> tuple[int, int]:
    """Count the bytes that the forward and the backward pass must move at least."""
    one = tokens * heads * head_dim * itemsize  # of q, k, v, the context or the gradient of one
    return (3 + 1) * one, (3 + 1 + 3) * one


def matmul_flops(token_pairs: int, heads: int, head_dim: int) -> tuple[int, int]:
    """Count the FLOPs of the matrix multiplications: forward QK' and PV; backward QK' again, and
    the gradients of P, Q, K and V."""
    one = 2 * token_pairs * heads * head_dim
    return 2 * one, 5 * one


def measure(settings: Settings, record: Record) -> None:
    sizes = FULL if record.gpu else TOY
    lengths = settings.lengths or sizes.lengths
    bandwidth, matmul = ceilings(sizes, record.device)
    record["settings"] = {
        "tokens": sizes.tokens,
        "heads": sizes.heads,
        "head_dim": sizes.head_dim,
        "dtype": str(sizes.dtype).removeprefix("torch."),
        "repeats": REPEATS,
    }
    record["copy_bytes_per_second"], record["matmul_flops_per_second"] = bandwidth, matmul
    print(
        f"copy {bandwidth['median'] / 1e9:,.0f} GB/s, "
        f"matmul {matmul['median'] / 1e12:,.2f} TFLOP/s",
        flush=True,
    )
    record["points"] = []
    names = [
        name for name in (*BACKENDS, FLEX) if record.here(name, check_contender, record.device)
    ]
    # FlexAttention behind all others: it compiles for longer than they take.
    for group in (
        [name for name in names if name != FLEX],
        [name for name in names if name == FLEX],
    ):
        for length in lengths if group else ():
            if not record.out_of_time(f"{length} tokens" + (f", {FLEX}" if FLEX in group else "")):
                measure_length(record, sizes, group, length)
                release_memory()


def ceilings(sizes: Sizes, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """Measure bytes per second, read and written, of a large copy, and FLOP/s of a large matmul."""
    source = torch.ones(sizes.copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    matrix = torch.randn(sizes.matmul, sizes.matmul, device=device).to(sizes.dtype)
    times = alternate(
        {"copy": lambda: target.copy_(source), "matmul": lambda: matrix @ matrix},
        device,
        repeats=REPEATS,
        seconds=TURN_SECONDS,
    )
    return (
        spread([2 * sizes.copied_bytes / time for time in times["copy"]]),
        spread([2 * sizes.matmul**3 / time for time in times["matmul"]]),
    )


def measure_length(record: Record, sizes: Sizes, names: list[str], length: int) -> None:
    """Measure contenders at one length; the record has a point for each after every round."""
    device, heads, dim = record.device, sizes.heads, sizes.head_dim
    sequences = max(1, sizes.tokens // length)
    tokens = sequences * length
    shape = (tokens, heads, 3, dim)
    qkv = torch.randn(shape, device=device).to(sizes.dtype).requires_grad_()
    gradient = torch.randn(tokens, heads, dim, device=device).to(sizes.dtype)
    offsets = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
    slopes = slopes_on(device, heads, 0, heads)
    passes: dict[str, Callable[[], object]] = {}
    facts: dict[str, Json] = {}

    def add(name: str) -> None:
        began = time.perf_counter()
        attend, found = contender(name, qkv, offsets, length, slopes)

        def both() -> None:
            torch.autograd.grad(attend(), qkv, gradient)

        both()  # compiles, or fails, before anything of it counts
        synchronize(device)
        passes[f"{name} forward"], passes[f"{name} both"] = attend, both
        facts[name] = found | {"first_call_seconds": time.perf_counter() - began}

    for name in names:
        record.attempt(f"{name} at {length} tokens", add, name)
    if not passes:
        return
    floors = floor_seconds(record, tokens, length, heads, dim, sizes.dtype.itemsize)
    before = list(record["points"])
    shared: dict[str, float] = {"sequence_length": length, "tokens": tokens}
    shared |= {f"{which}_floor_seconds": floor for which, floor in zip(PASSES, floors, strict=True)}

    def go_on(times: dict[str, list[float]]) -> bool:
        record["points"] = before + [
            {"backend": name, **shared, **pass_seconds(times, name), **found}
            for name, found in facts.items()
        ]
        record.save()
        rounds = len(next(iter(times.values())))
        return rounds == REPEATS or not record.out_of_time(
            f"rounds after {rounds} at {length} tokens"
        )

    alternate(passes, device, repeats=REPEATS, seconds=TURN_SECONDS, go_on=go_on)
    for point in record["points"][len(before) :]:
        print(f"{point['backend']} at {length}: {text(point)}", flush=True)


def pass_seconds(times: dict[str, list[float]], name: str) -> Json:
    """Compute the times of the forward and the backward pass from those of forward and both."""
    forward = times[f"{name} forward"]
    backward = [both - once for both, once in zip(times[f"{name} both"], forward, strict=True)]
    return {"forward_seconds": spread(forward), "backward_seconds": spread(backward)}


def floor_seconds(
    record: Any, tokens: int, length: int, heads: int, dim: int, itemsize: int
) -> tuple[float, float]:
    """Compute the shortest seconds of the forward and of the backward pass over full sequences."""
    bandwidth = record["copy_bytes_per_second"]["median"]
    matmul = record["matmul_flops_per_second"]["median"]
    moved = bytes_moved(tokens, heads, dim, itemsize)
    flops = matmul_flops(tokens * length, heads, dim)
    forward, backward = (
        max(size / bandwidth, work / matmul) for size, work in zip(moved, flops, strict=True)
    )
    return forward, backward


def check_contender(name: str, device: torch.device) -> None:
    """Raise NotHere where it cannot run on this device, or needs a package that is missing."""
    if name != FLEX:
        check_attention_timed(name, device)
    elif device.type != "cuda":
        raise NotHere("FlexAttention has no backward pass on the CPU")


def contender(
    name: str, qkv: Tensor, offsets: Tensor, length: int, slopes: Tensor
) -> tuple[Callable[[], Tensor], Json]:
    """Return the forward pass of a backend, and what else is to be recorded of it."""
    if name == FLEX:
        return flex_contender(qkv, offsets, slopes)
    return lambda: packed_attention(qkv, offsets, length, slopes=slopes, backend=name), {}


def flex_contender(
    qkv: Tensor, offsets: Tensor, slopes: Tensor
) -> tuple[Callable[[], Tensor], Json]:
    """Compile FlexAttention for the packed batch, with a mask that keeps sequences apart."""
    from torch.nn.attention import flex_attention as flex

    tokens = qkv.shape[0]
    same_sequence, alibi = flex_functions(offsets, tokens, slopes)

    def mask() -> Any:
        return _compiled(flex.create_block_mask)(
            same_sequence, None, None, tokens, tokens, device=qkv.device
        )

    block_mask = mask()
    facts = {"block_mask_seconds": seconds_per_call(mask, qkv.device)}
    compiled = _compiled(flex.flex_attention)
    return lambda: flex_packed(qkv, alibi, block_mask, compiled), facts


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Once: the numbers of tokens, and so all shapes, are the same at every sequence length.
    return torch.compile(function, dynamic=False)


def flex_packed(
    qkv: Tensor, score: Callable[..., Tensor], block_mask: Any, attend: Callable[..., Tensor]
) -> Tensor:
    """Attend by `flex_attention`, compiled or not: [T, H, 3, D] to [T, H, D]."""
    q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in qkv.unbind(2))  # each [1, H, T, D]
    return attend(q, k, v, score_mod=score, block_mask=block_mask).squeeze(0).transpose(0, 1)


def flex_functions(
    offsets: Tensor, tokens: int, slopes: Tensor
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return the mask, whether two rows are of one sequence, and the score with ALiBi."""
    sequence, _ = sequence_of_row(offsets, tokens)

    def same_sequence(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sequence[query] == sequence[key]

    def alibi(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score - slopes[head] * (query - key).abs()

    return same_sequence, alibi


def text(point: Json) -> str:
    parts = []
    for name in ("forward", "backward"):
        seconds = point[f"{name}_seconds"]
        share = point[f"{name}_floor_seconds"] / seconds["median"]
        parts.append(f"{name} {shown(seconds, ',.0f', 1e-6)} us, {share:.0%} of the floor's speed")
    return "; ".join(parts)


def figure(record: Json) -> Figure:
    """Draw time per token and share of the floor, forward and backward, against the length."""
    drawn, axes = panels(2, 2, "Attention, packed, bidirectional, ALiBi", record)
    points = sorted(record["points"], key=lambda point: point["sequence_length"])
    backends = list(dict.fromkeys(point["backend"] for point in points))
    lengths = sorted({point["sequence_length"] for point in points})
    for column, name in enumerate(("forward", "backward")):
        time, share = axes[0][column], axes[1][column]
        time.set_title(name, loc="left", fontsize=10)
        for number, backend in enumerate(backends):
            mine = [point for point in points if point["backend"] == backend]
            xs = [point["sequence_length"] for point in mine]
            seconds = [point[f"{name}_seconds"]["median"] for point in mine]
            floors = [point[f"{name}_floor_seconds"] for point in mine]
            style: dict[str, Any] = {"color": COLORS[number % len(COLORS)], "label": backend}
            per_token = [s / point["tokens"] * 1e9 for s, point in zip(seconds, mine, strict=True)]
            time.plot(xs, per_token, "o-", **style)
            reached = [f / s for f, s in zip(floors, seconds, strict=True)]
            share.plot(xs, reached, "o-", **style)
        first = {point["sequence_length"]: point for point in points}
        floor = [
            first[length][f"{name}_floor_seconds"] / first[length]["tokens"] * 1e9
            for length in lengths
        ]
        time.plot(lengths, floor, "--", color="black", linewidth=1, label="floor")
        time.set_yscale("log")
        time.yaxis.set_minor_formatter(NullFormatter())
        share.set_ylim(0, 1)
        share.yaxis.set_major_formatter(PercentFormatter(1))
        share.set_xlabel("sequence length (tokens)")
        for panel in (time, share):
            count_axis(panel, lengths)
    axes[0][0].set_ylabel("ns per token")
    axes[1][0].set_ylabel("speed, of the floor's")
    axes[0][0].legend(fontsize=8)
    return drawn


def table(record: Json) -> Rows:
    rows: Rows = [("backend", "length", "forward us", "of floor", "backward us", "of floor")]
    for point in record["points"]:
        cells = []
        for name in ("forward", "backward"):
            seconds = point[f"{name}_seconds"]
            share = point[f"{name}_floor_seconds"] / seconds["median"]
            cells += [shown(seconds, ",.0f", 1e-6), f"{share:.0%}"]
        rows.append((point["backend"], str(point["sequence_length"]), *cells))
    return rows


def headlines(record: Json) -> list[tuple[str, str]]:
    """List every backend at the first length."""
    return [
        (f"{point['backend']} at {point['sequence_length']} tokens", text(point))
        for point in record["points"]
        if point["sequence_length"] == record["points"][0]["sequence_length"]
    ]


MODE = Mode(Settings, measure, table, figure, headlines)
