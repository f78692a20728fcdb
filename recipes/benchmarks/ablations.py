"""What each choice is worth: the recommended training step against one with one thing changed.

The two live in one process and take turns, step by step, on the same batches; a ratio is that of
two steps of the same round, above 1 where the change makes the step slower. One micro-batch per
step, so that the optimizer's and the engine's shares are as large as they get (on 8 GPUs the
paper's batch leaves each one micro-batch). `without deepspeed` is the control: the same model and
loss, torch's fused AdamW on fp32 masters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from model.attention import BACKENDS
from model.kernels import KERNELS
from recipes.benchmarks.mode import DataSettings, Mode
from recipes.benchmarks.presentation import panels, shown
from recipes.benchmarks.records import Record, Rows
from recipes.benchmarks.timing import alternate, ratios, release_memory, spread
from recipes.benchmarks.training_step import (
    SEQUENCE_LENGTH,
    STEPS_MADE,
    Setup,
    Trainer,
    check_attention_timed,
    check_kernels_timed,
    made_batches,
    on_data,
    one_process,
    recommended,
    training_data,
)
from recipes.common.json_content import Json
from recipes.corpus.mlm_batches import PackedBatch
from recipes.engine.world import World
from recipes.reporting.figures import COLORS

RECOMMENDED = "recommended"
REPEATS = 7
FULL_MODELS = ("rapidbert-base", "rapidbert-large")
TOY_MODELS = ("rapidbert-tiny",)


@dataclass(frozen=True)
class Settings(DataSettings):
    """Compares the recommended training step with steps that have one thing changed."""


def variants(setup: Setup) -> dict[str, Setup]:
    """List setups that differ from the recommended one in one thing, the most interesting first."""
    found = {"without deepspeed": replace(setup, with_deepspeed=False)}
    found["ZeRO 0"] = replace(setup, deepspeed=zero_0(setup.deepspeed))
    found["layers recomputed"] = replace(setup, recompute=True)
    for backend in BACKENDS:
        if backend != setup.attention:
            found[f"attention {backend}"] = replace(setup, attention=backend)
    for kernels in KERNELS:
        if kernels != setup.kernels:
            found[f"kernels {kernels}"] = replace(setup, kernels=kernels)
    return found


def zero_0(deepspeed: Json) -> Json:
    """Take ZeRO out of the configuration: DeepSpeed then sums gradients in their own precision."""
    left_out = ("zero_optimization", "data_types")
    return {key: value for key, value in deepspeed.items() if key not in left_out}


def measure(settings: Settings, record: Record) -> None:
    record["ratios"], record["step_seconds"] = {}, {}
    with training_data(settings.data, record) as shards, one_process() as world:
        for model in FULL_MODELS if record.gpu else TOY_MODELS:
            setup, micro_batch = recommended(model, record)
            setup = on_data(setup, shards)
            record["settings"][model] = setup.describe() | {
                "micro_batch": micro_batch,
                "sequence_length": SEQUENCE_LENGTH,
                "repeats": REPEATS,
            }
            record["ratios"][model] = {}
            batches = made_batches(shards, micro_batch, micro_batch, SEQUENCE_LENGTH, STEPS_MADE)
            change_one_thing(record, setup, micro_batch, batches, world)
            release_memory()


def change_one_thing(
    record: Record, setup: Setup, micro_batch: int, batches: list[PackedBatch], world: World
) -> None:
    """Measure every variant against the recommended setup, which stays as it is built."""
    model = setup.model.name
    ours = record.attempt(
        f"{model}: {RECOMMENDED}", Trainer, setup, micro_batch, micro_batch, batches, world
    )
    if ours is None:
        return
    with ours:
        for name, changed in variants(setup).items():
            what = f"{model}: {name}"
            if record.out_of_time(what):
                continue
            found = record.attempt(what, compare, ours, changed, micro_batch, batches)
            release_memory()
            if found is not None:
                ratio, seconds = found
                record["ratios"][model][name] = ratio
                record["step_seconds"].setdefault(model, seconds)
                print(f"{what}: {shown(ratio, '.3f')} times the time of a step", flush=True)
            record.save()


def compare(
    ours: Trainer, changed: Setup, micro_batch: int, batches: list[PackedBatch]
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure how many times as long a changed step takes, and our step's seconds."""
    check_attention_timed(changed.attention, ours.world.device)
    check_kernels_timed(changed.kernels, ours.world.device)
    with Trainer(changed, micro_batch, micro_batch, batches, ours.world) as other:
        times = alternate(
            {"ours": ours.step, "changed": other.step}, ours.world.device, repeats=REPEATS
        )
    return ratios(times["changed"], times["ours"]), spread(times["ours"])


def figure(record: Json) -> Figure:
    """Draw the ratios of step times with their spread, a panel for each model."""
    models = {model: found for model, found in record["ratios"].items() if found}
    tallest = max((len(found) for found in models.values()), default=1)
    drawn, axes = panels(
        max(1, len(models)), 1, "One thing changed", record, height=1.2 + 0.3 * tallest
    )
    for (panel,), (model, found) in zip(axes, models.items(), strict=False):
        for place, ratio in enumerate(found.values()):
            color = COLORS[0] if ratio["median"] >= 1 else COLORS[1]
            panel.barh(place, ratio["median"] - 1, left=1, color=color, height=0.6)
            panel.hlines(place, ratio["min"], ratio["max"], color="black", linewidth=1)
            panel.annotate(
                f"{ratio['median']:.2f}",
                (max(1, ratio["max"]), place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_yticks(range(len(found)), list(found))
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
        panel.margins(x=0.12)
        settings = record["settings"][model]
        panel.set_title(
            f"{model}, recommended: {settings['attention']} attention, "
            f"{settings['kernels']} kernels, one micro-batch of "
            f"{settings['micro_batch']}",
            loc="left",
            fontsize=9,
        )
    axes[-1][0].set_xlabel("time of a step, times the recommended one's")
    return drawn


def table(record: Json) -> Rows:
    rows: Rows = [("model", "changed", "step time / recommended")]
    for model, found in record["ratios"].items():
        rows += [(model, name, shown(ratio, ".3f")) for name, ratio in found.items()]
    return rows


def headlines(record: Json) -> list[tuple[str, str]]:
    """List every change of the first model."""
    model, found = next(iter(record["ratios"].items()))
    return [
        (f"{model}, {name}", f"{ratio['median']:.2f} x the time of a step")
        for name, ratio in found.items()
    ]


MODE = Mode(Settings, measure, table, figure, headlines)
