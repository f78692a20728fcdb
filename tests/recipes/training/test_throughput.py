import time
from collections.abc import Callable

import pytest
import torch

from model.config import preset, training_flops
from recipes.common.gpus import peak_flops
from recipes.training.throughput import ThroughputMeter, executed_flops_utilization, mfu

CPU = torch.device("cpu")


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def flops(*, tokens: int, masked_tokens: int, token_pairs: int) -> float:
    return 2e9 * tokens + 1e9 * masked_tokens + 1e6 * token_pairs


def meter(clock: Callable[[], float], **changes) -> ThroughputMeter:
    settings = {
        "parameters": 137_000_000,
        "training_flops": flops,
        "device": CPU,
        "device_name": "NVIDIA A100-SXM4-80GB",
        "devices": 8,
        "clock": clock,
        **changes,
    }
    return ThroughputMeter(**settings)


def count(meter: ThroughputMeter, **changes) -> None:
    settings = {
        "sequences": 4,
        "real_tokens": 300,
        "padded_tokens": 400,
        "masked_tokens": 90,
        "token_pairs": 25_000,
        "data_wait_seconds": 0.25,
        **changes,
    }
    meter.step(**settings)


# Table S2. Its first RapidBERT row says 39.97% at 1.1e6 tokens/s; Eq. 3 gives 36.2%.
@pytest.mark.parametrize(
    ("tokens_per_second", "devices", "percent"),
    [
        (1.1e6, 8, 36.2),
        (0.938e6, 8, 30.9),
        (1.88e6, 16, 31.0),
        (3.15e6, 32, 25.9),
        (4.77e6, 64, 19.6),
    ],
)
def test_mfu_gives_the_rows_of_the_paper(tokens_per_second, devices, percent):
    peak = peak_flops("NVIDIA A100-SXM4-40GB")
    assert 100 * mfu(137_000_000, tokens_per_second, devices, peak) == pytest.approx(
        percent, abs=0.05
    )


def test_mfu_and_executed_flops_by_hand():
    # 6·1e8·1e6 = 6e14 of 2·3e14; 1.2e15 in 4 s = 3e14 of 2·3e14
    assert mfu(100_000_000, 1e6, 2, 3e14) == pytest.approx(1.0)
    assert executed_flops_utilization(1.2e15, 4.0, 2, 3e14) == pytest.approx(0.5)


def test_a_window_by_hand():
    clock = Clock()
    measured = meter(clock)
    for _ in range(2):
        clock.now += 1.0
        count(measured)
    scalars = measured.window()
    assert scalars["throughput/tokens_per_sec"] == pytest.approx(300)
    assert scalars["throughput/sequences_per_sec"] == pytest.approx(4)
    assert scalars["throughput/device/tokens_per_sec"] == pytest.approx(300 / 8)
    assert scalars["throughput/padding_share"] == pytest.approx(0.25)
    assert scalars["time/step_seconds"] == pytest.approx(1.0)
    assert scalars["time/data_wait_seconds"] == pytest.approx(0.25)
    assert scalars["time/data_wait_share"] == pytest.approx(0.25)
    assert scalars["throughput/device/mfu"] == pytest.approx(6 * 137e6 * 300 / (8 * 312e12))
    executed = 2e9 * 600 + 1e9 * 180 + 1e6 * 50_000
    assert scalars["throughput/device/executed_flops_utilization"] == pytest.approx(
        executed / (2.0 * 8 * 312e12)
    )
    assert not any(tag.startswith("memory/device") for tag in scalars)


def test_windows_do_not_overlap():
    clock = Clock()
    measured = meter(clock)
    clock.now += 1.0
    count(measured)
    measured.window()
    clock.now += 4.0
    count(measured)
    assert measured.window()["throughput/tokens_per_sec"] == pytest.approx(75)


def test_start_forgets_the_warm_up_and_the_elapsed_time_does_not():
    clock = Clock()
    measured = meter(clock)
    count(measured)
    clock.now += 3599.0
    measured.start()
    clock.now += 1.0
    count(measured)
    scalars = measured.window()
    assert scalars["throughput/tokens_per_sec"] == pytest.approx(300)
    assert measured.elapsed_seconds() == pytest.approx(3600)


def test_a_pause_counts_in_the_elapsed_time_only():
    clock = Clock()
    measured = meter(clock, earlier_seconds=1800.0)
    clock.now += 1.0
    count(measured)
    with pytest.raises(RuntimeError), measured.pause():
        clock.now += 1798.0
        raise RuntimeError("evaluation failed")
    clock.now += 1.0
    count(measured)
    scalars = measured.window()
    assert scalars["time/step_seconds"] == pytest.approx(1.0)
    assert measured.elapsed_seconds() == pytest.approx(3600)
    assert measured.seconds_of_this_start() == pytest.approx(1800)
    clock.now += 2.0
    count(measured)
    assert measured.window()["time/step_seconds"] == pytest.approx(2.0)


def test_without_a_known_peak_there_is_no_utilisation():
    clock = Clock()
    measured = meter(clock, device_name="cpu")
    clock.now += 1.0
    count(measured)
    assert not {"throughput/device/mfu", "throughput/device/executed_flops_utilization"} & set(
        measured.window()
    )


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="no optimizer step"):
        meter(Clock()).window()


def test_host_memory_covers_what_this_process_holds():
    held = bytearray(64_000_000)
    clock = Clock()
    measured = meter(clock)
    clock.now += 1.0
    count(measured)
    assert len(held) / 1e9 < measured.window()["memory/host_peak_gb"] < 1000


def test_executed_flops_are_below_six_per_parameter_at_thirty_percent_masking():
    config = preset("rapidbert-base")
    tokens = 512 * 128
    executed = training_flops(
        config, tokens=tokens, masked_tokens=int(0.3 * tokens), token_pairs=512 * 128**2
    )
    counted = 6 * config.parameters() * tokens
    # 6N counts the head and the last layer's feed-forward for tokens that never enter them.
    assert 0.75 < executed / counted < 0.90


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_window_waits_for_the_device_and_reports_its_memory():
    device = torch.device("cuda")
    measured = meter(time.perf_counter, device=device)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    matrix = torch.randn(8192, 8192, device=device)
    measured.start()
    began.record()
    for _ in range(20):
        matrix @ matrix
    ended.record()
    count(measured)
    scalars = measured.window()
    assert scalars["time/step_seconds"] >= 0.99 * began.elapsed_time(ended) / 1000
    assert scalars["memory/device_peak_allocated_gb"] >= 8192**2 * 4 / 1e9
