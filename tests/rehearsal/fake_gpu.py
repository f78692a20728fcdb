"""A GPU that is not there: what a training step would launch on it, and the bytes it would move.

Tensors are torch's fake ones: they have a shape, a dtype and the device "cuda", and no memory. All
of the recipe, of DeepSpeed and of torch's AdamW runs as it is. Replaced are

    the launch of a Triton kernel       its arguments are checked and counted, nothing is computed
    scaled_dot_product_attention        the operator that a GPU takes where there is a mask
    reading a number from the device    counted as a wait; the answer is 1, or False
    synchronize, of CUDA and DeepSpeed  counted as a wait
    torch.cuda.Event, get_device_properties, DeepSpeed's names of the device
    DeepSpeed's see_memory_usage        it collects garbage
    Module.to and the like              torch's own cannot exchange fake parameters

Bytes are counted by formula: what an operation is given is read once, what it changes or returns is
written once. An operation of PyTorch counts as one launch, though some are two or three kernels.
Call `fake_gpu` in a process of its own.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # before the patches: it copies signatures
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda", 0)
MULTIPROCESSORS = 132
"""Of an H100 or H200."""

REPOSITORY = Path(__file__).resolve().parents[2]
_PACKAGES = str(Path(torch.__file__).resolve().parents[1])
# Where an operation may have its place: ours and what computes for us, by the start of file names.
_PLACES = {
    f"{REPOSITORY}/model/": f"{REPOSITORY}/",
    f"{REPOSITORY}/recipes/": f"{REPOSITORY}/",
    f"{_PACKAGES}/deepspeed/runtime/": f"{_PACKAGES}/",
    f"{_PACKAGES}/megatron/": f"{_PACKAGES}/",
    f"{_PACKAGES}/torch/optim/": f"{_PACKAGES}/",
}
# What is done there is done for whoever calls.
_HELPERS = ("/column_sums.py", "/model/parallel.py", "/torch/optim/optimizer.py", "/padding.py")

_aten = torch.ops.aten
# They only make a tensor that looks at memory, or memory.
_FREE = {"_unsafe_view", "lift_fresh", "empty", "new_empty", "empty_like", "empty_strided"}
_FREE |= {"new_empty_strided", "_is_mkldnn_fp16_supported", "_reshape_alias"}
_FREE |= {"_record_function_enter_new", "_record_function_exit"}
# What they change they do not read.
_OVERWRITING = {"zero_", "fill_", "copy_", "bernoulli_"}
# What they could change and do not: AdamW scales gradients only where it is given a scale.
_ONLY_READ = {("_fused_adamw_", "grads")}
# Of their first tensor they read as much as they return.
_GATHERING = {"embedding", "index_select", "index", "gather", "select_backward"}
_FILLING = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
# Arguments of kernels that are read and written.
_BOTH_WAYS = {("_cross_entropy_backward", "Logits")}
# Arguments that are columns of a wider tensor.
_STRIDED = {"Gate", "Value", "DGate", "DValue"}


@dataclass
class Total:
    """What one operation at one place comes to."""

    launches: int = 0
    bytes: int = 0
    flops: int = 0
    lines: set[int] = field(default_factory=set)
    """Of the place."""


@dataclass(frozen=True)
class Collective:
    """A message to the other ranks."""

    name: str
    elements: int
    dtype: str
    accumulated: int
    """Gradients of parameters that were in their sums when it was sent."""


@dataclass
class Counts:
    """What was seen."""

    operations: dict[tuple[str, str], Total] = field(default_factory=lambda: defaultdict(Total))
    """By name and place."""
    waits: list[str] = field(default_factory=list)
    """Places at which the host waits for the device."""
    collectives: list[Collective] = field(default_factory=list)
    signatures: set[str] = field(default_factory=set)
    """Of the Triton kernels: what Triton compiles apart."""

    def add(self, name: str, place: str, line: int, moved: int, flops: int = 0) -> None:
        total = self.operations[name, place]
        total.launches += 1
        total.bytes += moved
        total.flops += flops
        total.lines.add(line)


class Counting(TorchDispatchMode):
    """Counts into `counts`; None while nothing is counted."""

    def __init__(self) -> None:
        super().__init__()
        from compile_kernels import bound_arguments, signature  # it imports the kernels

        self._bound_arguments, self._signature = bound_arguments, signature
        self.counts = Counts()
        self._forward: dict[int, tuple[str, int]] = {}

    def place(self) -> tuple[str, int]:
        """Where the innermost call came from; in the backward pass, where the forward one did."""
        frame: FrameType | None = sys._getframe(1)
        helper = None
        while frame is not None:
            name = frame.f_code.co_filename
            if frame.f_code.co_name == "_engine_run_backward":
                node = torch._C._current_autograd_node()
                if node is not None and helper is None:
                    place, line = self._forward.get(node._sequence_nr(), (node.name(), 0))
                    return f"{place}, backward", line
            for start, root in _PLACES.items():
                if name.startswith(start):
                    place = f"{name.removeprefix(root)} {frame.f_code.co_qualname}"
                    if not name.endswith(_HELPERS):
                        return place, frame.f_lineno
                    helper = helper or (place, frame.f_lineno)
            frame = frame.f_back
        return helper or ("elsewhere", 0)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = dict(keywords or {})
        if getattr(keywords.get("device"), "type", "") == "meta":
            keywords["device"] = DEVICE  # formulas of gradients in C++ see the tensor inside
        place, line = self.place()
        if torch.is_grad_enabled():
            # The first one after the making of a node is the node's; later ones may make none.
            self._forward.setdefault(torch._C._autograd._get_sequence_nr() - 1, (place, line))
        name = function.overloadpacket.__name__
        if name == "_local_scalar_dense":
            if arguments[0].device.type == "cuda":
                self.counts.waits.append(f"{place}, line {line}")
            return False if arguments[0].dtype == torch.bool else 1
        if name == "_to_copy" and _stays(arguments[0], keywords):
            return arguments[0]
        try:
            out = function(*arguments, **keywords)
        except (RuntimeError, torch._subclasses.fake_tensor.DynamicOutputShapeException) as error:
            raise AssertionError(f"{name} at {place}, line {line}: {error}") from error
        if function.namespace == "c10d":
            self._send(name, arguments)
        if name not in _FREE and not function.is_view:
            tensors = [t for t in tree_leaves((arguments, keywords, out)) if isinstance(t, Tensor)]
            devices = sorted({t.device.type for t in tensors})
            if devices == ["cpu", "cuda"] and all(t.dim() or t.is_cuda for t in tensors):
                self.counts.waits.append(f"{name} between devices at {place}, line {line}")
            if devices == ["cpu"]:
                name += " on the CPU"
            moved = _bytes(function, arguments, keywords, out)
            self.counts.add(name, place, line, moved, _flops(name, arguments))
        return out

    def _send(self, name: str, arguments: Any) -> None:
        tensor = next(t for t in tree_leaves(arguments) if isinstance(t, Tensor))
        done = sum(
            total.launches
            for (_, place), total in self.counts.operations.items()
            if place.endswith(" _accumulate")
        )
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.counts.collectives.append(Collective(name, tensor.numel(), dtype, done))

    def launch(self, kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        """Check and count the launch of a Triton kernel, in place of it."""
        name = kernel.fn.__name__
        bound = self._bound_arguments(kernel, arguments, options)
        place, line = self.place()
        where = f"{name} at {place}, line {line}"
        missing = set(kernel.arg_names) - set(bound)
        assert not missing, f"{where}: no {missing}"
        _check_grid(where, grid(bound) if callable(grid) else grid)
        moved = 0
        for argument, value in bound.items():
            if isinstance(value, Tensor):
                _check_tensor(where, argument, value)
                moved += _size(value) * (2 if (name, argument) in _BOTH_WAYS else 1)
            elif isinstance(value, int):
                assert abs(value) < 2**31, f"{where}: {argument} = {value} is beyond 32 bits"
        self.counts.add(f"triton {name}", place, line, moved)
        self.counts.signatures.add(self._signature(kernel, bound, options))


def _stays(tensor: Tensor, keywords: dict[str, Any]) -> bool:
    """Say whether `tensor.to` with these keywords returns the tensor itself."""
    device, dtype = keywords.get("device"), keywords.get("dtype")
    return (device is None or device == tensor.device) and dtype in (None, tensor.dtype)


def _check_grid(where: str, grid: tuple[int, ...]) -> None:
    assert 0 < grid[0] < 2**31, f"{where}: grid {grid}"
    assert all(0 < size < 2**16 for size in grid[1:]), f"{where}: grid {grid}"


def _check_tensor(where: str, argument: str, tensor: Tensor) -> None:
    where = f"{where}: {argument} {list(tensor.shape)} {tensor.dtype}"
    assert tensor.device == DEVICE, f"{where} is on {tensor.device}"
    if argument in _STRIDED:
        assert tensor.stride(-1) == 1, f"{where} has strides {tensor.stride()}"
    else:
        assert tensor.is_contiguous(), f"{where} has strides {tensor.stride()}"
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    assert last < 2**31, f"{where} reaches to element {last}, beyond a 32-bit index"


def _size(tensor: Tensor) -> int:
    """Count the bytes of a tensor; rows that are the same memory count once."""
    shape = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, step in shape if step) * tensor.element_size()


def _bytes(function: Any, arguments: Any, keywords: dict[str, Any], out: Any) -> int:
    name = function.overloadpacket.__name__
    returned = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
    if name in _FILLING:
        return sum(map(_size, returned))
    schema = function._schema.arguments
    given = {spec.name: value for spec, value in zip(schema, arguments, strict=False)} | keywords
    moved, changed, first = 0, set(), True
    for spec in schema:
        writes = spec.alias_info is not None and spec.alias_info.is_write
        writes = writes and (name, spec.name) not in _ONLY_READ
        for tensor in tree_leaves(given.get(spec.name)):
            if not isinstance(tensor, Tensor):
                continue
            reads = not (writes and name in _OVERWRITING)
            if name in _GATHERING and first:
                moved += min(_size(tensor), sum(map(_size, returned)))
            else:
                moved += _size(tensor) * (reads + writes)
            first = False
            if writes:
                changed.add(id(tensor))
    return moved + sum(_size(tensor) for tensor in returned if id(tensor) not in changed)


def _flops(name: str, arguments: Any) -> int:
    if name not in ("mm", "addmm", "bmm"):
        return 0
    left, right = [t for t in arguments if isinstance(t, Tensor)][-2:]
    return 2 * left.numel() * right.shape[-1]


class _Event:
    """`torch.cuda.Event`."""

    def __init__(self, **_: Any):
        pass

    def record(self, *_: Any) -> None:
        pass


def _attend(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """The operator that PyTorch takes on a GPU where a mask is given."""
    arguments = (q, k, v, attn_mask, q.requires_grad, dropout_p)
    out: Tensor = _aten._scaled_dot_product_efficient_attention(*arguments)[0]
    return out


def _change_in_place(module: nn.Module, change: Callable[[Tensor], Tensor], _: bool = True) -> Any:
    with torch.no_grad():
        for each in module.modules():
            for parameter in each._parameters.values():
                if parameter is not None:
                    parameter.data = change(parameter.data)
            for name, buffer in each._buffers.items():
                if buffer is not None:
                    each._buffers[name] = change(buffer)
    return module


@contextmanager
def fake_gpu() -> Iterator[Counting]:
    """Let every tensor that is made inside be a fake one; count what is done with those."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime import bf16_optimizer
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    make = torch.Tensor._make_subclass

    # Autograd's engine, in C++, would ask CUDA for streams: it is shown the tensor inside.
    def shown_inside(kind: Any, data: Tensor, require_grad: bool = False, **_: Any) -> Any:
        return make(kind, data, require_grad)

    counting, accelerator = Counting(), get_accelerator()

    def launch(kernel: Any, *arguments: Any, **options: Any) -> None:
        counting.launch(kernel, *arguments, **options)

    def synchronize(*_: Any) -> None:
        place, line = counting.place()
        counting.counts.waits.append(f"synchronize at {place}, line {line}")

    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS, major=9, minor=0)
    with ExitStack() as stack:
        for place, name, replacement in (
            (torch.Tensor, "_make_subclass", shown_inside),
            (nn.Module, "_apply", _change_in_place),
            (JITFunction, "run", launch),
            (InterpretedFunction, "run", launch),
            (torch.cuda, "Event", _Event),
            (torch.cuda, "synchronize", synchronize),
            (accelerator, "synchronize", synchronize),
            (torch.cuda, "get_device_properties", lambda _: properties),
            (nn.functional, "scaled_dot_product_attention", _attend),
            (accelerator, "device_name", lambda index=None: "cuda" if index is None else "cuda:0"),
            (accelerator, "current_device_name", lambda: "cuda:0"),
            (accelerator, "current_device", lambda: 0),
            (bf16_optimizer, "see_memory_usage", lambda *_, **__: None),
        ):
            stack.enter_context(mock.patch.object(place, name, replacement))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(counting)
        yield counting
