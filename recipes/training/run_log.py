"""What a run says about itself while it runs: `log.jsonl`, TensorBoard and one console line.

All three show the same numbers and only rank 0 writes. A resumed run continues each of them
without a gap or a duplicate: records past the checkpoint are dropped, since their steps run again.
TensorBoard drops by x value, and a step is no sequence and no token, so each x-axis has a writer
of its own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recipes.common.files import write_whole

LOG_NAME = "log.jsonl"

# What every record has, beside its scalars.
_POSITION = ("step", "sequences", "tokens", "seconds")

# These are drawn against sequences and tokens too: runs of different batch sizes compare there.
KEY_CURVES = ("loss/train", "loss/eval", "throughput/tokens_per_sec")

_LAYOUT = {
    "Training": {
        "loss": ["Multiline", ["loss/train", "loss/eval"]],
        "optimizer": ["Multiline", ["optimizer/lr", "optimizer/grad_norm"]],
    },
    "Speed": {
        "tokens per second": ["Multiline", ["throughput/tokens_per_sec"]],
        "utilisation": [
            "Multiline",
            ["throughput/device/mfu", "throughput/device/executed_flops_utilization"],
        ],
        "lost to": ["Multiline", ["throughput/padding_share", "time/data_wait_share"]],
    },
}


@contextlib.contextmanager
def _newest_file(directory: Path) -> Iterator[None]:
    """Within it, the next file of curves gets a name that comes behind all that are there.

    Readers go through the files by their names, which begin with the second in which they were
    made. A clock that was set back, or another node's, or two starts within a second, would put the
    new file before the old ones, and its points would be lost.
    """
    from tensorboard.summary.writer import event_file_writer

    names = (path.name.split(".") for path in directory.glob("events.out.tfevents.*"))
    newest = max((int(name[3]) for name in names if name[3].isdecimal()), default=0)
    now = event_file_writer.time
    if newest >= int(now.time()):
        first = iter([newest + 1])  # the name is what the clock is asked for first
        here = threading.get_ident()  # the threads of other curves look at the clock as well

        def clock() -> float:
            return next(first, now.time()) if threading.get_ident() == here else now.time()

        event_file_writer.time = SimpleNamespace(time=clock)
    try:
        yield
    finally:
        event_file_writer.time = now


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a `log.jsonl` in file order, and how many lines were no record.

    A machine that goes down while writing leaves a torn last line; nothing else makes one.
    """
    records: list[dict[str, Any]] = []
    broken = 0
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
            whole = all(isinstance(record[key], int | float) for key in _POSITION)
        except (ValueError, TypeError, KeyError):
            whole = False
        if whole:
            records.append(record)
        else:
            broken += 1
    return records, broken


