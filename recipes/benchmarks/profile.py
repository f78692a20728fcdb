"""What a training step spends its device time on, by kernel class, from torch's profiler.

On a GPU the names are those of kernels, on the CPU of operators, whose own time is counted without
that of the operators they call. A class is decided by name alone, so elementwise work that no name
gives away (a bias, a residual sum that nobody fused) is in `other`, and the decoder's matrix
multiplication is in `matmul`; `idle` is the rest of the step's time, when the device had nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from recipes.common.json_content import Json

# The first pattern that a name matches decides. Names of fused kernels list what they fused
# (`triton_red_fused_add_native_layer_norm_3`), so what is rarer stands first.
CLASSES: dict[str, str] = {
    "optimizer": r"adam|multi_tensor|_foreach_",
    "attention": r"attention|attend|flash|fmha|alibi|aten::bmm|aten::_?softmax|softmax_warp"
    r"|^_(forward|backward)_(whole|tiled|queries|keys)",  # model/kernels/
    "loss": r"cross_?entropy|nll_loss|log_?softmax|logits",
    "GLU, GELU": r"gelu|glu",
    "norm, residual, dropout": r"layer_?norm|gammabeta|dropout|bernoulli|residual|fused_add_norm"
    r"|column_sums",  # of the norms' parameters
    "matmul": r"gemm|cublas|cutlass|nvjet|xmma|splitk|aten::(add)?mm|mkldnn|aten::linear",
    "copies": r"memcpy|memset|copy|aten::(cat|clone|index|gather|scatter|zero_|fill_)|index_"
    r"|indexselect|indexing|catarray|fillfunctor|embedding",
}
OTHER, IDLE = "other", "idle"
# As drawn, the work that cannot be avoided first; Okabe and Ito's palette as in recipes/report.py.
COLORS = {
    "matmul": "#0072B2",
    "attention": "#D55E00",
    "norm, residual, dropout": "#009E73",
    "GLU, GELU": "#E69F00",
    "loss": "#CC79A7",
    "optimizer": "#56B4E9",
    "copies": "#000000",
    OTHER: "#999999",
    IDLE: "#e4e4e4",
}


def kernel_class(name: str) -> str:
    """Tell the class of a kernel or an operator from its name."""
    for kind, pattern in CLASSES.items():
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return OTHER


def breakdown(step: Callable[[], object], step_seconds: float, device: torch.device) -> Json:
    """Measure the seconds of one step by class, and the names that took the most.

    Args:
        step: one optimizer step, warmed up.
        step_seconds: its time without the profiler, which slows the host down; what the device did
            not use of it is `idle`. Without a GPU the classes share this time out.
    """
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if gpu else [])
    with profile(activities=activities) as profiler:
        step()
        if gpu:
            torch.cuda.synchronize(device)
    by_name: dict[str, float] = {}
    for event in profiler.key_averages():
        if gpu and event.device_type == torch.autograd.DeviceType.CUDA and _is_kernel(event):
            by_name[event.key] = by_name.get(event.key, 0) + event.self_device_time_total / 1e6
        elif not gpu:
            by_name[event.key] = by_name.get(event.key, 0) + event.self_cpu_time_total / 1e6
    classes = dict.fromkeys([*CLASSES, OTHER], 0.0)
    for name, seconds in by_name.items():
        classes[kernel_class(name)] += seconds
    busy = sum(classes.values())
    classes[IDLE] = max(0.0, step_seconds - busy) if gpu else 0.0
    if not gpu:
        classes = {name: seconds * step_seconds / busy for name, seconds in classes.items()}
    longest = sorted(by_name.items(), key=lambda item: -item[1])[:25]
    return {
        "seconds": classes,
        "step_seconds": step_seconds,
        "longest": [
            {"name": name[:120], "class": kernel_class(name), "seconds": seconds}
            for name, seconds in longest
        ],
    }


def _is_kernel(event: Any) -> bool:
    # Ranges that the profiler or the user named span kernels and would count them twice.
    return not getattr(event, "is_user_annotation", False) and not event.key.startswith("Profiler")
