"""The tables of GPUs: exact names, dense peaks."""

from __future__ import annotations

import pytest

from recipes.common.gpus import MEMORY_BANDWIDTH, PEAK_BF16_FLOPS, describe_peak, peak_flops


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L40S", 362.05),
    ],
)
def test_peaks_of_like_named_devices_are_told_apart(name, tflops):
    assert peak_flops(name) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "cpu",
        "",
        "NVIDIA",
        "NVIDIA H100",
        "NVIDIA A10G",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Tesla V100-SXM2-32GB",
    ],
)
def test_a_device_not_in_the_table_is_unknown_and_said_to_be(name):
    assert peak_flops(name) is None
    said = describe_peak(name)
    if name == "cpu":
        assert said is None, "nobody expects the MFU of a CPU"
    else:
        assert said and said.startswith(f"{name}: not among the peaks") and "no MFU" in said


def test_the_known_peak_is_announced():
    assert describe_peak("NVIDIA H200") == "peak of NVIDIA H200: 989 TFLOP/s (dense bf16)"


def test_no_peak_is_a_sparse_one():
    # Tensor cores of the last decade give 1 PFLOP/s dense at most before Blackwell and MI300.
    over = {name for name, peak in PEAK_BF16_FLOPS.items() if peak > 1e15}
    assert over == {"NVIDIA B200", "NVIDIA GB200", "AMD Instinct MI300X"}


def test_every_device_with_a_bandwidth_has_a_peak():
    assert MEMORY_BANDWIDTH.keys() <= PEAK_BF16_FLOPS.keys()
    assert all(1e12 < bandwidth < 1e13 for bandwidth in MEMORY_BANDWIDTH.values())
