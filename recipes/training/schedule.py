"""How long a run is and which learning rate each step has.

Durations are counted in sequences, so that rounding the global batch for a world size, or choosing
another one, does not change how much text a run sees or where its warm-up ends. A run may instead
have a budget of time, whose schedule follows the clock: what can be learned in so many minutes on
this machine, whatever its speed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from recipes.common.numbers import Range, whole

# The paper's two runs: steps of 4,096 sequences (appendix H).
STEP_SEQUENCES = 4096
NAMED_DURATIONS = {"70k-steps": 70_000 * STEP_SEQUENCES, "178k-steps": 178_000 * STEP_SEQUENCES}


MOST_SEQUENCES = 10**12


def duration_in_sequences(text: str) -> int:
    """Read `70k-steps`, `178k-steps` (the paper's, of 4,096 sequences), or a number.

    Raises:
        ValueError: neither; says what may be meant.
    """
    if text in NAMED_DURATIONS:
        return NAMED_DURATIONS[text]
    in_range = whole(1, MOST_SEQUENCES)
    try:
        return int(in_range.read(text.replace(",", "")))
    except ValueError:
        names = ", ".join(f"{name} ({count:,})" for name, count in NAMED_DURATIONS.items())
        meant = _meant(text, in_range)
        raise ValueError(
            f"neither a number of sequences, from 1 to {MOST_SEQUENCES:,}, nor one of {names}"
            + (f"; did you mean {' or '.join(meant)}?" if meant else "")
        ) from None


def _meant(text: str, in_range: Range) -> list[str]:
    """Guess: `70k` may be sequences or the paper's run, `100k-step` steps of 4,096."""
    found = re.fullmatch(r"(.*?)[- ]*(steps?)?", text.strip().lower(), re.DOTALL)
    count = found and in_range.meant(found[1])
    if not found or count is None:
        return []
    sequences = int(count) * STEP_SEQUENCES
    named = [name for name, known in NAMED_DURATIONS.items() if known == sequences]
    if not found[2]:
        return [str(count), *named]
    return named or [str(sequences)] * (sequences in in_range)


def learning_rate(
    step: int, total_steps: int, *, peak: float, warmup_fraction: float, final_fraction: float
) -> float:
    """Linear warm-up, then linear decay.

    The published runs used Composer's schedule, whose first step has the rate 0 and whose last step
    misses the end of the decay. Here the rate of step k is Composer's of step k + 1: no step is
    without effect. Over 70,000 steps the rates add up to 6e-7 of their sum more.

    Args:
        step: optimizer steps done before this one, from 0.
        total_steps: steps of the run.
        peak: reached by the last step of the warm-up.
        warmup_fraction: share of the steps that warm up; at least one step does.
        final_fraction: of the peak, reached by the last step.
    """
    warmup = max(1, math.ceil(warmup_fraction * total_steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step + 1 - warmup) / (total_steps - warmup)
    return peak * (1 - (1 - final_fraction) * done)


def learning_rate_at(
    fraction: float, *, peak: float, warmup_fraction: float, final_fraction: float
) -> float:
    """The same schedule where the number of steps is not known.

    Args:
        fraction: of the run that is done, from 0; 1 and beyond is its end.
        peak, warmup_fraction, final_fraction: as for `learning_rate`.
    """
    if fraction < warmup_fraction:
        return peak * fraction / warmup_fraction
    if fraction >= 1 or warmup_fraction >= 1:
        return peak * final_fraction
    done = (fraction - warmup_fraction) / (1 - warmup_fraction)
    return peak * (1 - (1 - final_fraction) * done)


class StepBudget:
    """A run of so many optimizer steps, of which `begun` have begun."""

    def __init__(self, total_steps: int, begun: int = 0):
        self.total_steps = total_steps
        self.begun = begun

    def begin_step(self, seconds: float) -> None:
        """Call before every step; `seconds` is the training clock, of no meaning here."""
        self.begun += 1

    @property
    def spent(self) -> bool:
        """Whether the step that has begun is the last one."""
        return self.begun >= self.total_steps

    def learning_rate(self, **shape: float) -> float:
        """Return the rate of the step that has begun; `shape` as for `learning_rate`."""
        return learning_rate(self.begun - 1, self.total_steps, **shape)

    def reached(self, shares: Sequence[float]) -> list[float]:
        """Return which of these shares of the run the step that has begun completes."""
        before, now = ((self.begun - k) / self.total_steps for k in (1, 0))
        return [share for share in shares if before < share <= now]


class TimeBudget:
    """A run of so many seconds of training; the same methods as a `StepBudget`.

    Only the clock that `begin_step` is given counts. It must be the same on every rank. It was read
    when the batch of the step was fetched: during the step before.
    """

    def __init__(self, seconds: float, elapsed: float = 0.0):
        self.seconds = seconds
        self._before = self.elapsed = elapsed

    def begin_step(self, seconds: float) -> None:
        """Begin a step whose batch was fetched after so many seconds of training."""
        self._before, self.elapsed = self.elapsed, seconds

    @property
    def spent(self) -> bool:
        """The last step is the first one whose batch was fetched when the time was over."""
        return self.elapsed >= self.seconds

    def learning_rate(self, **shape: float) -> float:
        return learning_rate_at(self.elapsed / self.seconds, **shape)

    def reached(self, shares: Sequence[float]) -> list[float]:
        before, now = self._before / self.seconds, self.elapsed / self.seconds
        return [share for share in shares if before < share <= now]


Budget = StepBudget | TimeBudget


def adamw_weight_decay(decoupled: float, peak: float) -> float:
    """The published decay, handed to AdamW.

    The published recipe multiplies weights by 1 - (lr / peak) * decay at every step, AdamW by
    1 - lr * decay. Handing the published 1e-5 to AdamW would be no decay at all.
    """
    return decoupled / peak
