"""The page of pretraining runs: what was run, what came out, and what it cost, on one screen first.

Behind it the curves, the scores of finetuning, the paper's tables with our numbers beside them, the
benchmarks' records, and the settings.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from recipes.common.tables import shown
from recipes.reporting import paper, scaling
from recipes.reporting.curves import (
    RATE_KEYS,
    learning_rate_figure,
    losses_figure,
    throughput_figure,
)
from recipes.reporting.html_page import (
    NOTHING,
    Markup,
    Section,
    Tile,
    command,
    document,
    drawing,
    joined,
    listed,
    paragraph,
    table,
    tiles,
)
from recipes.reporting.leaderboard import Line
from recipes.reporting.leaderboard_page import leaderboard_part
from recipes.reporting.run_report import table as numbers
from recipes.reporting.run_settings import settings_part
from recipes.reporting.runs import RecordedRun
from recipes.reporting.score_page import NOT_GLUE, scores_part
from recipes.reporting.scores import Series
from recipes.tasks.glue_tasks import TASKS
from recipes.training.console import duration

NO_SWEEP = (
    "Figure S1, throughput against global batch and number of GPUs: not measured. The first line "
    "measures it, the second puts it on this page:"
)
SWEEP = "sbatch slurm/scaling_sweep.sh"
SWEPT = "python recipes/report.py {} runs/scaling/rapidbert-large/*"


@dataclass(frozen=True)
class Found:
    """Everything that a page is about."""

    runs: Sequence[RecordedRun]
    scores: dict[str, Series] = field(default_factory=dict)
    """Of finetuning, by the name of the run."""
    controls: dict[str, Series] = field(default_factory=dict)
    """Of finetuning from random weights, by the name of the run."""
    sweeps: Sequence[scaling.Sweep] = ()
    lines: Sequence[Line] = ()
    """The leaderboard's."""
    records: Sequence[Section] = ()
    """Of the benchmarks."""
    left_out: Sequence[str] = ()
    """What could not be read, with the reason."""


def page(found: Found) -> bytes:
    """Return the page of runs."""
    runs = found.runs
    title = f"Pretraining report: {', '.join(run.name for run in runs)}"
    sections = [
        Section("Loss", _losses(runs)),
        Section("Speed", _speed(runs)),
        Section("Learning rate", _learning_rate(runs)),
        Section("Scores", _scores(found)),
        Section("Cost", _cost(found)),
        Section("Beside the paper", _beside_the_paper(found)),
        *found.records,
        Section("Numbers", table(numbers(runs))),
        Section("Settings", joined(*map(settings_part, runs))),
    ]
    return document(title, "; ".join(map(_what, runs)), _first_screen(found), sections, _FOOTER)


_FOOTER = (
    "Made by recipes/report.py from config.json, log.jsonl and the results of finetuning: every "
    "number is in these records. Made again at any time, anywhere, by the same command."
)


def _what(run: RecordedRun) -> str:
    """Say in a line what was run, on what, and when."""
    size = shown(run.parameters and run.parameters / 1e6, "{:,.1f} M parameters", "size unknown")
    revision = str(run.config.get("git_revision") or "unknown")
    started = run.config.get("started")
    when = f", started {str(started)[:16].replace('T', ' ')} UTC" if started else ""
    return f"{run.model}, {size}, on {run.hardware}, git revision {revision[:12]}{when}"


def _first_screen(found: Found) -> Markup:
    notes = [f"Left out: {line}" for line in found.left_out]
    notes += [note for run in found.runs for note in run.notes]
    parts = [
        paragraph(
            f"{run.name} is not finished: {run.unfinished}. It goes on, was stopped or has failed; "
            "the numbers are those so far.",
            "warning",
        )
        for run in found.runs
        if run.unfinished
    ]
    parts += [
        paragraph(
            f"{run.name}: {run.skipped:,} of {run.latest['step']:,} steps were without effect, "
            "since their loss or gradient was not finite.",
            "warning",
        )
        for run in found.runs
        if run.skipped
    ]
    if any(series.stand_in for series in found.scores.values()):
        parts.append(paragraph(NOT_GLUE, "warning"))
    if len(found.runs) == 1:
        [run] = found.runs
        parts.append(tiles(_tiles(run, found.scores.get(run.name), found.controls.get(run.name))))
    else:
        parts.append(table(_side_by_side(found)))
    return joined(*parts, listed(notes))


