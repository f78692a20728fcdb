"""Tokens per second, model FLOPs utilisation, padding and waiting, counted honestly.

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

from recipes.common.gpus import peak_flops
from recipes.engine import peak_memory


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
    and is set back by `start()` (after compilation and warm-up). The one behind the elapsed time
    never stops.

    Args:
        parameters: N of Eq. 3.
        training_flops: executed FLOPs as a function of the counts (see `model.config`).
        device: where this rank computes; the host waits for its queue before reading the clock.
        device_name: as the driver gives it; selects the peak.
        devices: how many of them the run uses, one per rank.
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
        earlier_seconds: float = 0.0,
        earlier_training_seconds: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.parameters = parameters
        self.training_flops = training_flops
        self.device = device
        self.peak = peak_flops(device_name)
        self.devices = devices
        self.earlier_seconds = earlier_seconds
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
        """Keep what happens inside out of the rates; it stays in the elapsed time."""
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

    def seconds_of_this_start(self) -> float:
        """Wall time of this run alone, in seconds, pauses and warm-up included."""
        return self.elapsed_seconds() - self.earlier_seconds

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
            allocated, reserved = peak_memory.peak_bytes()
            scalars["memory/device_peak_allocated_gb"] = allocated / 1e9
            scalars["memory/device_peak_reserved_gb"] = reserved / 1e9
        self.start()
        return scalars

    def _synchronized_clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self._clock()


def _host_peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
