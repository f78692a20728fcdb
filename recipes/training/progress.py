"""How far a run is, and whether its weights are worth anything."""

from __future__ import annotations

import math
from dataclasses import dataclass

from recipes.common.errors import UserError
from recipes.engine.world import World

MAX_SKIPPED_IN_A_ROW = 10
MAX_SKIPPED_SHARE = 0.1
"""Largest share of skipped steps in a run that ends well; one step may be skipped in any run."""
CURE = "a lower --learning-rate or a longer --warmup-fraction is the usual cure, in a new --output."


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Optimizer steps done, the skipped ones included."""
    sequences: int = 0
    """Sequences trained on, over all ranks."""
    tokens: int = 0
    """Real tokens trained on, over all ranks."""
    seconds: float = 0.0
    """Wall time up to here, earlier runs included."""
    skipped: int = 0
    """Steps without an update, because the loss or the gradient was not finite."""
    skipped_in_a_row: int = 0
    """How many of the newest steps had no update."""
    training_seconds: float = 0.0
    """Wall time without evaluation and saving; steps that ran again count once."""
    gpu_seconds: float = 0.0
    """GPUs times wall time up to here, each start with its own number of GPUs; 0 on a CPU."""
    dollars: float = 0.0
    """Their price, each start at its own."""

    def after_step(
        self,
        counts: dict[str, int],
        *,
        applied: bool,
        seconds: float,
        training_seconds: float,
        gpu_seconds: float = 0.0,
        dollars: float = 0.0,
    ) -> Progress:
        """Return the progress one step later.

        Args:
            counts: what the step's global batch held.
            applied: whether the weights were updated.
            seconds, training_seconds, gpu_seconds, dollars: as in the fields.
        """
        return Progress(
            self.step + 1,
            self.sequences + counts["sequences"],
            self.tokens + counts["real_tokens"],
            seconds,
            self.skipped + (not applied),
            0 if applied else self.skipped_in_a_row + 1,
            training_seconds,
            gpu_seconds,
            dollars,
        )

    @property
    def position(self) -> tuple[int, int, int, float]:
        """Position of a record in the log: step, sequences, tokens, seconds."""
        return self.step, self.sequences, self.tokens, self.seconds


def on_skipped(done: Progress, loss: float, norm: float, world: World) -> None:
    """Say that a step had no effect.

    Raises:
        UserError: too many in a row.
    """
    message = (
        f"step {done.step}: loss {loss:.4g}, gradient norm {norm:.4g}: no update "
        f"({done.skipped} skipped so far)"
    )
    if world.rank == 0:
        print(message, flush=True)
    if done.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise UserError(
            f"{message}; the last {done.skipped_in_a_row} steps were all without effect. Starting "
            f"again goes back to the last checkpoint; {CURE}"
        )


def check_ending(done: Progress, loss: float) -> None:
    """Check a run before its export.

    Args:
        loss: loss on held-out text; 0 where this start had nothing to train any more.

    Raises:
        UserError: the weights are not those that the settings ask for, or are good for nothing.
    """
    if not math.isfinite(loss):
        raise UserError(f"the loss on held-out text is {loss:.4g}. Nothing is exported; {CURE}")
    if done.skipped_in_a_row > 1 or done.skipped > max(1, MAX_SKIPPED_SHARE * done.step):
        raise UserError(
            f"{done.skipped} of {done.step} steps were without effect, "
            f"{done.skipped_in_a_row} of them at the very end: the loss or the gradient was not "
            f"finite. Nothing is exported; {CURE}"
        )
