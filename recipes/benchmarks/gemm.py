"""The matrix products of a training step, each pass of each layer, and other ways to compute them.

    python recipes/benchmark.py gemm
    python recipes/benchmark.py gemm --rows 57344

They are most of a step's FLOPs, and the library that computes them chooses a kernel by rules of its
own. Beside the way that training takes stand cuBLASLt's choice, a weight gradient whose rows are
split in parts, and padded rows where the number of rows is odd; last of all, because its casts are
compiled first, comes fp8 for the gated feed-forward's first layer, alone and with its casts. Each
is compared with training's result before it is timed. A way counts as faster where it saves more
than 3%, in the median of rounds in turns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from model.config import preset
from recipes.benchmarks.matrix_products import (
    AS_TRAINED,
    FP8,
    FP8_WITH_CASTS,
    PASSES,
    TILE,
    Layer,
    Operands,
    Way,
    check_fp8,
    fp8_ways,
    layers,
    wave_arithmetic,
    ways,
)
from recipes.benchmarks.mode import Mode, ModeSettings
from recipes.benchmarks.presentation import panels, shown
from recipes.benchmarks.records import NotHere, Record, Rows
from recipes.benchmarks.timing import alternate, ratios, release_memory, spread
from recipes.benchmarks.training_step import TOY_VOCABULARY
from recipes.common.gpus import peak_flops
from recipes.common.json_content import Json
from recipes.common.numbers import whole
from recipes.common.places import DS_CONFIGS
from recipes.common.settings import number_in
from recipes.engine.ds_config import read_config
from recipes.reporting.figures import COLORS, DASHED

MODELS, TOY_MODELS = ("rapidbert-base", "rapidbert-large"), ("rapidbert-tiny",)
TOKENS_PER_SEQUENCE = 112
"""Of a sequence of up to 128 tokens of real text, on average."""
TOY_ROWS = 192
REPEATS = 7
TURN_SECONDS = 0.01
FASTER = 0.97
"""Of training's time, at most, takes what counts as faster."""
LAYERS_IN_FP8 = ("glu_in",)
DIFFERENCE = {AS_TRAINED: 0.0, FP8: 0.1, FP8_WITH_CASTS: 0.1}
"""Relative distance from training's result that a way may have; 1% unless it stands here."""


@dataclass(frozen=True)
class Settings(ModeSettings):
    """Times every matrix product of a training step, and other ways to compute it."""

    rows: Annotated[int, number_in(whole(1, 10_000_000))] | None = None
    """Tokens of a micro-batch; 112 for each of its sequences, as its DeepSpeed JSON has them,
    unless given."""


def measure(settings: Settings, record: Record) -> None:
    dtype = torch.bfloat16 if record.gpu else torch.float32
    properties = torch.cuda.get_device_properties(record.device) if record.gpu else None
    multiprocessors: int | None = properties.multi_processor_count if properties else None
    models = MODELS if record.gpu else TOY_MODELS
    rows = {model: settings.rows or usual_rows(model, gpu=record.gpu) for model in models}
    record["settings"] = {
        "dtype": str(dtype).removeprefix("torch."),
        "repeats": REPEATS,
        "rows": rows,
        "tile": TILE,
        "multiprocessors": multiprocessors,
        "faster_below": FASTER,
    }
    record["points"] = []
    here = {
        "cublaslt": record.here("cuBLASLt", check_cublaslt, record.device),
        "fp8": record.here("fp8", check_fp8, record.device),
    }
    sizes = {} if record.gpu else {"vocab_size": TOY_VOCABULARY}
    every = [(m, layer) for m in models for layer in layers(preset(m, **sizes), rows[m])]
    points: dict[tuple[str, str, str], Json] = {}
    for model, layer in every:
        for which, operands in passes(record, model, layer, dtype):
            what = f"{model}, {layer.name}, {which}"
            point = record.attempt(
                what, measure_pass, record, layer, which, operands, here["cublaslt"]
            )
            if point:
                point = {"model": model, **point, **waves(layer, which, multiprocessors)}
                points[model, layer.name, which] = point
                record["points"].append(point)
                print(f"{what}: {text(point)}", flush=True)
            record.save()
    # Not before: its casts are compiled, for which the rest of a short time would go.
    for model, layer in every if here["fp8"] else ():
        if layer.name not in LAYERS_IN_FP8:
            continue
        for which, operands in passes(record, model, layer, dtype, way=", fp8"):
            point = points.get((model, layer.name, which))
            what = f"{model}, {layer.name}, {which}, fp8"
            if point and record.attempt(what, add_fp8, record, point, which, operands):
                print(f"{what}: {text(point)}", flush=True)
            record.save()


