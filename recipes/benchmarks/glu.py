"""Figure S4: what the gated feed-forwards of appendix G cost beside the standard one.

Forward and backward of the block alone, in training mode without dropout (the standard block has
none inside), over batches of 1 to 2,048 sequences of 128 tokens, at the widths of Base and Large.
The slowdown is the ratio of two times of the same round, less one. As trained, the gated blocks
have half as many weights again; `fused_glu, equal parameters` has two thirds of the inner width,
and so as many weights as the standard block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import nn

from model.config import ModelConfig, ModelOptions, preset
from model.feed_forward import feed_forward_spec
from model.kernels import KERNELS
from model.megatron import build_module
from model.megatron_config import megatron_config
from recipes.benchmarks.mode import Mode, ModeSettings
from recipes.benchmarks.presentation import panels, shown
from recipes.benchmarks.records import Record, Rows
from recipes.benchmarks.timing import alternate, ratios, release_memory, spread
from recipes.benchmarks.training_step import check_kernels_timed, one_process
from recipes.common.json_content import Json
from recipes.common.numbers import whole
from recipes.common.settings import number_in
from recipes.reporting.figures import count_axis, look

TOKENS_PER_SEQUENCE = 128
# From the largest on, which is nearest to training: with --minutes, the small ones may find no
# time.
BATCHES = (512, 2048, 128, 32, 8, 1, 1024, 256, 64, 16, 4, 2)
TOY_BATCHES = (4, 1)
MODELS, TOY_MODELS = ("rapidbert-base", "rapidbert-large"), ("rapidbert-tiny",)
STANDARD = "standard"
EQUAL = "fused_glu, equal parameters"
REPEATS = 7
TURN_SECONDS = 0.005

Batch = Annotated[int, number_in(whole(1, 1_000_000))]


@dataclass(frozen=True)
class Settings(ModeSettings):
    """Compares the gated feed-forwards of appendix G with the standard one (Figure S4)."""

    batches: tuple[Batch, ...] = ()
    """Sequences of 128 tokens; 1 to 2,048 on a GPU unless given."""


def blocks(model: ModelConfig) -> dict[str, ModelConfig]:
    """Return the configurations of the standard block and of the gated ones, by name."""
    return {
        STANDARD: replace(model, feed_forward="standard", ffn_dropout=0.0),
        "glu": replace(model, feed_forward="glu", ffn_dropout=0.0),
        "fused_glu": replace(model, feed_forward="fused_glu", ffn_dropout=0.0),
        EQUAL: replace(
            model, feed_forward="fused_glu", ffn_dropout=0.0, ffn_size=2 * model.ffn_size // 3
        ),
    }


def measure(settings: Settings, record: Record) -> None:
    batches = settings.batches or (BATCHES if record.gpu else TOY_BATCHES)
    models = MODELS if record.gpu else TOY_MODELS
    dtype = torch.bfloat16 if record.gpu else torch.float32
    record["settings"] = {
        "tokens_per_sequence": TOKENS_PER_SEQUENCE,
        "dtype": str(dtype).removeprefix("torch."),
        "repeats": REPEATS,
        "widths": {
            model: {
                name: {"ffn_size": block.ffn_size, "parameters": feed_forward_parameters(block)}
                for name, block in blocks(preset(model)).items()
            }
            for model in models
        },
    }
    record["points"] = []
    # Compiled ones in a round of their own, because each shape compiles for seconds.
    plain = [kernels for kernels in KERNELS if kernels != "compile"]
    with one_process():
        for group in (plain, [kernels for kernels in KERNELS if kernels not in plain]):
            here = [k for k in group if record.here(k, check_kernels_timed, record.device)]
            if here:
                measure_group(record, here, models, batches, dtype)


def measure_group(
    record: Record,
    kernels: list[str],
    models: Sequence[str],
    batches: Sequence[int],
    dtype: torch.dtype,
) -> None:
    """Measure all models and batches, each beside a standard block of the same round."""
    built = {model: contenders(kernels, preset(model), record.device, dtype) for model in models}
    for batch in batches:
        for model, modules in built.items():
            what = f"{model}, {batch} sequences, {' and '.join(kernels)}"
            if record.out_of_time(what):
                continue
            tokens = batch * TOKENS_PER_SEQUENCE
            torch._dynamo.reset()  # no other shape comes back
            measured = record.attempt(what, measure_blocks, modules, tokens, record.device, dtype)
            release_memory()
            for point in measured or []:
                record["points"].append({"model": model, "batch": batch, **point})
            record.save()


def feed_forward_parameters(model: ModelConfig) -> int:
    """Count the weights and biases of one block."""
    h, f = model.hidden_size, model.ffn_size
    return 2 * h * f + f + h if model.feed_forward == "standard" else 3 * h * f + h


def contenders(
    kernels: list[str], model: ModelConfig, device: torch.device, dtype: torch.dtype
) -> dict[tuple[str, str], nn.Module]:
    """Build the modules, by kernels and block; the standard block is Megatron's own."""
    chosen = [(STANDARD, "torch")]
    chosen += [(name, k) for k in kernels for name in blocks(model) if name != STANDARD]
    built = {}
    for name, k in chosen:
        block = blocks(model)[name]
        module = build_module(
            feed_forward_spec(block), config=megatron_config(block, ModelOptions("sdpa", k))
        )
        built[k, name] = module.to(device, dtype).train()
    return built


