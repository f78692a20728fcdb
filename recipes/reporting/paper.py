"""What the paper's appendix prints, and our numbers beside it: Tables S1, S2 and S3.

Tables S2 and S3 are those of `planning/published.py`; what does not add up in them is said beside
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from recipes.common.tables import shown
from recipes.planning.published import (
    TABLE_S2,
    TABLE_S3,
    ScalingRow,
    cost_inconsistencies,
    throughput_inconsistencies,
)
from recipes.reporting.html_page import Markup, joined, listed, paragraph, subheading, table
from recipes.reporting.runs import RecordedRun
from recipes.reporting.scores import Series
from recipes.tasks.glue_tasks import TASKS

NOT_MEASURED = "not measured"


class TableS1Row(NamedTuple):
    """A row of Table S1."""

    learning_rate: float
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    epochs: int


TABLE_S1 = {
    "mnli": TableS1Row(5e-5, (0.9, 0.98), 1e-6, 5e-6, 3),
    "qnli": TableS1Row(1e-5, (0.9, 0.98), 1e-6, 1e-6, 10),
    "qqp": TableS1Row(3e-5, (0.9, 0.988), 1e-6, 3e-6, 5),
    "rte": TableS1Row(1e-5, (0.9, 0.98), 1e-6, 1e-5, 3),
    "cola": TableS1Row(5e-5, (0.9, 0.98), 1e-6, 5e-6, 10),
    "sst2": TableS1Row(3e-5, (0.9, 0.988), 1e-6, 3e-6, 3),
    "mrpc": TableS1Row(8e-5, (0.9, 0.98), 1e-6, 8e-6, 10),
}


_PRINTED = {
    "bert-base": "BERT-Base",
    "rapidbert-base": "RapidBERT-Base",
    "a100-80": "A100 80",
    "a100-40": "A100 40",
}
_DEVICES = {
    "a100-80": ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
    "a100-40": ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
}
"""How drivers call the table's GPUs."""


def finetuning_part(all_series: Sequence[Series]) -> Markup:
    """Return Table S1 with what the tasks here were finetuned with."""
    header = ("task", "", "learning rate", "betas", "epsilon", "weight decay", "epochs")
    rows: list[tuple[str, ...]] = [header]
    for name, task in TASKS.items():
        printed = TABLE_S1.get(name)
        row = _finetuned(printed) if printed else ("not in the table", *[""] * 4)
        rows.append((task.folder, "paper", *row))
        for series in all_series:
            found = next((one.settings for one in series.tasks if one.task == name), None)
            # Results of other versions say less.
            nothing = (NOT_MEASURED if found is None else "not recorded", *[""] * 4)
            used = _used(found) if found else nothing
            rows.append(("", series.name, *used))
        if not all_series:
            rows.append(("", "here", NOT_MEASURED, *[""] * 4))
    said = (
        "Table S1, beside what the jobs here were given. Weight decay is in the published "
        "convention, which AdamW is handed divided by the learning rate. The published code has "
        "0.98 for QQP and SST-2 where the table has 0.988."
    )
    return joined(subheading("Table S1: finetuning"), paragraph(said), table(rows))


def _finetuned(row: TableS1Row) -> tuple[str, ...]:
    betas = f"{row.betas[0]:g}, {row.betas[1]:g}"
    return (
        f"{row.learning_rate:.0e}",
        betas,
        f"{row.epsilon:.0e}",
        f"{row.weight_decay:.0e}",
        f"{row.epochs}",
    )


def _used(settings: Mapping[str, object]) -> tuple[str, ...]:
    def number(name: str) -> str:
        value = settings.get(name)
        return f"{value:g}" if isinstance(value, int | float) else "not recorded"

    betas = settings.get("betas")
    pair = ", ".join(map(str, betas)) if isinstance(betas, list) else "not recorded"
    return (
        *(number("learning_rate"), pair, number("eps"), number("weight_decay")),
        number("epochs"),
    )


