"""The options that choose kernels, for every recipe that trains.

What is chosen is printed and recorded, and changes nothing but speed and rounding. Nothing falls
back: a kernel that cannot run here is an error that says why.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from model.attention import BACKENDS, best_backend, check_backend
from model.config import ModelConfig
from model.kernels import KERNELS, best_kernels, check_kernels
from recipes.common.errors import Faults


def add_kernel_options(parser: argparse.ArgumentParser) -> None:
    """`--attention` and `--kernels`."""
    parser.add_argument(
        "--attention",
        choices=("auto", *BACKENDS),
        default="auto",
        help="attention backend; auto: triton on a GPU in bf16, unless the model drops attention "
        "weights, otherwise sdpa",
    )
    parser.add_argument(
        "--kernels",
        choices=("auto", *KERNELS),
        default="auto",
        help="of the operations around the matmuls; auto: triton on a GPU, torch on the CPU",
    )


def choose_kernels(
    model: ModelConfig, precision: str, options: Any, *, assumed_gpus: bool = False
) -> list[str]:
    """Put names in the place of `auto`.

    Args:
        precision: "bf16" or "fp32".
        assumed_gpus: choose for GPUs that are not here, and may not be asked.

    Returns:
        What was asked for and cannot run here.
    """
    device_type = "cuda" if torch.cuda.is_available() or assumed_gpus else "cpu"
    dropout = model.attention_dropout
    if options.attention == "auto":
        options.attention = best_backend(device_type, precision, dropout)
    if options.kernels == "auto":
        options.kernels = best_kernels(device_type)
    faults = Faults()
    if not assumed_gpus:
        faults.attempt(lambda: check_backend(options.attention, device_type, dropout))
        faults.attempt(lambda: check_kernels(options.kernels, device_type))
    return faults
