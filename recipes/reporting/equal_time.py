"""Two models after equal time: loss against time, score against time, and one table.

It reads what `cram.py` has left: the runs' logs, the exports at shares of the time, and the results
of finetuning from each of them. Nothing is measured here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from model.pretrained import CONFIG, read_description
from recipes.common.errors import UserError
from recipes.common.files import write_whole
from recipes.common.json_content import Json, json_bytes
from recipes.common.tables import aligned, markdown, shown
from recipes.reporting.figures import COLORS, DASHED, add_legend, panels, write_png
from recipes.reporting.html_page import Section, document, drawing, joined
from recipes.reporting.html_page import listed as listed_html
from recipes.reporting.html_page import table as html_table
from recipes.reporting.output import make_directory
from recipes.reporting.runs import CONFIG_NAME, RecordedRun, Values, load_runs
from recipes.reporting.scores import STAND_IN, Series, load_results, summarize
from recipes.tasks.glue_tasks import TASKS
from recipes.training.export import export_directory

SHARES = (0.25, 0.5)
"""Shares of the time at which `cram.py` exports, beside the end."""
_AT = [f"at-{100 * share:g}" for share in SHARES]
ALL_SHARES = (*SHARES, 1.0)
CLOCK = "time/training_seconds"
NEEDED = (
    *("model.name", "model.parameters", "world_size", "device", "data.unigram_entropy_nats"),
    *("data.tokenizer_fingerprint", "data.train_tokens", "global_batch", "run.minutes"),
)
"""What there is to compare of a run."""


@dataclass(frozen=True)
class Contestant:
    """One model's run and scores."""

    run: RecordedRun
    control: Series
    """Scores after finetuning from random weights."""
    scores: list[tuple[float, Series]]
    """Minutes of pretraining, and the scores after so many."""

    @property
    def minutes(self) -> Values:
        """Minutes of training at each evaluation [evaluations]."""
        return np.array([record[CLOCK] / 60 for record in self.run.evals])

    @property
    def losses(self) -> Values:
        """Losses on held-out text in nats [evaluations]."""
        return np.array([record["loss/eval"] for record in self.run.evals])

    def minutes_to(self, loss: float) -> float | None:
        """Return the minutes until the held-out loss was first no higher, None if it never was."""
        below = np.flatnonzero(self.losses <= loss)
        return float(self.minutes[below[0]]) if len(below) else None


def runs_in(directory: Path) -> list[Path]:
    """Return the runs that `cram.py` has left in its directory, RapidBERT's before BERT's."""
    runs = [path.parent for path in directory.glob(f"*/{CONFIG_NAME}")]
    runs = [run for run in runs if (run / _AT[0]).is_dir()]
    return sorted(runs, key=lambda run: (run.name.startswith("bert-"), run.name))


def load(directories: Sequence[Path]) -> list[Contestant]:
    """Read runs with their scores.

    Raises:
        UserError: something is missing, or not comparable; all faults at once.
    """
    runs = load_runs(directories, needed=NEEDED)
    found, faults = [], []
    for run_, directory in zip(runs, directories, strict=True):
        if not run_.evals or any(CLOCK not in record for record in run_.evals):
            faults.append(f"{directory}: no evaluation by time; pretrain.py --minutes makes them")
            continue
        try:
            starts = [directory / name for name in _AT] + [directory]
            scores = [(_minutes(start), _scores(start / "glue")) for start in starts]
            found.append(Contestant(run_, _scores(directory / "glue-from-scratch"), scores))
        except UserError as error:
            faults += error.faults
    if not faults:
        for what, values in _must_agree(found).items():
            if len(set(map(str, values))) > 1:
                faults.append(f"{what} differ: {', '.join(map(str, values))}; nothing to compare")
    if faults:
        raise UserError(*faults)
    return found


def _minutes(start: Path) -> float:
    path = export_directory(start) / CONFIG
    try:
        return float(read_description(path.parent)["progress"]["training_seconds"]) / 60
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: no export of a run by time") from None


def _scores(directory: Path) -> Series:
    return summarize(str(directory), load_results(directory))