def _tiles(run: RecordedRun, series: Series | None, control: Series | None) -> list[Tile]:
    latest, loss = run.latest, run.last("loss/eval")
    entropy = shown(run.unigram_entropy, "{:.2f}", "not recorded")
    accuracy = shown(run.last("accuracy/eval"), "{:.1%} of the tokens right", "")
    return [
        Tile(
            "held-out loss, 15% masked",
            shown(loss, "{:.3f} nats", "not measured"),
            f"{accuracy}; unigram entropy {entropy}".removeprefix("; "),
        ),
        _score_tile(series, control),
        Tile(
            "real tokens per second",
            shown(run.median("throughput/tokens_per_sec"), "{:,.0f}", "not logged"),
            "median; padding " + shown(run.median("throughput/padding_share"), "{:.1%}"),
        ),
        Tile("MFU, 6N", shown(run.median("throughput/device/mfu"), "{:.1%}", "-"), _why_mfu(run)),
        Tile(
            "wall time",
            duration(latest["seconds"]),
            f"{latest['step']:,} steps, {latest['tokens'] / 1e6:,.1f} M tokens"
            + (f", {count} restart{'s' * (count > 1)}" if (count := len(run.restarts)) else ""),
        ),
        Tile("cost of pretraining", run.cost, _price(run)),
    ]


def _why_mfu(run: RecordedRun) -> str:
    if run.has("throughput/device/mfu"):
        executed = run.median("throughput/device/executed_flops_utilization")
        return "median" + ("" if executed is None else f"; executed FLOPs {executed:.1%}")
    return "no GPU" if run.device == "cpu" else f"the peak of {run.device} is not known"


def _score_tile(series: Series | None, control: Series | None) -> Tile:
    if series is None:
        return Tile("GLUE", "not measured", "recipes/glue.py finetunes and measures")
    notes = [f"chance {shown(series.chance, '{:.1f}', 'not recorded')}"]
    if control:
        same = {task.task: task.mean for task in series.tasks}
        shared = [(same[t.task], t.mean) for t in control.tasks if t.task in same]
        if len(shared) == len(same):
            notes.append(f"from random weights {control.average:.1f}")
        elif shared:
            names = ", ".join(TASKS[t.task].folder for t in control.tasks if t.task in same)
            from_, random = (sum(column) / len(column) for column in zip(*shared, strict=True))
            notes.append(f"on {names} {from_:.1f}, from random weights {random:.1f}")
    return Tile(series.average_name, f"{series.average:.1f}", "; ".join(notes))


def _price(run: RecordedRun) -> str:
    if run.device == "cpu":
        return "a CPU's time has no price here"
    hours, dollars = run.gpu_hours, run.dollars
    price = run.config.get("run", {}).get("price_per_gpu_hour")
    said = shown(hours, "{:,.1f} GPU-hours", "GPU-hours unknown")
    if hours is None or dollars is None or not isinstance(price, int | float):
        return said
    # The price of the latest start is not always that of the ones before.
    return said + (f" at ${price:g}" if math.isclose(hours * price, dollars, rel_tol=0.01) else "")


def _per_hour(run: RecordedRun) -> str:
    if run.device == "cpu":
        return "no GPU"
    price = run.config.get("run", {}).get("price_per_gpu_hour")
    return f"${price:.2f} per GPU-hour" if isinstance(price, int | float) else "not recorded"