def passes(
    record: Record, model: str, layer: Layer, dtype: torch.dtype, way: str = ""
) -> Iterator[tuple[str, Operands]]:
    """Give the passes of a layer for which there are time and memory, and what they multiply.

    Args:
        way: added to a pass' name in the record where it is left out.
    """
    operands = None
    for which in PASSES:
        what = f"{model}, {layer.name}, {which}{way}"
        if record.out_of_time(what):
            continue
        if operands is None:
            operands = record.attempt(what, Operands.random, layer, record.device, dtype)
        if operands is not None:  # else the reason is in the record
            yield which, operands
    del operands
    release_memory()


def usual_rows(model: str, *, gpu: bool) -> int:
    """Count the tokens of a micro-batch as the model's DeepSpeed JSON has it; a toy's on a CPU."""
    if not gpu:
        return TOY_ROWS
    config = read_config(DS_CONFIGS / f"{model.rpartition('-')[2]}.json")
    sequences: int = config["train_micro_batch_size_per_gpu"]
    return sequences * TOKENS_PER_SEQUENCE


def check_cublaslt(what: str, device: torch.device) -> None:
    """Raise NotHere where torch cannot be told to take it."""
    if device.type != "cuda":
        raise NotHere("it is a GPU's library")


def waves(layer: Layer, which: str, multiprocessors: int | None) -> Json:
    """Return the tiles of a pass' result; nothing on the CPU, which has no multiprocessors."""
    if multiprocessors is None:
        return {}
    return asdict(wave_arithmetic(*layer.result_shape(which), multiprocessors))


def measure_pass(
    record: Record, layer: Layer, which: str, operands: Operands, cublaslt: bool
) -> Json:
    """Time the ways of one pass in turns; return a point."""
    timed = in_turns(record, layer.name, which, ways(which, operands, cublaslt=cublaslt))
    return {
        "layer": layer.name,
        "pass": which,
        "calls": layer.calls,
        "rows": layer.rows,
        "inputs": layer.inputs,
        "outputs": layer.outputs,
        "flops": layer.flops,
        **timed,
        "faster": fastest(timed["of_as_trained"]),
    }


def add_fp8(record: Record, point: Json, which: str, operands: Operands) -> Json:
    """Time fp8 in turns with training's way, add it to the pass' point, and return that."""
    timed = in_turns(record, point["layer"], which, fp8_ways(which, operands))
    for key, of in timed.items():
        point[key] |= {name: value for name, value in of.items() if name != AS_TRAINED}
    point["faster"] = fastest(point["of_as_trained"])
    return point


def in_turns(record: Record, layer: str, which: str, contenders: dict[str, Way]) -> dict[str, Json]:
    """Time the ways of one pass in turns, those that give the first one's result."""
    expected = contenders[AS_TRAINED]()
    differences = {}
    for name, way in list(contenders.items()):
        what = f"{layer} {which}, {name}"
        differences[name] = record.attempt(what, checked, way, expected, name)
        if differences[name] is None:
            del contenders[name], differences[name]
    del expected
    times = alternate(contenders, record.device, repeats=REPEATS, seconds=TURN_SECONDS)
    return {
        "seconds": {name: spread(values) for name, values in times.items()},
        "of_as_trained": {name: ratios(times[name], times[AS_TRAINED]) for name in times},
        "differences": differences,
    }


def checked(way: Any, expected: Tensor, name: str) -> float:
    """Return the relative distance of a result from the expected one.

    Raises:
        ValueError: it is larger than the way's rounding explains.
    """
    found = way()
    scale = expected.float().norm()
    difference = float((found.float() - expected.float()).norm() / scale)
    if not difference <= DIFFERENCE.get(name, 0.01):
        raise ValueError(f"differs by {difference:.1e} from what training computes")
    return difference


def fastest(shares: dict[str, dict[str, float]]) -> str | None:
    """Name the way that saves most; None where none saves more than 3%.

    fp8 without its casts is no way by itself, because the casts belong to the step.
    """
    real = {name: share["median"] for name, share in shares.items() if name != FP8}
    best = min(real, key=lambda name: real[name])
    return best if real[best] < FASTER else None


