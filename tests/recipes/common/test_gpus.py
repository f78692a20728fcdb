"""The table of GPUs: exact names, dense peaks, rows that are complete, and a user's own."""

from __future__ import annotations

import json

import pytest

from recipes.common.errors import UserError
from recipes.common.gpus import GPUS, SHORT_NAMES, describe_peak, find_gpu, peak_flops


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
    over = {name for name, gpu in GPUS.items() if gpu.peak_bf16_tflops > 1000}
    assert over == {"NVIDIA B200", "NVIDIA GB200", "AMD Instinct MI300X"}


def test_rows_with_a_short_name_are_complete_and_all_say_their_source():
    assert list(SHORT_NAMES) == ["a100-40", "a100-80", "h100", "h200", "b200"]
    assert all(not gpu.missing() for gpu in SHORT_NAMES.values())
    assert all(gpu.source and gpu.name == name for name, gpu in GPUS.items())
    for gpu in SHORT_NAMES.values():
        # What eight network cards bring is less than what NVLink carries, or the model of rings is
        # another; memory is an order faster than both.
        assert gpu.network_gbit_per_s / 8 < gpu.nvlink_gb_per_s < gpu.memory_gb_per_s / 5
        assert "data sheet" in gpu.source and "rent" in gpu.source


def test_a_gpu_is_found_by_what_people_call_it():
    assert find_gpu("H200") is find_gpu("NVIDIA H200") is SHORT_NAMES["h200"]
    for word, near in (("a100-4", "a100-40"), ("h20", "h200"), ("NVIDIA B20", "NVIDIA B200")):
        with pytest.raises(UserError) as caught:
            find_gpu(word)
        assert f"unknown (did you mean {near}?); known: a100-40, a100-80" in str(caught.value)
    with pytest.raises(UserError, match="network_gbit_per_s, dollars_per_hour are not in the"):
        find_gpu("NVIDIA L4")


OWN = {
    "name": "Home-made 9000",
    "peak_bf16_tflops": 500,
    "memory_gb": 48,
    "memory_gb_per_s": 1200.5,
    "multiprocessors": 100,
    "nvlink_gb_per_s": 60,
    "network_gbit_per_s": 100,
    "dollars_per_hour": 0,
}


def test_a_file_describes_another_gpu(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(OWN))
    gpu = find_gpu(str(path))
    assert {key: getattr(gpu, key) for key in OWN} == OWN
    assert gpu.gpus_per_node == 8 and gpu.source == str(path)


def test_all_that_is_wrong_with_the_file_is_said_at_once(tmp_path):
    path = tmp_path / "own.json"
    wrong = {**OWN, "memory_gb": "48", "multiprocessors": 1.5, "peak_bf16_tflops": -1}
    wrong["nvlink_gb_per"] = wrong.pop("nvlink_gb_per_s")
    path.write_text(json.dumps(wrong))
    with pytest.raises(UserError) as caught:
        find_gpu(str(path))
    said = [fault.removeprefix(f"--gpu {path}: ") for fault in caught.value.faults]
    assert said == [
        "peak_bf16_tflops must be a number above 0, got -1",
        "memory_gb must be a number above 0, got '48'",
        "multiprocessors must be a whole number, got 1.5",
        "unknown key nvlink_gb_per; did you mean nvlink_gb_per_s?",
        "nvlink_gb_per_s is needed",
    ]
    for content, reason in (("[]", "must be an object"), ("{", "not JSON")):
        path.write_text(content)
        with pytest.raises(UserError, match=reason):
            find_gpu(str(path))
    with pytest.raises(UserError, match="No such file"):
        find_gpu(str(tmp_path / "none.json"))
