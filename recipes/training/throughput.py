"""Tokens per second, model FLOPs utilisation, padding, waiting and cost, counted honestly.

Tokens are real tokens; padding is reported beside them and never earns anything. Two utilisations
are given: `mfu` counts 6 FLOPs per parameter and real token (Eq. 3 of the paper), whether they are
executed or not, so that it compares with published numbers; `executed_flops_utilization` counts
the matrix multiplications that really run (the head sees masked tokens only, attention is added),
so that it says how far the hardware is from its limit. The two differ by about a sixth.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

# Dense bf16 tensor-core peak in FLOP/s by the exact device name that the driver reports. The
# vendors' data sheets print twice these numbers where they assume 2:4 sparsity. Names are matched
# whole: parts of names lie (A10 is in A100, H100 covers three chips, an A100-SXM-64GB has more
# cores than an A100-SXM4-80GB, a MIG slice carries its parent's name).
PEAK_BF16_FLOPS = {
    # NVIDIA A100 data sheet (2021): 312 for every form factor
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    # NVIDIA H100 data sheet: 1979, 1513 and 1671 with sparsity
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    # NVIDIA H200 data sheet: 1979 and 1671 with sparsity
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    # NVIDIA GH200 data sheet: 1979 with sparsity
    "NVIDIA GH200 480GB": 989e12,
    # NVIDIA DGX B200 and GB200 NVL72 data sheets, per GPU: 4500 and 5000 with sparsity
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
    # NVIDIA A10, A30 and A40 data sheets
    "NVIDIA A10": 125e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A40": 149.7e12,
    # NVIDIA L4 (242 with sparsity), L40 and L40S data sheets
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181.05e12,
    "NVIDIA L40S": 362.05e12,
    # NVIDIA Ampere GA102 and Ada white papers, with fp32 accumulation
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    # AMD Instinct MI300X data sheet
    "AMD Instinct MI300X": 1307.4e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak in FLOP/s of `device_name` (as `torch.cuda.get_device_name()` gives it).

    None for a device that the table does not hold, a CPU for instance: never a guess.
    """
    return PEAK_BF16_FLOPS.get(device_name)


def describe_peak(device_name: str) -> str:
    """The line with which a run says which peak its MFU stands on, or that it will have none."""
    peak = peak_flops(device_name)
    if peak is None:
        return f"peak of {device_name} unknown: no MFU"
    return f"peak of {device_name}: {peak / 1e12:g} TFLOP/s (dense bf16)"


def mfu(parameters: int, tokens_per_second: float, devices: int, peak: float) -> float:
    """Model FLOPs utilisation, 6·N·T / (n·peak), as a fraction (Eq. 3 of the paper).

    Args:
        parameters: N, the tied decoder counted once.
        tokens_per_second: T, real tokens over all devices.
        devices: n.
        peak: FLOP/s of one device.
    """
    return 6 * parameters * tokens_per_second / (devices * peak)


def executed_flops_utilization(flops: float, seconds: float, devices: int, peak: float) -> float:
    """Share of the peak of `devices` devices that `flops` executed in `seconds` amount to."""
    return flops / (seconds * devices * peak)


class TrainingFlops(Protocol):
    """Executed forward and backward FLOPs of that many real tokens, masked tokens, token pairs."""

    def __call__(self, *, tokens: int, masked_tokens: int, token_pairs: int) -> float: ...


@dataclass
class _Counts:
    steps: int = 0
    sequences: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    masked_tokens: int = 0
    token_pairs: int = 0
    data_wait_seconds: float = 0.0