def _must_agree(found: Sequence[Contestant]) -> dict[str, list[Any]]:
    configs = [one.run.config for one in found]
    all_series = [s for one in found for s in (one.control, *(series for _, series in one.scores))]
    return {
        "minutes": [config["run"]["minutes"] for config in configs],
        "devices": [config["device"] for config in configs],
        "tokenizers": [config["data"]["tokenizer_fingerprint"] for config in configs],
        "training data": [config["data"]["train_tokens"] for config in configs],
        "held-out texts": [_held_out(config) for config in configs],
        "global batches": [config["global_batch"] for config in configs],
        "tasks": [[task.task for task in series.tasks] for series in all_series],
        "seeds": [[sorted(task.scores) for task in series.tasks] for series in all_series],
        "stand-ins": [series.stand_in for series in all_series],
    }


def _held_out(config: Json) -> str:
    shards = config.get("identity", {}).get("validation_shards")  # older runs do not say
    digest = hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:8]
    return f"{config['run'].get('eval_sequences')} sequences of {digest}"


def table(found: Sequence[Contestant]) -> list[tuple[str, ...]]:
    """Return a header of the models' names, then a row for each quantity."""
    columns = [_column(one, [other for other in found if other is not one]) for one in found]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [
        ("", *(one.run.model for one in found)),
        *((name, *(column.get(name, "") for column in columns)) for name in names),
    ]


def _column(one: Contestant, others: Sequence[Contestant]) -> dict[str, str]:
    config, last = one.run.config, max(one.run.steps, key=lambda record: record["step"])
    options = config["run"]
    rows = {
        "parameters": f"{config['model']['parameters'] / 1e6:,.1f} M",
        "attention, kernels": f"{options['attention']}, {options['kernels']}",
        "tokens to predict in training": f"{options['mask_probability']:.0%}",
        "steps": f"{last['step']:,}",
        "sequences": f"{last['sequences']:,}",
        "tokens": f"{last['tokens']:,}",
        "real tokens/s (median)": f"{one.run.median('throughput/tokens_per_sec'):,.0f}",
        "MFU, 6N (median)": shown(one.run.median("throughput/device/mfu"), "{:.1%}"),
        "minutes of training": f"{last[CLOCK] / 60:.2f}",
        "cost, evaluation and saving too": one.run.cost,
    }
    for share, (minutes, _) in zip(ALL_SHARES, one.scores, strict=True):
        at = min(int(np.searchsorted(one.minutes, minutes - 1e-9)), len(one.losses) - 1)
        rows[f"held-out loss at {share:.0%} of the time (nats)"] = f"{one.losses[at]:.3f}"
    for other in others:
        needed = one.minutes_to(other.losses[-1])
        name = other.run.model
        rows[f"minutes to {name}'s last loss"] = shown(needed, "{:.1f}", "never")
    rows[f"{one.control.average_name}, from random weights"] = f"{one.control.average:.1f}"
    for share, (_, series) in zip(ALL_SHARES, one.scores, strict=True):
        rows[f"{series.average_name}, at {share:.0%} of the time"] = f"{series.average:.1f}"
    final = {task.task: task for task in one.scores[-1][1].tasks}
    for task in one.control.tasks:
        rows[f"{TASKS[task.task].folder} ({task.metric}), random / last"] = (
            f"{task.mean:.1f} / {final[task.task].mean:.1f}"
        )
    return rows


def notes(found: Sequence[Contestant]) -> list[str]:
    """Return what a reader must know."""
    config, series = found[0].run.config, found[0].control
    seeds = max(len(task.scores) for task in series.tasks)
    lines = [
        f"{config['run']['minutes']:g} minutes of training each on one {_device(config)}, "
        "evaluation and saving not counted, compiling counted; the same text in the same order.",
        "Held-out loss is at 15% masking for both.",
        "Scores before the end are of runs whose learning rate has not yet come down.",
        "BERT runs through the same layers, without padding: faster than it usually runs.",
        f"{seeds} finetuning seed{'s' * (seeds > 1)} a task.",
    ]
    if series.stand_in:
        lines.insert(
            0, f"{STAND_IN}. Made from the text of Python: compare with no published score."
        )
    return lines


