"""The report of pretraining runs: a table, two figures, and what it takes to repeat each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recipes.common.files import write_whole
from recipes.common.tables import markdown, shown
from recipes.reporting.curves import loss_figure, throughput_figure
from recipes.reporting.figures import write_png
from recipes.reporting.output import make_directory
from recipes.reporting.runs import RecordedRun
from recipes.training.console import duration


def table(runs: Sequence[RecordedRun]) -> list[tuple[str, ...]]:
    """Return a header of the runs' names, then a row for each quantity with its unit."""
    columns = [_column(run) for run in runs]
    names = list(columns[0])
    return [
        ("", *(run.name for run in runs)),
        *((name, *(column[name] for column in columns)) for name in names),
    ]


def _column(run: RecordedRun) -> dict[str, str]:
    latest, total = run.latest, run.total_steps
    return {
        "model": run.model,
        "parameters": shown(run.parameters and run.parameters / 1e6, "{:,.1f} M"),
        "devices": run.hardware,
        "steps": f"{latest['step']:,}"
        + (f" of {total:,}" if total else "")
        + (f", {run.skipped:,} without effect" if run.skipped else ""),
        "sequences": f"{latest['sequences']:,}",
        "tokens": f"{latest['tokens']:,}",
        "training loss (nats)": shown(run.last("loss/train"), "{:.3f}"),
        "evaluation loss at 15% masking (nats)": shown(run.last("loss/eval"), "{:.3f}"),
        "evaluation accuracy at 15% masking": shown(run.last("accuracy/eval"), "{:.1%}"),
        "unigram entropy (nats)": shown(run.unigram_entropy, "{:.3f}"),
        "real tokens/s (median)": shown(run.median("throughput/tokens_per_sec"), "{:,.0f}"),
        "padding (median)": shown(run.median("throughput/padding_share"), "{:.1%}"),
        "MFU, 6N (median)": shown(run.median("throughput/device/mfu"), "{:.1%}"),
        "executed-FLOPs utilisation (median)": shown(
            run.median("throughput/device/executed_flops_utilization"), "{:.1%}"
        ),
        "wall time": duration(latest["seconds"]),
        "restarts": str(len(run.restarts)),
        "cost": shown(run.dollars, "${:,.2f}"),
    }


def report(runs: Sequence[RecordedRun], left_out: Sequence[str] = ()) -> str:
    """Return the report as Markdown; `left_out` says what could not be read."""
    lines = ["# Pretraining report", "", markdown(table(runs)), ""]
    lines += [f"- {run.name} is not finished: {run.unfinished}" for run in runs if run.unfinished]
    lines += [
        f"- {run.name} was restarted {restart.words}" for run in runs for restart in run.restarts
    ]
    lines += [f"- left out: {line}" for line in left_out]
    lines += ["", "![loss](loss.png)", "", "![throughput](throughput.png)"]
    for run in runs:
        settings = {
            "git revision": run.config.get("git_revision"),
            "global batch": run.config.get("global_batch"),
            "micro-batch": run.config.get("micro_batch"),
            "gradient accumulation": run.config.get("accumulation"),
            **run.config.get("run", {}),
            **run.config.get("versions", {}),
        }
        rows = [("setting", "value"), *((name, f"`{value}`") for name, value in settings.items())]
        lines += ["", f"## {run.name}", "", markdown(rows)]
    return "\n".join(lines) + "\n"


def write_report(runs: Sequence[RecordedRun], output: Path, left_out: Sequence[str] = ()) -> Path:
    """Write `report.md`, `loss.png` and `throughput.png` into a directory; return the report."""
    make_directory(output)
    write_png(output / "loss.png", loss_figure(runs))
    write_png(output / "throughput.png", throughput_figure(runs))
    path = output / "report.md"
    write_whole(path, report(runs, left_out).encode())
    return path
