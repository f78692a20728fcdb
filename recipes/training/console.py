"""What a run says on the console: lines in a file, and in a terminal one live line below them."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from recipes.common.tables import shown

LIVE_SECONDS = 0.5
"""Between two changes of the live line."""
WIDE = 120
"""Columns of a terminal that has room for a bar, and for columns that stay where they are."""


class Console:
    """The console of a run, on rank 0. `close` it before anything else is to be seen.

    In a terminal the live line takes the place of the lines of training steps; everything that is
    printed meanwhile, by whomever in this process, stands above it.

    Args:
        total_steps: the last step of the run; None if only time decides.
        budget_seconds: then how much training time there is.
    """

    def __init__(self, total_steps: int | None, budget_seconds: float | None = None):
        self.total_steps = total_steps
        self.budget_seconds = budget_seconds
        self._scalars: Mapping[str, float] = {}
        self._began: tuple[int, float] | None = None
        self._shown = 0.0
        self._streams: tuple[TextIO, TextIO] = sys.stdout, sys.stderr
        self._bar: tqdm[None] | None = None
        if _is_screen(sys.stdout):
            self._bar = tqdm(
                total=total_steps or 1,
                file=sys.stdout,
                dynamic_ncols=True,
                leave=False,
            )
            sys.stdout, sys.stderr = map(DummyTqdmFile, self._streams)

    def step(self, step: int) -> None:
        """Show that a step is done."""
        now = time.monotonic()
        self._began = self._began or (step, now)
        if self._bar is not None and now - self._shown > LIVE_SECONDS:
            self._show(step, now)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Show the scalars of a training step."""
        self._scalars = scalars
        if self._bar is None:
            print(self._training_line(step, scalars), flush=True)
        else:
            self._show(step, time.monotonic())

    def eval(self, step: int, scalars: Mapping[str, float]) -> None:
        """Print what an evaluation has measured."""
        print(self._eval_line(step, scalars), flush=True)

    def close(self) -> None:
        """Take the live line away; in a terminal, what it showed last stays as a line."""
        if self._bar is None:
            return
        sys.stdout, sys.stderr = self._streams
        self._bar.close()
        if self._scalars:
            print(self._bar.desc, flush=True)
        self._bar = None

    def _show(self, step: int, now: float) -> None:
        assert self._bar is not None
        self._shown = now
        self._bar.n = step if self.total_steps is not None else self._time_done(step)
        columns = shutil.get_terminal_size().columns
        wide = columns >= WIDE
        self._bar.bar_format = "{percentage:3.0f}% {bar:12} {desc}" if wide else "{desc}"
        line = self._training_line(step, self._scalars, wide=wide)
        # A line that wraps could not be written over; tqdm cuts only those with a bar.
        self._bar.set_description_str(line if wide else line[: columns - 1])

    def _time_done(self, step: int) -> float:
        left = self._seconds_left(step, self._scalars)
        return 0.0 if left is None or not self.budget_seconds else 1 - left / self.budget_seconds

    def _position(self, step: int, scalars: Mapping[str, float]) -> str:
        if self.total_steps is not None:
            return f"step {step:>{len(str(self.total_steps))}}/{self.total_steps}"
        left = self._seconds_left(step, scalars)
        done = None if left is None or not self.budget_seconds else 1 - left / self.budget_seconds
        return f"step {step:>6}  {shown(done, '{:4.0%}'):>4} of the time"

    def _seconds_left(self, step: int, scalars: Mapping[str, float]) -> float | None:
        if self.total_steps is not None:
            step_seconds = scalars.get("time/step_seconds", self._own_step_seconds(step))
            return None if step_seconds is None else step_seconds * (self.total_steps - step)
        spent = scalars.get("time/training_seconds")
        if spent is None or self.budget_seconds is None:
            return None
        return max(0.0, self.budget_seconds - spent)

    def _own_step_seconds(self, step: int) -> float | None:
        if self._began is None or step <= self._began[0]:
            return None
        return (time.monotonic() - self._began[1]) / (step - self._began[0])

    def _training_line(self, step: int, scalars: Mapping[str, float], *, wide: bool = True) -> str:
        """Return the line of a step, without gaps if it is not wide.

        What a narrow terminal cuts off stands last: what one looks at seldom.
        """
        eta = self._seconds_left(step, scalars)
        fields = [
            ("loss", shown(scalars.get("loss/train"), "{:.4f}"), 8),
            ("tok/s", shown(scalars.get("throughput/tokens_per_sec"), "{:,.0f}"), 10),
        ]
        # What this run never has gets no column: padding in a finetuning, MFU and dollars on a CPU.
        if "throughput/device/mfu" in scalars:
            fields.append(("MFU", shown(scalars["throughput/device/mfu"], "{:.1%}"), 5))
        fields.append(("ETA", "-" if eta is None else duration(eta), 6))
        if scalars.get("cost/dollars"):
            fields.append(("$", f"{scalars['cost/dollars']:.2f}", 5))
        if "throughput/padding_share" in scalars:
            fields.append(("pad", shown(scalars["throughput/padding_share"], "{:.1%}"), 5))
        fields += [
            ("lr", shown(scalars.get("optimizer/lr"), "{:.2e}"), 8),
            ("grad", shown(scalars.get("optimizer/grad_norm"), "{:.3g}"), 6),
        ]
        if not scalars:  # live, before the first of them
            fields = [field for field in fields if field[0] == "ETA"]
        values = (f"{name} {value:>{width if wide else 0}}" for name, value, width in fields)
        position = self._position(step, scalars)
        if not wide:
            position = " ".join(position.removesuffix(" of the time").split())
        return "  ".join([position, *values])

    def _eval_line(self, step: int, scalars: Mapping[str, float]) -> str:
        measured = {tag: value for tag, value in scalars.items() if tag.endswith("/eval")}
        parts = (
            f"{tag.removesuffix('/eval')} {shown_measure(value)}"
            for tag, value in (measured or scalars).items()
        )
        return f"{self._position(step, scalars)}  evaluation: {'  '.join(parts)}"


def _is_screen(stream: TextIO) -> bool:
    """Whether it is a terminal with a size; without one tqdm would show nothing there.

    One that calls itself dumb cannot write over a line.
    """
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.get_terminal_size(stream.fileno()).lines > 0
    except OSError:
        return True


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
