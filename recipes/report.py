"""Tables and figures of finished or running pretraining runs, from `config.json` and `log.jsonl`.

    python recipes/report.py runs/base
    python recipes/report.py runs/base runs/large --output docs/results
    python recipes/report.py runs/scaling/rapidbert-large/*

writes `report.md`, `loss.png` and `throughput.png`, and prints the table; of a scaling sweep,
`scaling-<model>.md` and `.png` instead (`scaling.py`). Nothing is measured here: every number is in
the records, so a report can be made again at any time, anywhere.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import EngFormatter, PercentFormatter  # noqa: E402

from recipes.common.cli import ArgumentParser  # noqa: E402
from recipes.common.entry import run  # noqa: E402
from recipes.common.errors import UserError  # noqa: E402
from recipes.common.files import why_no_directory, write_whole  # noqa: E402
from recipes.common.locks import lock  # noqa: E402
from recipes.training.run_log import LOG_NAME, duration, read_records  # noqa: E402

# Okabe and Ito's palette: told apart with every kind of colour blindness. Yellow is left out, it
# vanishes on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

# Points of a drawn curve; more records than twice that are drawn as means.
REPORT_LOCK = ".report.lock"
BINS = 120

NEEDED = ("model.name", "model.parameters", "world_size", "device", "data.unigram_entropy_nats")


@dataclass
class Run:
    """One run's records; `steps` and `evals` are those of `log.jsonl`, in order."""

    name: str
    config: dict
    steps: list[dict]
    evals: list[dict]

    def curve(self, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
        """Values of `x` and `y`, float64 [records], of the records that have a finite `y`."""
        points = [(r[x], r[y]) for r in self.steps + self.evals if r.get(y) is not None]
        xs, ys = np.array(points, dtype=np.float64).reshape(-1, 2).T
        return xs, ys

    def last(self, key: str) -> float | None:
        """The latest finite value of `key`, None where it was never logged."""
        _, values = self.curve("step", key)
        return float(values[-1]) if len(values) else None

    def median(self, key: str, *, skip: int = 0) -> float | None:
        """The median over the logged windows of `key` after the first `skip`, None without any."""
        _, values = self.curve("step", key)
        return float(statistics.median(values[skip:])) if len(values) > skip else None


def load_runs(directories: Sequence[Path]) -> list[Run]:
    """Read the runs; torn lines of a log are left out and said on stderr.

    Raises:
        UserError: no run there, or nothing logged yet; all faults of all runs.
    """
    runs: list[Run] = []
    faults: list[str] = []
    # Two runs of the same name are told apart by their paths.
    alike = len({path.resolve().name for path in directories}) < len(directories)
    for directory in directories:
        try:
            runs.append(_load_run(directory, str(directory) if alike else directory.resolve().name))
        except UserError as error:
            faults.extend(error.faults)
    if faults:
        raise UserError(*faults)
    return runs


def _load_run(directory: Path, name: str) -> Run:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    config: dict = {}
    records: list[dict] = []
    broken = 0
    faults = []
    try:
        config = json.loads((directory / "config.json").read_bytes())
        missing = [key for key in NEEDED if _lookup(config, key) is None]
        if missing:
            faults.append(f"{directory}/config.json: lacks {', '.join(missing)}")
    except FileNotFoundError:
        faults.append(f"{directory}: no config.json, so no run of recipes/pretrain.py")
    except ValueError as error:
        faults.append(f"{directory}/config.json: not JSON ({error})")
    try:
        records, broken = read_records(directory / LOG_NAME)
    except FileNotFoundError:
        faults.append(f"{directory}: no {LOG_NAME}, nothing was logged")
    else:
        if not any("loss/train" in record for record in records):
            faults.append(
                f"{directory}/{LOG_NAME}: no training step among {len(records)} records"
                f" and {broken} torn lines"
            )
    if faults:
        raise UserError(*faults)
    if broken:
        print(f"{directory}/{LOG_NAME}: {broken} torn line(s) left out", file=sys.stderr)
    return Run(
        name=name,
        config=config,
        steps=[record for record in records if "loss/train" in record],
        evals=[record for record in records if "loss/eval" in record],
    )


def table(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Rows of text: a header (empty cell, run names), then one quantity with its unit per row."""
    columns = [_column(run) for run in runs]
    names = list(columns[0])
    return [
        ("", *(run.name for run in runs)),
        *((name, *(column[name] for column in columns)) for name in names),
    ]


def _column(run: Run) -> dict[str, str]:
    config, latest = run.config, max(run.steps + run.evals, key=lambda record: record["step"])
    total = config.get("total_steps")
    return {
        "model": config["model"]["name"],
        "parameters": f"{config['model']['parameters'] / 1e6:,.1f} M",
        "devices": f"{config['world_size']} × {config['device']}",
        "steps": f"{latest['step']:,}" + (f" of {total:,}" if total else ""),
        "sequences": f"{latest['sequences']:,}",
        "tokens": f"{latest['tokens']:,}",
        "training loss (nats)": _shown(run.last("loss/train"), "{:.3f}"),
        "evaluation loss at 15% masking (nats)": _shown(run.last("loss/eval"), "{:.3f}"),
        "evaluation accuracy at 15% masking": _shown(run.last("accuracy/eval"), "{:.1%}"),
        "unigram entropy (nats)": f"{config['data']['unigram_entropy_nats']:.3f}",
        "real tokens/s (median)": _shown(run.median("throughput/tokens_per_sec"), "{:,.0f}"),
        "padding (median)": _shown(run.median("throughput/padding_share"), "{:.1%}"),
        "MFU, 6N (median)": _shown(run.median("throughput/device/mfu"), "{:.1%}"),
        "executed-FLOPs utilisation (median)": _shown(
            run.median("throughput/device/executed_flops_utilization"), "{:.1%}"
        ),
        "wall time": duration(latest["seconds"]),
        "cost": _shown(run.last("cost/dollars"), "${:,.2f}"),
    }


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _lookup(config: object, dotted: str) -> object:
    for key in dotted.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The table for a console: columns padded to their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown(runs: Sequence[Run]) -> str:
    """The report: table, figures, and what it takes to repeat each run."""
    lines = ["# Pretraining report", "", *markdown_table(table(runs))]
    lines += ["", "![loss](loss.png)", "", "![throughput](throughput.png)"]
    for run_ in runs:
        settings = {
            "git revision": run_.config.get("git_revision"),
            "global batch": run_.config.get("global_batch"),
            "micro-batch": run_.config.get("micro_batch"),
            "gradient accumulation": run_.config.get("accumulation"),
            **run_.config.get("run", {}),
            **run_.config.get("versions", {}),
        }
        lines += ["", f"## {run_.name}", "", "| setting | value |", "|---|---|"]
        lines += [_markdown_row((name, f"`{value}`")) for name, value in settings.items()]
    return "\n".join(lines) + "\n"


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the first row its header."""
    header, *others = rows
    return [_markdown_row(row) for row in (header, ["---"] * len(header), *others)]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def loss_figure(runs: Sequence[Run]) -> Figure:
    """Training and evaluation loss in nats against sequences, with the unigram entropy."""
    figure, (axes,) = new_figure(1, "Masked-language-model loss")
    first = min(run_.steps[0]["sequences"] for run_ in runs)
    last = max(run_.steps[-1]["sequences"] for run_ in runs)
    # Over less than two decades the logarithm would only hide the end, which matters most.
    if first > 0 and last / first >= 100:
        axes.set_xscale("log")
    # Kind by kind, not run by run: the legend fills its columns in this order.
    for run_, color, prefix in _styled(runs):
        _draw(axes, *run_.curve("sequences", "loss/train"), color, label=f"{prefix}training")
    for run_, color, prefix in _styled(runs):
        axes.plot(
            *run_.curve("sequences", "loss/eval"),
            color=color,
            linestyle="none",
            marker="o",
            markerfacecolor="white",
            markersize=5,
            label=f"{prefix}evaluation, 15% masked",
        )
    shared = len({run_.config["data"]["unigram_entropy_nats"] for run_ in runs}) == 1
    for run_, color, prefix in list(_styled(runs))[: 1 if shared else None]:
        entropy = run_.config["data"]["unigram_entropy_nats"]
        axes.axhline(
            entropy,
            color="#777777" if shared else color,
            linestyle=(0, (4, 3)),
            linewidth=1,
            label=f"{'' if shared else prefix}unigram entropy {entropy:.2f}",
        )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("sequences")
    axes.set_ylabel("nats per masked token")
    add_legend(axes, columns=3)
    return figure


def throughput_figure(runs: Sequence[Run]) -> Figure:
    """Real tokens per second, and the shares lost to padding and to waiting for data, by step."""
    figure, (speed, lost) = new_figure(2, "Throughput")
    for run_, color, _ in _styled(runs):
        _draw(speed, *run_.curve("step", "throughput/tokens_per_sec"), color, label=run_.name)
    for key, label, style in (
        ("throughput/padding_share", "padding, of the tokens computed", "-"),
        ("time/data_wait_share", "waiting for data, of the time", (0, (2, 1.5))),
    ):
        for run_, color, prefix in _styled(runs):
            _draw(lost, *run_.curve("step", key), color, label=prefix + label, linestyle=style)
    speed.set_ylabel("real tokens/s, all devices")
    speed.yaxis.set_major_formatter(EngFormatter(sep=""))
    lost.set_ylabel("share lost")
    lost.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    lost.set_xlabel("step")
    for axes in (speed, lost):
        axes.set_ylim(bottom=0)
    if len(runs) > 1:
        add_legend(speed, columns=3)
    add_legend(lost, columns=2)
    return figure


def new_figure(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    """Panels one above the other over one x-axis, in the style of all figures."""
    figure = Figure(figsize=(9, 2 + 3 * panels), layout="constrained")
    grid = figure.subplots(panels, 1, sharex=True, squeeze=False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    panel_axes = list(grid[:, 0])
    for axes in panel_axes:
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02)
    return figure, panel_axes


def _styled(runs: Sequence[Run]) -> Iterator[tuple[Run, str, str]]:
    """Each run with its colour and with the prefix of its labels, empty for a run alone."""
    for index, run_ in enumerate(runs):
        yield run_, COLORS[index % len(COLORS)], f"{run_.name}: " if len(runs) > 1 else ""


def _draw(
    axes: Axes, xs: np.ndarray, ys: np.ndarray, color: str, *, label: str, linestyle: object = "-"
) -> None:
    """A curve; one of many points as its means, with the points themselves faint behind them."""
    style: dict[str, Any] = {
        "color": color,
        "linestyle": linestyle,
        "label": label,
        "linewidth": 1.6,
    }
    if len(xs) <= 2 * BINS:
        axes.plot(xs, ys, **style)
        return
    axes.plot(xs, ys, color=color, alpha=0.35, linewidth=0.6)
    axes.plot(*bin_means(xs, ys, BINS, logarithmic=axes.get_xscale() == "log"), **style)


def bin_means(
    xs: np.ndarray, ys: np.ndarray, bins: int, *, logarithmic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Means of x and y, float64 [at most bins], over bins of equal width on the axis as drawn.

    Unlike a running mean it neither lags behind a falling curve nor loses its beginning.

    Args:
        xs: positions, float64 [points], ascending, positive where `logarithmic`.
        ys: values, float64 [points].
    """
    spaced = np.log(xs) if logarithmic else xs
    edges = np.linspace(spaced[0], spaced[-1], bins + 1)
    index = np.searchsorted(edges[1:-1], spaced, side="right")
    counts = np.bincount(index, minlength=bins)
    filled = counts > 0
    counts = counts[filled]
    x_means = np.bincount(index, weights=xs, minlength=bins)[filled] / counts
    y_means = np.bincount(index, weights=ys, minlength=bins)[filled] / counts
    return x_means, y_means


def add_legend(axes: Axes, columns: int) -> None:
    """Above the panel, where no curve can run through it."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        frameon=False,
        fontsize=9,
        borderaxespad=0.2,
    )


def png(figure: Figure) -> bytes:
    """The figure as a file's contents."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def make_directory(output: Path) -> None:
    """Make the directory of a report, and keep other reports out of it until this process ends.

    A run may go on training in it meanwhile.

    Raises:
        UserError: it cannot be, or another report is being written into it.
    """
    if refusal := why_no_directory(output):
        raise UserError(f"--output {output}: {refusal}")
    output.mkdir(parents=True, exist_ok=True)
    lock(output, "writing a report into it", REPORT_LOCK)


def write_report(runs: Sequence[Run], output: Path) -> Path:
    """Write `report.md`, `loss.png` and `throughput.png` into `output`; returns the report."""
    make_directory(output)
    write_whole(output / "loss.png", png(loss_figure(runs)))
    write_whole(output / "throughput.png", png(throughput_figure(runs)))
    report = output / "report.md"
    write_whole(report, markdown(runs).encode())
    return report


def main() -> None:
    parser = ArgumentParser(description="Tables and figures of pretraining runs.")
    parser.add_argument("runs", type=Path, nargs="+", help="run directories (--output of pretrain)")
    parser.add_argument(
        "--output",
        type=Path,
        help="directory of the report and its figures; the first run's if not given, and beside "
        "the models' directories for a scaling sweep",
    )
    options = parser.parse_args()
    from recipes.reporting import scaling  # it draws with what is in this file

    if scaling.is_sweep(options.runs):
        return scaling.main(options.runs, options.output)
    runs = load_runs(options.runs)
    report = write_report(runs, options.output or options.runs[0])
    print(aligned(table(runs)))
    print(f"\n{report}")


if __name__ == "__main__":
    run(main)
