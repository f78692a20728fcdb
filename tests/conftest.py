from __future__ import annotations

import os
import tempfile

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's interpreter computes the kernels on the CPU. Chosen when they are imported, so here.
    os.environ["TRITON_INTERPRET"] = "1"

# transformers copies the modelling files of exports to where it imports them from. Asked for when
# it is imported, so here.
MODULES = tempfile.TemporaryDirectory(prefix="transformers-modules-")
os.environ["HF_MODULES_CACHE"] = MODULES.name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take longest first: begun last, one would run alone for minutes.

    Of the tests for a GPU alone those come first that compute at the sizes of training: the bench
    ends them at a time limit."""
    if config.getoption("markexpr") == "gpu":
        items.sort(key=lambda item: "sizes_of_training" not in item.name)
        return
    waits = {item.path for item in items if item.get_closest_marker("slurm")}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in waits, item.path not in slow))