def figure(found: Sequence[Contestant]) -> Figure:
    """Draw held-out loss and mean score against minutes of training."""
    run, series = found[0].run, found[0].control
    title = f"{run.config['run']['minutes']:g} minutes each on one {_device(run.config)}"
    drawn, [[losses, scores]] = panels(1, 2, title, size=(11, 4.6))
    for number, one in enumerate(found):
        name, color = one.run.model, COLORS[number]
        losses.plot(one.minutes, one.losses, color=color, linewidth=1.8, label=name)
        losses.plot(one.minutes[-1:], one.losses[-1:], "o", color=color)
        xs = [0.0, *(minutes for minutes, _ in one.scores)]
        ys = [one.control.average, *(scored.average for _, scored in one.scores)]
        scores.plot(xs, ys, color=color, linewidth=1.8, marker="o", label=name)
        # The first point is no pretraining at all.
        scores.plot(xs[:1], ys[:1], "o", color=color, markerfacecolor="white", zorder=3)
    losses.axhline(
        run.unigram_entropy or 0.0,  # it is needed
        color="#777777",
        linestyle=DASHED,
        linewidth=1,
        label=f"unigram entropy {run.unigram_entropy:.2f}",
    )
    losses.set_ylabel("held-out loss, nats per masked token (15%)")
    scores.set_ylabel(f"{series.average_name}{', not GLUE' if series.stand_in else ''}")
    scores.plot([], [], "o", color="#555555", markerfacecolor="white", label="random weights")
    losses.set_xlim(scores.get_xlim())
    for axes in (losses, scores):
        axes.set_xlabel("minutes of pretraining")
        add_legend(axes, columns=3)
    return drawn


def _device(config: Json) -> str:
    return "CPU" if config["device"] == "cpu" else config["device"]


def record(found: Sequence[Contestant]) -> Json:
    """Return what the figure shows, as JSON types: minutes, nats, scores times 100."""
    return {
        "stand_in": found[0].control.stand_in,
        "notes": notes(found),
        "models": {
            one.run.model: {
                **{key: one.run.config[key] for key in ("device", "versions", "git_revision")},
                "parameters": one.run.config["model"]["parameters"],
                "settings": one.run.config["run"],
                "global_batch": one.run.config["global_batch"],
                "tokens_per_second_median": one.run.median("throughput/tokens_per_sec"),
                "mfu_median": one.run.median("throughput/device/mfu"),
                "loss": [one.minutes.tolist(), one.losses.tolist()],
                "scores": [
                    {"minutes": minutes, "average": series.average, "tasks": _means(series)}
                    for minutes, series in [(0.0, one.control), *one.scores]
                ],
            }
            for one in found
        },
    }


def _means(series: Series) -> dict[str, float]:
    return {task.task: task.mean for task in series.tasks}


def write(output: Path, directories: Sequence[Path]) -> str:
    """Write `equal_time.md`, `.json` and `.png` into a directory; return the table for a console.

    Raises:
        UserError: as `load`.
    """
    found = load(directories)
    rows, said = table(found), notes(found)
    title = "# Equal time" + (f" ({STAND_IN})" if found[0].control.stand_in else "")
    lines = [title, "", *(f"- {note}" for note in said), "", markdown(rows)]
    lines += ["", "![loss and score against time](equal_time.png)", ""]
    make_directory(output)
    write_png(output / "equal_time.png", figure(found))
    write_whole(output / "equal_time.json", json_bytes(record(found)))
    write_whole(output / "equal_time.md", "\n".join(lines).encode())
    body = joined(drawing(figure(found), "Loss and score against time.", "time"), html_table(rows))
    page = document(title.removeprefix("# "), "", listed_html(said), [Section("Numbers", body)])
    write_whole(output / "equal_time.html", page)
    listed = "\n".join(f"- {note}" for note in said)
    return f"{aligned(rows)}\n\n{listed}\n\n{output / 'equal_time.md'}"