def measure_blocks(
    modules: dict[tuple[str, str], nn.Module],
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Json]:
    """Measure the times of every block, and its slowdown beside the standard one."""
    # A module has no types for what it is given.
    hidden_size: Any = next(iter(modules.values())).config.hidden_size  # type: ignore[union-attr]
    hidden = torch.randn(tokens, 1, hidden_size, device=device).to(dtype).requires_grad_()
    gradient = torch.randn_like(hidden)
    passes: dict[str, Callable[[], object]] = {}
    for (kernels, name), module in modules.items():
        # Nothing is dropped, so the gated blocks need no keys for it.
        arguments = (hidden,) if name == STANDARD else (hidden, None, 0)

        def forward(module: nn.Module = module, arguments: Any = arguments) -> Any:
            return module(*arguments)[0]

        def both(forward: Any = forward, module: nn.Module = module) -> None:
            # The output's bias is added elsewhere, so it has no gradient here.
            inputs = [hidden, *(p for p in module.parameters() if p.dim() > 1)]
            torch.autograd.grad(forward(), inputs, gradient)

        passes[f"{kernels} {name} forward"], passes[f"{kernels} {name} both"] = forward, both
    times = alternate(passes, device, repeats=REPEATS, seconds=TURN_SECONDS)
    points = []
    for kernels, name in modules:
        point: Json = {"kernels": kernels, "block": name}
        for which in ("forward", "both"):
            mine = times[f"{kernels} {name} {which}"]
            point[f"{which}_seconds"] = spread(mine)
            point[f"{which}_ratio"] = ratios(mine, times[f"torch {STANDARD} {which}"])
        points.append(point)
    return points


def figure(record: Json) -> Figure:
    """Draw the slowdown against the batch size: a row per model, forward left, both right."""
    points = [point for point in record["points"] if point["block"] != STANDARD]
    models = list(dict.fromkeys(point["model"] for point in points))
    names = list(dict.fromkeys(point["block"] for point in points))
    styles = dict(zip(dict.fromkeys(p["kernels"] for p in points), ("-", "--", ":"), strict=False))
    drawn, axes = panels(max(1, len(models)), 2, "Gated feed-forwards", record, height=3.4)
    ticks = sorted({point["batch"] for point in points})
    for row, model in zip(axes, models, strict=False):
        for panel, which in zip(row, ("forward", "both"), strict=True):
            for number, name in enumerate(names):
                for kernels, style in styles.items():
                    mine = sorted(
                        (p["batch"], p[f"{which}_ratio"]["median"] - 1)
                        for p in points
                        if (p["model"], p["block"], p["kernels"]) == (model, name, kernels)
                    )
                    panel.plot(
                        [batch for batch, _ in mine],
                        [slowdown for _, slowdown in mine],
                        linestyle=style,
                        marker=look(number).marker,
                        markersize=4,
                        color=look(number).color,
                        label=f"{name} ({kernels})",
                    )
            panel.axhline(0, color="black", linewidth=0.8)
            panel.set_title(
                f"{model}, {'forward' if which == 'forward' else 'forward and backward'}",
                loc="left",
                fontsize=9,
            )
            count_axis(panel, ticks)
            panel.yaxis.set_major_formatter(PercentFormatter(1))
            panel.tick_params(axis="x", labelsize=8)
        row[0].set_ylabel("slowdown")
    for panel in axes[-1]:
        panel.set_xlabel("sequences of 128 tokens")
    handles, labels = axes[0][0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return drawn


def table(record: Json) -> Rows:
    rows: Rows = [("model", "batch", "kernels", "block", "forward us", "both us", "slowdown, both")]
    for point in record["points"]:
        rows.append(
            (
                point["model"],
                str(point["batch"]),
                point["kernels"],
                point["block"],
                shown(point["forward_seconds"], ",.0f", 1e-6),
                shown(point["both_seconds"], ",.0f", 1e-6),
                f"{point['both_ratio']['median'] - 1:+.1%}",
            )
        )
    return rows


def headlines(record: Json) -> list[tuple[str, str]]:
    """List the slowdown of the fused block, as trained, at the first batch of each model."""
    lines: dict[tuple[str, str], tuple[str, str]] = {}
    for point in record["points"]:
        if point["block"] == "fused_glu":
            key = (point["model"], point["kernels"])
            text = f"{point['both_ratio']['median'] - 1:+.1%} beside the standard block"
            what = f"{point['model']}, fused_glu ({point['kernels']}), {point['batch']} sequences"
            lines.setdefault(key, (what, text))
    return list(lines.values())


MODE = Mode(Settings, measure, table, figure, headlines)
