"""Tables S2 and S3 of the paper as they are printed, and the two cells that do not add up."""

from __future__ import annotations

from dataclasses import dataclass

from recipes.common.gpus import SHORT_NAMES, Gpu

SEQUENCE_LENGTH = 128
MASK_PROBABILITY = 0.30
"""Of RapidBERT in the published pretraining."""
PARAMETERS = {"rapidbert-base": 137e6, "bert-base": 110e6}
"""N of Eq. 3 as the paper rounds it."""


@dataclass(frozen=True)
class ScalingRow:
    """A row of Table S2: pretraining on a number of GPUs."""

    model: str
    gpu: Gpu
    gpus: int
    tokens_per_second: float
    mfu: float
    """As printed, a fraction."""
    minutes: float
    """To a GLUE score of 79.6."""
    micro_batch: int
    global_batch: int = 4096

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return self.global_batch // (self.gpus * self.micro_batch)

    @property
    def step_seconds(self) -> float:
        """Time of a step, from the printed throughput of full sequences."""
        return self.global_batch * SEQUENCE_LENGTH / self.tokens_per_second

    @property
    def computed_mfu(self) -> float:
        """MFU by Eq. 3 from the printed throughput."""
        peak = self.gpu.peak_bf16_tflops * 1e12
        return 6 * PARAMETERS[self.model] * self.tokens_per_second / (self.gpus * peak)

    def __str__(self) -> str:
        return f"{self.gpus} x {self.gpu.short_name}"


_A100_40, _A100_80 = SHORT_NAMES["a100-40"], SHORT_NAMES["a100-80"]
TABLE_S2 = (
    ScalingRow("bert-base", _A100_80, 8, 0.4e6, 0.104, 110.4, 512),
    ScalingRow("rapidbert-base", _A100_80, 8, 1.1e6, 0.3997, 67.8, 512),
    ScalingRow("rapidbert-base", _A100_40, 8, 0.938e6, 0.309, 76.8, 128),
    ScalingRow("rapidbert-base", _A100_40, 16, 1.88e6, 0.310, 38.5, 128),
    ScalingRow("rapidbert-base", _A100_40, 32, 3.15e6, 0.259, 23.1, 128),
    ScalingRow("rapidbert-base", _A100_40, 64, 4.77e6, 0.196, 15.7, 64),
)


@dataclass(frozen=True)
class CostCell:
    """A pair of cells of Table S3: hours on eight GPUs, and what they cost."""

    score: float
    gpu: Gpu
    hours: float
    dollars: float
    """As printed."""
    gpus: int = 8

    @property
    def computed_dollars(self) -> float:
        """Hours x GPUs x price of an hour."""
        assert self.gpu.dollars_per_hour is not None
        return self.hours * self.gpus * self.gpu.dollars_per_hour


TABLE_S3 = (
    CostCell(79.6, _A100_80, 1.13, 22.60),
    CostCell(79.6, _A100_40, 1.28, 20.00),
    CostCell(82.2, _A100_80, 2.81, 56.20),
    CostCell(82.2, _A100_40, 3.19, 51.00),
    CostCell(83.4, _A100_80, 5.27, 105.40),
    CostCell(83.4, _A100_40, 5.99, 95.78),
)


def inconsistencies() -> list[str]:
    """Say which printed cells do not follow from their neighbours, with the arithmetic."""
    return [*throughput_inconsistencies(), *cost_inconsistencies()]


def throughput_inconsistencies() -> list[str]:
    """Say which cells of Table S2 do not follow from their neighbours."""
    return [
        f"Table S2, {row}, {row.model}: {row.tokens_per_second / 1e6:g}e6 tokens/s are "
        f"{row.computed_mfu:.1%} MFU by Eq. 3, the table says {row.mfu:.2%}, which would be "
        f"{row.tokens_per_second * row.mfu / row.computed_mfu / 1e6:.3f}e6 tokens/s"
        for row in TABLE_S2
        if abs(row.computed_mfu / row.mfu - 1) > 0.02
    ]


def cost_inconsistencies() -> list[str]:
    """Say which cells of Table S3 do not follow from their neighbours."""
    return [
        f"Table S3, {cell.score} on {cell.gpu.short_name}: {cell.hours} h x {cell.gpus} x "
        f"${cell.gpu.dollars_per_hour:.2f} = ${cell.computed_dollars:.2f}, the table says "
        f"${cell.dollars:.2f}"
        for cell in TABLE_S3
        if abs(cell.computed_dollars - cell.dollars) > 0.10
    ]
