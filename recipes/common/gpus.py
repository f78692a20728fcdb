"""What the makers of GPUs promise, by the names that their drivers report."""

from __future__ import annotations

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

# Memory bandwidth in bytes/s by the same names, from the same data sheets.
MEMORY_BANDWIDTH = {
    "NVIDIA A100-SXM4-40GB": 1.555e12,
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA A100 80GB PCIe": 1.935e12,
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA H100 PCIe": 2.0e12,
    "NVIDIA H100 NVL": 3.9e12,
    "NVIDIA H200": 4.8e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak in FLOP/s of `device_name` (as `torch.cuda.get_device_name()` gives it).

    None for a device that the table does not hold, a CPU for instance: never a guess.
    """
    return PEAK_BF16_FLOPS.get(device_name)


def describe_peak(device_name: str) -> str | None:
    """The line with which a run says which peak its MFU stands on, or why it will have none.

    None for a CPU, of which nobody expects one.
    """
    peak = peak_flops(device_name)
    if device_name == "cpu":
        return None
    if peak is None:
        return (
            f"{device_name}: not among the peaks of recipes/common/gpus.py, so there is no MFU; "
            "a line there gives one"
        )
    return f"peak of {device_name}: {peak / 1e12:g} TFLOP/s (dense bf16)"
