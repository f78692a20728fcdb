"""A world of one process for every test module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from model.parallel import initialize_parallel


@pytest.fixture
def on_device() -> Iterator[None]:
    """Tensors are made on the GPU where there is one; elsewhere Triton's interpreter has them."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield


@pytest.fixture
def poisoned_memory(monkeypatch) -> None:
    """Memory that torch hands out uninitialised holds NaN."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned(*arguments, **options) -> Tensor:
            tensor = make(*arguments, **options)
            return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

        return poisoned

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))


@pytest.fixture(scope="module", autouse=True)
def single_process() -> Iterator[None]:
    """Megatron's layers look up their process groups when they are built."""
    initialize_parallel()
    yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