def rate(point: Json, name: str = AS_TRAINED) -> dict[str, float]:
    """Turn seconds into FLOP/s, the spread of a way."""
    seconds = point["seconds"][name]
    of = {"median": "median", "min": "max", "max": "min"}
    return {key: point["flops"] / seconds[other] for key, other in of.items()}


def text(point: Json) -> str:
    tiles = ""
    if "tiles" in point:
        tiles = f", {point['tiles']:,} tiles in {point['waves']:.2f} waves"
    return f"{shown(rate(point), ',.3g', 1e12)} TFLOP/s{tiles}; {verdict(point)}"


def verdict(point: Json) -> str:
    """Say which other way is faster, and how the nearest does where none is."""
    others = {
        name: share["median"]
        for name, share in point["of_as_trained"].items()
        if name not in (AS_TRAINED, FP8)
    }
    if not others:
        return "no other way"
    best = point["faster"] or min(others, key=lambda name: others[name])
    said = f"{best} takes {others[best]:.2f} of the time"
    return said if point["faster"] else f"nothing faster by 3% ({said})"


def total_seconds(points: Sequence[Json], *, best: bool) -> float:
    """Sum a micro-batch's products as trained, or with the fastest way of each."""
    return math.fsum(
        point["calls"] * point["seconds"][(best and point["faster"]) or AS_TRAINED]["median"]
        for point in points
    )


def by_model(record: Json) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {}
    for point in record["points"]:
        found.setdefault(point["model"], []).append(point)
    return found


def table(record: Json) -> Rows:
    rows: Rows = [("model", "layer", "pass", "rows x inputs x outputs", "TFLOP/s", "waves", "")]
    for point in record["points"]:
        filled = (
            f"{point['waves']:.2f} ({point['efficiency']:.0%} full)" if "waves" in point else ""
        )
        sizes = " x ".join(f"{point[key]:,}" for key in ("rows", "inputs", "outputs"))
        rows.append(
            (
                *(point[key] for key in ("model", "layer", "pass")),
                sizes,
                shown(rate(point), ",.3g", 1e12),
                filled,
                verdict(point),
            )
        )
    return rows


def headlines(record: Json) -> list[tuple[str, str]]:
    """Give the sum over a micro-batch of each model, and each way that is faster."""
    lines = []
    for model, points in by_model(record).items():
        now, best = (total_seconds(points, best=best) for best in (False, True))
        flops = sum(point["calls"] * point["flops"] for point in points)
        said = f"{now * 1e3:,.1f} ms, {flops / now / 1e12:,.3g} TFLOP/s"
        lines.append(
            (
                f"{model}, {len(points)} of {len(PASSES) * 5} products of a micro-batch",
                f"{said}; {best * 1e3:,.1f} ms with the fastest ways",
            )
        )
        lines += [
            (f"{model}, {point['layer']} {point['pass']}", verdict(point))
            for point in points
            if point["faster"]
        ]
    return lines


def figure(record: Json) -> Figure:
    """Draw the rate of every pass as trained, and of the fastest way where that is another."""
    found = by_model(record)
    drawn, axes = panels(max(1, len(found)), 1, "Matrix products of a training step", record)
    peak = peak_flops(record["device"])
    for (panel,), (model, points) in zip(axes, found.items(), strict=False):
        places = range(len(points))
        as_trained = [rate(point)["median"] / 1e12 for point in points]
        panel.bar(places, as_trained, color=COLORS[0], label=AS_TRAINED)
        faster = [(x, point) for x, point in zip(places, points, strict=True) if point["faster"]]
        panel.plot(
            [x for x, _ in faster],
            [rate(point, point["faster"])["median"] / 1e12 for _, point in faster],
            "D",
            color=COLORS[1],
            label="fastest other way",
        )
        if peak:
            panel.axhline(peak / 1e12, color="black", linestyle=DASHED, label="peak (data sheet)")
        panel.set_xticks(list(places), [f"{p['layer']}\n{p['pass']}" for p in points], fontsize=7)
        panel.set_title(f"{model}, {points[0]['rows']:,} rows", loc="left", fontsize=9)
        panel.set_ylabel("TFLOP/s")
    if found:
        axes[0][0].legend(fontsize=8)
    return drawn


MODE = Mode(Settings, measure, table, figure, headlines)
