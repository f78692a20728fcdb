"""A GPU that records work in CUDA graphs (see `micro_steps.Device`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import torch

from recipes.engine import peak_memory


class CudaGraphs:
    """The current CUDA device, with one pool of memory and one stream for all its graphs."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has none
        self._pool = torch.cuda.graph_pool_handle()
        self._pool_bytes = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `micro_steps.Device.record`."""
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream()
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved()
        try:
            # Other threads go on meanwhile: the loader's pins memory, NCCL's looks at events.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                work()
        except BaseException:
            self._abandon(before)
            raise
        self._pool_bytes += torch.cuda.memory_reserved() - reserved
        replay: Callable[[], None] = graph.replay
        return replay

    def _abandon(self, stream: torch.cuda.Stream) -> None:
        """Leave a capture that failed: torch has stayed on its stream, and in its pool."""
        torch.cuda.set_stream(stream)
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if end is not None:
            with contextlib.suppress(RuntimeError):  # it has been left
                end(torch.cuda.current_device(), self._pool)
        torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """See `micro_steps.Device.seconds`: of one of several in a row."""
        times = 3
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / times

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """See `micro_steps.Device.peak_bytes`."""
        return peak_memory.bytes_of(work)

    def free_bytes(self) -> int:
        """See `micro_steps.Device.free_bytes`: what torch could still reserve, or has at hand."""
        free, _ = torch.cuda.mem_get_info()
        at_hand = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return free + max(0, at_hand - self._pool_bytes)

    def release(self) -> None:
        """See `micro_steps.Device.release`."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