class ThroughputMeter:
    """Rates over windows of optimizer steps; all counts are global sums over every rank.

    Two clocks run. The one behind the rates stands still under `pause()` (evaluation, checkpoints)
    and is set back by `start()` (after compilation and warm-up). The one behind the cost never
    stops, because the invoice does not.

    Args:
        parameters: N of Eq. 3.
        training_flops: executed FLOPs as a function of the counts (see `model.config`).
        device: where this rank computes; the host waits for its queue before reading the clock.
        device_name: as the driver gives it; selects the peak.
        devices: how many of them the run uses, one per rank.
        dollars_per_device_hour: price of one device for one hour.
        earlier_seconds: wall time that earlier runs have spent on the same training.
        earlier_training_seconds: what they spent on the steps that this one goes on from.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        parameters: int,
        training_flops: TrainingFlops,
        device: torch.device,
        device_name: str,
        devices: int,
        dollars_per_device_hour: float = 0.0,
        earlier_seconds: float = 0.0,
        earlier_training_seconds: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.parameters = parameters
        self.training_flops = training_flops
        self.device = device
        self.peak = peak_flops(device_name)
        self.devices = devices
        self.dollars_per_device_hour = dollars_per_device_hour
        self._clock = clock
        self._began = clock() - earlier_seconds
        self._training_began = clock() - earlier_training_seconds
        self.start()

    def start(self) -> None:
        """Open a new window; forget what was counted since the last one (warm-up steps)."""
        self._counts = _Counts()
        self._paused_seconds = 0.0
        self._window_began = self._synchronized_clock()

    def step(
        self,
        *,
        sequences: int,
        real_tokens: int,
        padded_tokens: int,
        masked_tokens: int,
        token_pairs: int,
        data_wait_seconds: float,
    ) -> None:
        """Count one optimizer step of the global batch. Costs no synchronisation.

        Args:
            sequences: non-empty sequences.
            real_tokens: tokens of those sequences.
            padded_tokens: rows that went through the model, real tokens and padding together.
            masked_tokens: tokens that entered the loss.
            token_pairs: sum of the squared sequence lengths (what attention computes).
            data_wait_seconds: how long the step stood still for its batches.
        """
        counts = self._counts
        counts.steps += 1
        counts.sequences += sequences
        counts.real_tokens += real_tokens
        counts.padded_tokens += padded_tokens
        counts.masked_tokens += masked_tokens
        counts.token_pairs += token_pairs
        counts.data_wait_seconds += data_wait_seconds

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keep what happens inside out of the rates; it stays in elapsed time and in cost."""
        # Waits on both edges: queued training work must not be charged to the evaluation, nor
        # the evaluation's to the next window.
        began = self._synchronized_clock()
        try:
            yield
        finally:
            paused = self._synchronized_clock() - began
            self._paused_seconds += paused
            self._training_began += paused

    def elapsed_seconds(self) -> float:
        """Wall time of this and earlier runs, in seconds, pauses and warm-up included."""
        return self._clock() - self._began

    def training_seconds(self) -> float:
        """Wall time of the training so far, in seconds, without pauses; warm-up included."""
        return self._clock() - self._training_began

    def window(self) -> dict[str, float]:
        """Rates since the last window under the names they are logged by; opens the next window.

        Shares and utilisations are fractions, times seconds, memory GB (1e9 bytes). Utilisations
        are absent where the device's peak is unknown, device memory where there is no CUDA device.

        Raises:
            ValueError: no step was counted since the last window.
        """
        counts = self._counts
        if counts.steps == 0:
            raise ValueError("no optimizer step was counted since the last window")
        seconds = self._synchronized_clock() - self._window_began - self._paused_seconds
        tokens_per_second = counts.real_tokens / seconds
        scalars = {
            "throughput/tokens_per_sec": tokens_per_second,
            "throughput/sequences_per_sec": counts.sequences / seconds,
            "throughput/device/tokens_per_sec": tokens_per_second / self.devices,
            "throughput/padding_share": 1 - counts.real_tokens / counts.padded_tokens,
            "time/step_seconds": seconds / counts.steps,
            "time/data_wait_seconds": counts.data_wait_seconds / counts.steps,
            "time/data_wait_share": counts.data_wait_seconds / seconds,
            "cost/dollars": self.dollars_per_device_hour
            * self.devices
            * self.elapsed_seconds()
            / 3600,
            "memory/host_peak_gb": _host_peak_bytes() / 1e9,
        }
        if self.peak is not None:
            flops = self.training_flops(
                tokens=counts.real_tokens,
                masked_tokens=counts.masked_tokens,
                token_pairs=counts.token_pairs,
            )
            scalars["throughput/device/mfu"] = mfu(
                self.parameters, tokens_per_second, self.devices, self.peak
            )
            scalars["throughput/device/executed_flops_utilization"] = executed_flops_utilization(
                flops, seconds, self.devices, self.peak
            )
        if self.device.type == "cuda":
            scalars["memory/device_peak_allocated_gb"] = (
                torch.cuda.max_memory_allocated(self.device) / 1e9
            )
            scalars["memory/device_peak_reserved_gb"] = (
                torch.cuda.max_memory_reserved(self.device) / 1e9
            )
        self.start()
        return scalars

    def _synchronized_clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self._clock()


def _host_peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