class RunLog:
    """Writes the scalars of a run to `directory` and the console; a no-op on ranks above 0.

    Args:
        directory: the run's; gets `log.jsonl` and `tensorboard/`.
        total_steps: the last step of the run, for the console; None if only time decides.
        budget_seconds: then how much training time there is.
        resume_step: the checkpoint's step; 0 starts anew and drops everything logged before.
        rank: of this process.
        hparams: shown once as a table in TensorBoard's text tab.

    `earlier_seconds` is the wall time that earlier runs logged here, in seconds, steps that have
    to run again included, since they were paid for; 0 on ranks above 0.
    """

    def __init__(
        self,
        directory: Path,
        *,
        total_steps: int | None,
        budget_seconds: float | None = None,
        resume_step: int = 0,
        rank: int = 0,
        hparams: Mapping[str, object] | None = None,
    ):
        self.total_steps = total_steps
        self.budget_seconds = budget_seconds
        self.earlier_seconds = 0.0
        self._writes = rank == 0
        if not self._writes:
            return
        directory.mkdir(parents=True, exist_ok=True)
        last = self._drop_after(directory / LOG_NAME, resume_step)
        self._path = directory / LOG_NAME
        self._file = self._path.open("ab", buffering=0)
        self._unwritten = b""
        self._refused = False
        self._tensorboard = directory / "tensorboard"
        new = resume_step == 0 or not self._tensorboard.exists()
        self._points_lost = False
        # Readers drop earlier points at the purge step and beyond.
        ends = resume_step, last.get("sequences", 0), last.get("tokens", 0)
        self._open_curves([end + 1 if resume_step else 0 for end in ends])
        if new:
            self._by_steps.add_custom_scalars(_LAYOUT)
            if hparams:
                rows = "".join(f"| {name} | `{value}` |\n" for name, value in hparams.items())
                self._by_steps.add_text("hparams", "| setting | value |\n|---|---|\n" + rows, 0)

    def _open_curves(self, purge_steps: Sequence[int | None]) -> None:
        # Not at the top of the file: reading a log must not load torch.
        from torch.utils.tensorboard import SummaryWriter

        def writer(directory: Path, purge_step: int | None) -> SummaryWriter:
            with _newest_file(directory):
                return SummaryWriter(str(directory), purge_step=purge_step)

        self._by_steps, self._by_sequences, self._by_tokens = (
            writer(self._tensorboard / folder, purge_step)
            for folder, purge_step in zip(
                ("", "by_sequences", "by_tokens"), purge_steps, strict=True
            )
        )

    def _draw(self, action: Callable[[], None]) -> None:
        """What TensorBoard shows. A full disk ends its writing threads, and one of their next
        callers is told; then new ones take over, and what the old ones held is in the log alone.
        """
        try:
            action()
        except OSError as error:
            if not self._points_lost:
                what = f"points are missing there, {self._path.name} has them"
                print(f"{self._tensorboard}: {error.strerror}; {what}", flush=True)
            self._points_lost = True
            with contextlib.suppress(OSError):
                self._open_curves([None] * 3)
                action()

    def log(
        self, step: int, sequences: int, tokens: int, seconds: float, scalars: Mapping[str, float]
    ) -> None:
        """Record `scalars` of a training step.

        Args:
            step: optimizer steps done.
            sequences: trained on so far, over all ranks.
            tokens: real tokens trained on so far, over all ranks.
            seconds: wall time so far, earlier runs included.
            scalars: value by tag, e.g. `loss/train`, `optimizer/lr`, `throughput/tokens_per_sec`.
        """
        if self._writes:
            self._write(step, sequences, tokens, seconds, scalars)
            print(self._training_line(step, scalars), flush=True)

    def eval(
        self, step: int, sequences: int, tokens: int, seconds: float, scalars: Mapping[str, float]
    ) -> None:
        """Record `loss/eval` (nats per masked token), `accuracy/eval` (fraction), or whatever
        else was measured by its own tag; else as `log`.
        """
        if self._writes:
            self._write(step, sequences, tokens, seconds, scalars)
            print(self._eval_line(step, scalars), flush=True)

    def summarize(self, settings: Mapping[str, object], results: Mapping[str, float]) -> None:
        """Settings against results, for TensorBoard's table of hyper-parameters."""
        if self._writes:
            plain = {
                name: value if isinstance(value, bool | int | float | str) else str(value)
                for name, value in settings.items()
            }
            self._draw(lambda: self._by_steps.add_hparams(plain, dict(results), run_name="."))

    def flush(self) -> None:
        """Bring everything logged so far to the disk: before a checkpoint is published."""
        if self._writes:
            self._append()
            os.fsync(self._file.fileno())
            for writer in (self._by_steps, self._by_sequences, self._by_tokens):
                self._draw(writer.flush)

    def close(self) -> None:
        """Flush and close; nothing can be logged afterwards."""
        if self._writes:
            self.flush()
            if self._unwritten:
                lines = self._unwritten.count(b"\n")
                print(f"{self._path}: {lines} records could not be written", file=sys.stderr)
            self._file.close()
            for writer in (self._by_steps, self._by_sequences, self._by_tokens):
                self._draw(writer.close)
            self._writes = False

    def _drop_after(self, path: Path, resume_step: int) -> dict[str, Any]:
        """Rewrite `path` up to `resume_step`; returns the last record that stays, or {}."""
        if not path.exists():
            return {}
        records, broken = read_records(path)
        self.earlier_seconds = max((record["seconds"] for record in records), default=0.0)
        kept = [record for record in records if resume_step > 0 and record["step"] <= resume_step]
        if broken:
            print(f"{path}: {broken} torn line(s) dropped", file=sys.stderr)
        if len(kept) < len(records):
            dropped = len(records) - len(kept)
            print(f"{path}: {dropped} record(s) past step {resume_step} dropped, to be run again")
        write_whole(path, "".join(_json_line(record) for record in kept).encode())
        return kept[-1] if kept else {}

    def _write(
        self, step: int, sequences: int, tokens: int, seconds: float, scalars: Mapping[str, float]
    ) -> None:
        where = dict(zip(_POSITION, (step, sequences, tokens, seconds), strict=True))
        self._unwritten += _json_line({**where, **scalars}).encode()
        self._append()

        def points() -> None:
            for tag, value in scalars.items():
                self._by_steps.add_scalar(tag, value, step)
                if tag in KEY_CURVES:
                    self._by_sequences.add_scalar(f"by_sequences/{tag}", value, sequences)
                    self._by_tokens.add_scalar(f"by_tokens/{tag}", value, tokens)

        self._draw(points)

    def _append(self) -> None:
        """Write what is unwritten; a full disk keeps it in memory until there is space again."""
        try:
            # One write: only a crash of the machine, or a full disk, can tear a line.
            written = os.write(self._file.fileno(), self._unwritten)
            self._unwritten = self._unwritten[written:]
            self._refused = False
        except OSError as error:
            if not self._refused:
                print(f"{self._path}: {error.strerror}; records wait in memory", flush=True)
            self._refused = True

    def _position(self, step: int, scalars: Mapping[str, float]) -> str:
        if self.total_steps is not None:
            return f"step {step:>{len(str(self.total_steps))}}/{self.total_steps}"
        left = self._seconds_left(step, scalars)
        done = None if left is None or not self.budget_seconds else 1 - left / self.budget_seconds
        return f"step {step:>6}  {_shown(done, '{:4.0%}'):>4} of the time"

    def _seconds_left(self, step: int, scalars: Mapping[str, float]) -> float | None:
        if self.total_steps is not None:
            step_seconds = scalars.get("time/step_seconds")
            return None if step_seconds is None else step_seconds * (self.total_steps - step)
        spent = scalars.get("time/training_seconds")
        if spent is None or self.budget_seconds is None:
            return None
        return max(0.0, self.budget_seconds - spent)

    def _training_line(self, step: int, scalars: Mapping[str, float]) -> str:
        eta = self._seconds_left(step, scalars)
        fields = (
            ("loss", _shown(scalars.get("loss/train"), "{:.4f}"), 8),
            ("lr", _shown(scalars.get("optimizer/lr"), "{:.2e}"), 8),
            ("grad", _shown(scalars.get("optimizer/grad_norm"), "{:.3g}"), 6),
            ("tok/s", _shown(scalars.get("throughput/tokens_per_sec"), "{:,.0f}"), 10),
            ("pad", _shown(scalars.get("throughput/padding_share"), "{:.1%}"), 5),
            ("MFU", _shown(scalars.get("throughput/device/mfu"), "{:.1%}"), 5),
            ("ETA", "-" if eta is None else duration(eta), 6),
            ("$", _shown(scalars.get("cost/dollars"), "{:.2f}"), 5),
        )
        return "  ".join(
            [
                self._position(step, scalars),
                *(f"{name} {value:>{width}}" for name, value, width in fields),
            ]
        )

    def _eval_line(self, step: int, scalars: Mapping[str, float]) -> str:
        measured = {tag: value for tag, value in scalars.items() if tag.endswith("/eval")}
        shown = (
            f"{tag.removesuffix('/eval')} {shown_measure(value)}"
            for tag, value in (measured or scalars).items()
        )
        return f"{self._position(step, scalars)}  evaluation: {'  '.join(shown)}"


def duration(seconds: float) -> str:
    """Seconds in the two units that matter: `42s`, `3m07s`, `5h04m`, `2d03h`."""
    if not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    for size, unit, part, subunit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{subunit}"
    return f"{whole // 60}m{whole % 60:02d}s"


def shown_measure(value: float) -> str:
    """Four decimals of what is about 1, as most measures are; six digits of what is large."""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.6g}"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _json_line(record: Mapping[str, object]) -> str:
    # JSON has no NaN and no infinity; other readers refuse the words that Python writes for them.
    valid = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(valid, allow_nan=False) + "\n"
