"""What the makers of GPUs promise, by the names that their drivers report, and what renting costs.

One table. Its rows with a short name (`a100-80`, `h200`) are complete and can be planned with; the
others have a peak, which is what MFU needs. Names of drivers are matched whole: parts of names lie
(A10 is in A100, H100 covers three chips, an A100-SXM-64GB has more cores than an A100-SXM4-80GB, a
MIG slice carries its parent's name).
"""

from __future__ import annotations

import difflib
import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from recipes.common.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, and the usual machine around it; None stands for what is not known here."""

    name: str
    """Name that the driver reports (`torch.cuda.get_device_name()`)."""
    peak_bf16_tflops: float
    """Dense bf16 peak of the tensor cores, 10^12 FLOP/s. Vendors' data sheets print twice this
    where they assume 2:4 sparsity."""
    source: str
    """Where the numbers are from."""
    short_name: str = ""
    """What a user calls it."""
    memory_gb: float | None = None
    """Memory, 10^9 bytes."""
    memory_gb_per_s: float | None = None
    """Memory bandwidth, 10^9 bytes/s."""
    multiprocessors: int | None = None
    """Streaming multiprocessors."""
    nvlink_gb_per_s: float | None = None
    """To the other GPUs of the node, 10^9 bytes/s in one direction."""
    network_gbit_per_s: float | None = None
    """To other nodes, Gbit/s for each GPU."""
    gpus_per_node: int = 8
    """GPUs in a node."""
    dollars_per_hour: float | None = None
    """Rent of one GPU."""

    def missing(self) -> list[str]:
        """Name what is not known of it."""
        return [field.name for field in fields(self) if getattr(self, field.name) is None]


_DGX = "NVLink is half of the data sheet's sum of both directions; network as in NVIDIA's DGX"
_RENT = "rent: RunPod's list as deploybase.ai quotes it (2026), not in the paper, not checked"

_ROWS = (
    Gpu(
        "NVIDIA A100-SXM4-40GB",
        312,
        "NVIDIA A100 data sheet (2021) and Ampere white paper; "
        f"{_DGX} A100 (8 x 200 Gbit/s); rent: Table S3; appendix E has $1.10 to $4.10",
        "a100-40",
        memory_gb=40,
        memory_gb_per_s=1555,
        multiprocessors=108,
        nvlink_gb_per_s=300,
        network_gbit_per_s=200,
        dollars_per_hour=2.00,
    ),
    Gpu(
        "NVIDIA A100-SXM4-80GB",
        312,
        "NVIDIA A100 data sheet (2021) and Ampere white paper; "
        f"{_DGX} A100 (8 x 200 Gbit/s); rent: appendix E and Table S3; $1.50 to $5.00 are quoted",
        "a100-80",
        memory_gb=80,
        memory_gb_per_s=2039,
        multiprocessors=108,
        nvlink_gb_per_s=300,
        network_gbit_per_s=200,
        dollars_per_hour=2.50,
    ),
    Gpu(
        "NVIDIA H100 80GB HBM3",
        989,
        f"NVIDIA H100 data sheet (1979 with sparsity); {_DGX} H100 (8 x 400 Gbit/s); {_RENT}",
        "h100",
        memory_gb=80,
        memory_gb_per_s=3350,
        multiprocessors=132,
        nvlink_gb_per_s=450,
        network_gbit_per_s=400,
        dollars_per_hour=2.69,
    ),
    Gpu(
        "NVIDIA H200",
        989,
        f"NVIDIA H200 data sheet (1979 with sparsity); {_DGX} H200 (8 x 400 Gbit/s); {_RENT}",
        "h200",
        memory_gb=141,
        memory_gb_per_s=4800,
        multiprocessors=132,
        nvlink_gb_per_s=450,
        network_gbit_per_s=400,
        dollars_per_hour=3.59,
    ),
    Gpu(
        "NVIDIA B200",
        2250,
        "NVIDIA DGX B200 data sheet, per GPU (4500 with sparsity, 1,440 GB and 64 TB/s for 8); "
        "148 multiprocessors: from memory, not checked; "
        f"{_DGX} B200 (8 x 400 Gbit/s); {_RENT}",
        "b200",
        memory_gb=180,
        memory_gb_per_s=8000,
        multiprocessors=148,
        nvlink_gb_per_s=900,
        network_gbit_per_s=400,
        dollars_per_hour=5.98,
    ),
    Gpu("NVIDIA A100-PCIE-40GB", 312, "NVIDIA A100 data sheet (2021)", memory_gb_per_s=1555),
    Gpu("NVIDIA A100 80GB PCIe", 312, "NVIDIA A100 data sheet (2021)", memory_gb_per_s=1935),
    Gpu("NVIDIA H100 PCIe", 756, "NVIDIA H100 data sheet (1513)", memory_gb_per_s=2000),
    Gpu("NVIDIA H100 NVL", 835, "NVIDIA H100 data sheet (1671)", memory_gb_per_s=3900),
    Gpu("NVIDIA H200 NVL", 835, "NVIDIA H200 data sheet (1671)"),
    Gpu("NVIDIA GH200 480GB", 989, "NVIDIA GH200 data sheet (1979)"),
    Gpu("NVIDIA GB200", 2500, "NVIDIA GB200 NVL72 data sheet, per GPU (5000)"),
    Gpu("NVIDIA A10", 125, "NVIDIA A10 data sheet"),
    Gpu("NVIDIA A30", 165, "NVIDIA A30 data sheet"),
    Gpu("NVIDIA A40", 149.7, "NVIDIA A40 data sheet"),
    Gpu("NVIDIA L4", 121, "NVIDIA L4 data sheet (242)"),
    Gpu("NVIDIA L40", 181.05, "NVIDIA L40 data sheet"),
    Gpu("NVIDIA L40S", 362.05, "NVIDIA L40S data sheet"),
    Gpu("NVIDIA GeForce RTX 3090", 71, "NVIDIA Ampere GA102 white paper, fp32 accumulation"),
    Gpu("NVIDIA GeForce RTX 4090", 165.2, "NVIDIA Ada white paper, fp32 accumulation"),
    Gpu("AMD Instinct MI300X", 1307.4, "AMD Instinct MI300X data sheet"),
)

GPUS = {gpu.name: gpu for gpu in _ROWS}
"""All GPUs by the driver's name."""
SHORT_NAMES = {gpu.short_name: gpu for gpu in _ROWS if gpu.short_name}
"""Those that can be planned with, by what a user calls them."""


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak in FLOP/s of `device_name` (as `torch.cuda.get_device_name()` gives it).

    None for a device that the table does not hold, a CPU for instance: never a guess.
    """
    gpu = GPUS.get(device_name)
    return None if gpu is None else gpu.peak_bf16_tflops * 1e12


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


def find_gpu(word: str) -> Gpu:
    """Return the GPU that a user means: a short name, a driver's name, or a JSON file of their own.

    Raises:
        UserError: unknown, with the nearest names; not complete enough to plan with; or a file with
            all that is wrong in it.
    """
    if word.endswith(".json"):
        return read_gpu(Path(word))
    gpu = SHORT_NAMES.get(word.lower()) or GPUS.get(word)
    if gpu is None:
        names = {name.lower(): name for name in (*SHORT_NAMES, *GPUS)}
        near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5)
        hint = f" (did you mean {names[near[0]]}?)" if near else ""
        raise UserError(
            f"--gpu {word}: unknown{hint}; known: {', '.join(SHORT_NAMES)}, or a JSON file with "
            f"{', '.join(_keys())}"
        )
    if missing := gpu.missing():
        raise UserError(
            f"--gpu {word}: {', '.join(missing)} are not in the table; name "
            f"{', '.join(SHORT_NAMES)}, or a JSON file of your own with {', '.join(_keys())}"
        )
    return gpu


def read_gpu(path: Path) -> Gpu:
    """Read a GPU that the table does not hold: a JSON object with the fields of `Gpu`.

    Raises:
        UserError: all that is wrong with it.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"--gpu {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--gpu {path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"--gpu {path}: must be an object with {', '.join(_keys())}")
    known = {field.name: field for field in fields(Gpu)}
    faults = []
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(_keys())}"
            faults.append(f"unknown key {key}{hint}")
        elif known[key].type == "str":
            if not isinstance(value, str):
                faults.append(f"{key} must be a text, got {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            if (key, value) != ("dollars_per_hour", 0) or isinstance(value, bool):
                faults.append(f"{key} must be a number above 0, got {value!r}")
        elif known[key].type.startswith("int") and not isinstance(value, int):
            faults.append(f"{key} must be a whole number, got {value!r}")
    needed = [key for key in _keys() if known[key].default in (None, MISSING) and key != "source"]
    faults += [f"{key} is needed" for key in needed if key not in content]
    if faults:
        raise UserError(*(f"--gpu {path}: {fault}" for fault in faults))
    return Gpu(**{"source": str(path), **content})


def _keys() -> list[str]:
    return [field.name for field in fields(Gpu) if field.name not in ("source", "short_name")]