def throughput_part(runs: Sequence[RecordedRun], swept: Sequence[RecordedRun] = ()) -> Markup:
    """Return Table S2 with the runs on the same hardware beside it, then the other runs.

    Args:
        swept: those of a scaling sweep, which have a table of their own.
    """
    header = ("", "tokens/s", "MFU", "hardware", "time to 79.6", "batch", "micro-batch")
    rows: list[tuple[str, ...]] = [(*header, "tokens/s here", "MFU here")]
    shown_runs: list[RecordedRun] = []
    for row in TABLE_S2:
        mine = [run for run in (*runs, *swept) if _same_hardware(run, row)]
        shown_runs += mine
        # As in the sweep's own table.
        firsts = [int(run in swept) for run in mine]
        each = list(zip(mine, firsts, strict=True))
        speeds = [shown(run.median(_SPEED, skip=first), "{:,.0f}") for run, first in each]
        shares = [shown(run.median(_MFU, skip=first), "{:.1%}") for run, first in each]
        rows.append(
            (
                f"{_PRINTED[row.model]} (paper)",
                f"{row.tokens_per_second:,.0f}",
                f"{100 * row.mfu:.4g}%",
                f"{row.gpus} × {_PRINTED[row.gpu.short_name]}",
                f"{row.minutes:g} minutes",
                f"{row.global_batch:,}",
                f"{row.micro_batch}",
                "; ".join(speeds) or NOT_MEASURED,
                "; ".join(shares) or NOT_MEASURED,
            )
        )
    rows += [_own_row(run) for run in runs if run not in shown_runs]
    said = [
        "Runs here are medians of the logged windows in real tokens/s, those of a sweep without "
        "the first window; MFU is Eq. 3, 6·N·T over the peak of the devices.",
        *(f"{said}." for said in throughput_inconsistencies()),
    ]
    return joined(subheading("Table S2: throughput and MFU"), table(rows), listed(said))


_SPEED, _MFU = "throughput/tokens_per_sec", "throughput/device/mfu"


def _same_hardware(run: RecordedRun, row: ScalingRow) -> bool:
    same = (run.model, run.devices, run.config.get("global_batch")) == (
        *(row.model, row.gpus, row.global_batch),
    )
    return same and run.device in _DEVICES[row.gpu.short_name]


def _own_row(run: RecordedRun) -> tuple[str, ...]:
    on_gpu = run.device != "cpu"
    return (
        run.name,
        *("", "", run.hardware, ""),
        shown(_whole(run.config.get("global_batch")), "{:,}"),
        shown(_whole(run.config.get("micro_batch")), "{:,}"),
        shown(run.median(_SPEED), "{:,.0f}", NOT_MEASURED),
        shown(run.median(_MFU), "{:.1%}", "peak unknown" if on_gpu else "no GPU"),
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


class Spent(NamedTuple):
    """A run with the average that GLUE gave it, and what it took."""

    name: str
    score: float
    hours: float
    dollars: float | None
    hardware: str


def cost_part(spent: Sequence[Spent]) -> Markup:
    """Return Table S3 with the runs that reached as much beside it.

    Args:
        spent: runs with GLUE's average over all eight tasks.
    """
    header = ("GLUE average", "8×A100 80GB hours", "cost at $2.50", "8×A100 40GB hours")
    rows = [(*header, "cost at $2.00", "here")]
    for large, small in zip(TABLE_S3[::2], TABLE_S3[1::2], strict=True):
        rows.append(
            (
                f"{large.score}",
                f"{large.hours:.2f}",
                f"${large.dollars:.2f}",
                f"{small.hours:.2f}",
                f"${small.dollars:.2f}",
                "; ".join(_reached(large.score, one) for one in spent) or NOT_MEASURED,
            )
        )
    said = [
        "Here are hours and dollars of whole pretraining runs, finetuning not counted; a run that "
        "ends above a score has passed it earlier.",
        *(f"{said}." for said in cost_inconsistencies()),
    ]
    return joined(subheading("Table S3: score, time and cost"), table(rows), listed(said))


def _reached(score: float, one: Spent) -> str:
    if one.score < score:
        return f"{one.name}: not reached ({one.score:.1f})"
    cost = shown(one.dollars, "${:,.2f}", "no GPU")
    return f"{one.name}: {one.score:.1f} after {one.hours:.2f} h on {one.hardware}, {cost}"
