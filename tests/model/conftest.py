"""A world of one process for every test module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist
from megatron.core import parallel_state

from model.parallel import initialize_parallel


@pytest.fixture(scope="module", autouse=True)
def single_process() -> Iterator[None]:
    """Megatron's layers look up their process groups when they are built."""
    initialize_parallel()
    yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
