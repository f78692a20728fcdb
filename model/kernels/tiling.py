"""Which attention kernel a length gets. No Triton here: the planner asks where there is none."""

from __future__ import annotations

# The longest sequence that one program holds, at up to 64 columns a head; half as long at up to
# 128, and so on.
WHOLE_SEQUENCE = 128


def is_whole(max_length: int, head_dim: int) -> bool:
    """Say whether one program of the Triton kernel holds a whole (sequence, head)."""
    return _power_of_2(max_length) * max(64, _power_of_2(head_dim)) <= WHOLE_SEQUENCE * 64


def _power_of_2(number: int) -> int:
    """Round `number` up to a power of two."""
    return 1 << (number - 1).bit_length()
