"""What TensorBoard shows of a run: the records of its log, and nothing else.

There is one file of events, and every start writes it anew from the log: steps that run again,
files of earlier starts and points that met a full disk leave nothing double and nothing missing.
TensorBoard sorts groups of curves by name, hence the numbers in front: loss and throughput come
first. A finetuning has its curves in a group of its task, where its seeds lie over one another.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import FileWriter

POSITION = ("step", "sequences", "tokens", "seconds")
"""What every record of the log has, beside its scalars."""
GROUPS = (
    *("loss", "throughput", "accuracy", "progress", "optimizer"),
    *("time", "cost", "memory", "checkpoint"),
)
"""Groups of a pretraining's curves, what one opens TensorBoard for first."""
FLUSH_SECONDS = 10
SCORE = "finetuning/score"
"""The score of a finetuning, by one name for all tasks: TensorBoard's table of hyper-parameters
compares what has one name."""


def tag_of(name: str, task: str | None = None) -> str:
    """Return the name of a curve.

    Args:
        name: in the log, e.g. `loss/train`.
        task: of a finetuning; None: a pretraining's.
    """
    if task is not None:
        return name if name == SCORE else f"{task}/{name}"
    group = name.partition("/")[0]
    return f"{GROUPS.index(group) + 1 if group in GROUPS else len(GROUPS) + 1} {name}"


def _chart(*names: str) -> list[object]:
    return ["Multiline", [f"{tag_of(name)}$" for name in names]]


# Every run has the same one: TensorBoard merges only what the first run has, too.
LAYOUT = {
    "Loss": {
        "loss (nats)": _chart("loss/train", "loss/eval"),
        "accuracy": _chart("accuracy/eval"),
    },
    "Throughput": {
        "real tokens per second": _chart("throughput/tokens_per_sec"),
        "utilisation": _chart(
            "throughput/device/mfu", "throughput/device/executed_flops_utilization"
        ),
        "lost to": _chart("throughput/padding_share", "time/data_wait_share"),
    },
    "Health": {
        "gradient norm": _chart("optimizer/grad_norm"),
        "skipped steps": _chart("optimizer/skipped_steps"),
        "learning rate": _chart("optimizer/lr"),
        "forward pass, median and slowest rank (s)": _chart(
            "time/forward_seconds_median", "time/forward_seconds_slowest"
        ),
        "memory (GB)": _chart("memory/device_peak_allocated_gb", "memory/host_peak_gb"),
    },
    "Finetuning": {
        "score": ["Multiline", [f"{SCORE}$"]],
        "loss": ["Multiline", [r"[\w-]+/loss/train$"]],
    },
}


class Curves:
    """The events of a run, in `directory`; `redraw` begins.

    Args:
        task: of a finetuning; None: a pretraining's.
        config: everything the run is, for the text page; what is nested gets a table of its own.
        began: `time.time()` at second 0 of the run, for the axis of time.
    """

    def __init__(
        self,
        directory: Path,
        *,
        task: str | None = None,
        config: Mapping[str, object] | None = None,
        began: float | None = None,
    ):
        self.directory = directory
        self._task = task
        self._config = config or {}
        self._began = time.time() if began is None else began
        self._opened: FileWriter | None = None
        self._newest: dict[str, float] = {}  # step by curve

    @property
    def _writer(self) -> FileWriter:
        assert self._opened is not None, "redraw begins"
        return self._opened

    def redraw(self, records: Iterable[Mapping[str, object]]) -> None:
        """Remove what is there, and begin with these records of the log.

        Raises:
            OSError: there is no space.
        """
        # Not at the top of the file: reading a log must not load torch.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from torch.utils.tensorboard import summary
        from torch.utils.tensorboard.writer import FileWriter

        with contextlib.suppress(OSError):  # what it still holds is in the records
            self.close()
        for old in self.directory.glob("events.out.tfevents.*"):
            old.unlink()
        for copies in ("by_sequences", "by_tokens"):  # earlier versions'
            shutil.rmtree(self.directory / copies, ignore_errors=True)
        self._newest = {}
        self._opened = FileWriter(str(self.directory), flush_secs=FLUSH_SECONDS)
        # A TensorBoard that has read the old files forgets what is at this step or behind it.
        self._writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step=0)
        # torch gives no types to what makes its summaries.
        layout = summary.custom_scalars(LAYOUT)  # type: ignore[no-untyped-call]  # torch has none
        self._writer.add_summary(layout)
        if self._config:
            text = summary.text("config", _table(self._config))  # type: ignore[no-untyped-call]
            self._writer.add_summary(text, 0)
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, object]) -> None:
        """Draw a record of the log."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        step, sequences, tokens, seconds = (_number(record[key]) for key in POSITION)
        scalars = {name: _number(value) for name, value in record.items() if name not in POSITION}
        if self._task is None:
            scalars |= {"progress/sequences": sequences, "progress/tokens": tokens}
        tagged = {tag_of(name, self._task): value for name, value in scalars.items()}
        # An evaluation says again how far the step of its training record was.
        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in tagged.items()
            if self._newest.get(tag) != step
        ]
        self._newest |= dict.fromkeys(tagged, step)
        event = Event(summary=Summary(value=values))
        self._writer.add_event(event, int(step), self._began + seconds)

    def summarize(self, settings: Mapping[str, object], measured: Iterable[str]) -> None:
        """Put settings beside what was measured, in TensorBoard's table of hyper-parameters.

        Args:
            measured: names in the log; each curve's last point counts.
        """
        from torch.utils.tensorboard.summary import hparams

        plain = {
            name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for name, value in settings.items()
        }
        tags = {tag_of(name, self._task): 0.0 for name in measured}
        for part in hparams(plain, tags):  # type: ignore[no-untyped-call]  # as above
            self._writer.add_summary(part)

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        if self._opened is not None:
            self._opened.close()


def _number(value: object) -> float:
    """A value of the log; what is not finite is null there."""
    return float(value) if isinstance(value, int | float) else math.nan


def _table(config: Mapping[str, object], title: str = "") -> str:
    plain = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    rows = "".join(f"| {name} | `{value}` |\n" for name, value in plain.items())
    text = f"{title}| setting | value |\n|---|---|\n{rows}" if rows else title
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            text += f"\n{_table(value, f'### {name}{chr(10)}{chr(10)}')}"
    return text
