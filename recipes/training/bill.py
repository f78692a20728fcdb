"""What a run costs over all its starts, each on its own number of GPUs and at its own price."""

from __future__ import annotations

from dataclasses import dataclass

GPU_HOURS, DOLLARS = "cost/gpu_hours", "cost/dollars"
"""Names in the log."""


@dataclass(frozen=True)
class Bill:
    """Adds the cost of one start of a run to that of the starts before it.

    Wall time is charged without pauses: the invoice does not stop for an evaluation.
    """

    gpus: int
    """Of this start; 0 on a CPU, whose time has no price here."""
    dollars_per_gpu_hour: float
    """At this start."""
    earlier_gpu_seconds: float = 0.0
    earlier_dollars: float = 0.0

    def gpu_seconds(self, seconds: float) -> float:
        """Return the GPU-seconds of all starts when this one is `seconds` old."""
        return self.earlier_gpu_seconds + self.gpus * seconds

    def dollars(self, seconds: float) -> float:
        """Return the dollars of all starts when this one is `seconds` old."""
        return self.earlier_dollars + self.gpus * seconds / 3600 * self.dollars_per_gpu_hour