def _side_by_side(found: Found) -> list[tuple[str, ...]]:
    """Return the numbers of the first screen, a column for each run."""
    columns = [
        _tiles(run, found.scores.get(run.name), found.controls.get(run.name)) for run in found.runs
    ]
    labels = ["held-out loss", "score", "real tokens/s", "MFU, 6N", "wall time", "cost"]
    rows = [
        (
            label,
            *(
                (f"{tile.label} " if label == "score" else "")
                + tile.value
                + (f" ({tile.note})" if tile.note else "")
                for tile in tiles_
            ),
        )
        for label, *tiles_ in zip(labels, *columns, strict=True)
    ]
    models = [f"{run.model} on {run.hardware}" for run in found.runs]
    return [("", *(run.name for run in found.runs)), ("what", *models), *rows]


def _losses(runs: Sequence[RecordedRun]) -> Markup:
    caption = (
        "Loss in nats per masked token against steps, tokens and wall time. Hollow points: "
        "held-out text with 15% masked. Below the dashed line a model knows more than how "
        "frequent each token is."
    )
    return drawing(losses_figure(runs), caption, "loss")


def _speed(runs: Sequence[RecordedRun]) -> Markup:
    restarts = [
        f"{run.name}: restarted {restart.words}" for run in runs for restart in run.restarts
    ]
    caption = "Real tokens per second of all devices, and what of them and of the time is lost."
    if restarts:
        caption += " Dotted lines with a black mark are restarts."
    known = [run for run in runs if run.has("throughput/tokens_per_sec")]
    if not known:
        return paragraph("No throughput was logged.")
    figure = drawing(throughput_figure(known), caption, "speed")
    unknown = [
        f"{run.name}: no MFU ({_why_mfu(run)})"
        for run in known
        if not run.has("throughput/device/mfu")
    ]
    return joined(figure, listed([*restarts, *unknown]))


def _learning_rate(runs: Sequence[RecordedRun]) -> Markup:
    if not any(run.has(key) for run in runs for key in RATE_KEYS):
        return paragraph("Neither learning rate nor gradient was logged.")
    caption = "Learning rate and norm of the gradient, which is not clipped, against steps."
    return drawing(learning_rate_figure(runs), caption, "rate")


def _scores(found: Found) -> Markup:
    if not found.scores:
        names = [
            f"python recipes/glue.py --checkpoint {run.config.get('run', {}).get('output', 'RUN')}"
            for run in found.runs
        ]
        return joined(paragraph("Not measured. This command measures them:"), *map(command, names))
    series = list(found.scores.values())
    return scores_part(series, found.controls)


def _cost(found: Found) -> Markup:
    header = ("", "wall time", "devices", "price", "pretraining", "finetuning")
    rows = [header]
    for run in found.runs:
        series = found.scores.get(run.name)
        spent = sum(task.dollars for task in series.tasks) if series else None
        rows.append(
            (
                run.name,
                duration(run.latest["seconds"]),
                run.hardware,
                _per_hour(run),
                run.cost,
                "not measured" if spent is None else f"${spent:,.2f}" if spent else "no GPU",
            )
        )
    board = leaderboard_part(found.lines) if found.lines else NOTHING
    return joined(table(rows), board)


def _beside_the_paper(found: Found) -> Markup:
    swept = [point.run for sweep in found.sweeps for point in sweep.points]
    spent = [
        paper.Spent(
            run.name,
            series.average,
            run.latest["seconds"] / 3600,
            run.dollars,
            run.hardware,
        )
        for run in found.runs
        if (series := found.scores.get(run.name)) and series.average_name == "GLUE average"
    ]
    return joined(
        paper.finetuning_part(list(found.scores.values())),
        paper.throughput_part(found.runs, swept),
        paper.cost_part(spent),
        *(scaling.part(sweep, f"sweep-{n}") for n, sweep in enumerate(found.sweeps)),
        NOTHING if found.sweeps else _how_to_sweep(found),
    )


def _how_to_sweep(found: Found) -> Markup:
    runs = shlex.join(str(run.directory) for run in found.runs)
    return joined(paragraph(NO_SWEEP), command(SWEEP), command(SWEPT.format(runs)))
