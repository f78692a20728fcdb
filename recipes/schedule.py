"""How long a run is and which learning rate each step has.

Durations are counted in sequences, so that rounding the global batch for a world size, or choosing
another one, does not change how much text a run sees or where its warm-up ends.
"""

from __future__ import annotations

import math

# The paper's two runs: steps of 4,096 sequences (appendix H).
NAMED_DURATIONS = {"70k-steps": 70_000 * 4096, "178k-steps": 178_000 * 4096}


def duration_in_sequences(text: str) -> int:
    """`70k-steps`, `178k-steps` (the paper's, of 4,096 sequences), or a number of sequences.

    Raises:
        ValueError: neither.
    """
    if text in NAMED_DURATIONS:
        return NAMED_DURATIONS[text]
    try:
        sequences = int(text.replace("_", "").replace(",", ""))
    except ValueError:
        sequences = 0
    if sequences < 1:
        names = ", ".join(f"{name} ({count:,})" for name, count in NAMED_DURATIONS.items())
        raise ValueError(f"duration {text!r} is neither a number of sequences nor one of {names}")
    return sequences


def learning_rate(
    step: int, total_steps: int, *, peak: float, warmup_fraction: float, final_fraction: float
) -> float:
    """Linear warm-up, then linear decay.

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


def adamw_weight_decay(decoupled: float, peak: float) -> float:
    """The published decay, handed to AdamW.

    The published recipe multiplies weights by 1 - (lr / peak) * decay at every step, AdamW by
    1 - lr * decay. Handing the published 1e-5 to AdamW would be no decay at all.
    """
    return decoupled / peak
