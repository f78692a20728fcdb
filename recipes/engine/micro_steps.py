"""Forward and backward pass of a micro-batch: through the engine, or replayed from CUDA graphs.

Through the engine the host launches each kernel, hundreds in every micro-batch; a GPU that is done
with them sooner waits for the host. A CUDA graph is the same kernels with the same arguments,
launched at once. What it needs is here by nature: the batches are packed into a handful of shapes,
dropout is a function of place, nothing in a pass waits for the device. A replay reads the inputs
and leaves the loss where they were at the capture, and adds to the very fp32 sums of gradients that
the engine adds to, so that the two kinds of pass can be mixed: what happens between the passes, and
after them, is the engine's.

A graph is recorded of other parameters in the same memory, and by torch.autograd.grad, not
backward(): torch keeps a node for each of DeepSpeed's parameters, with its hooks and the stream on
which it was made, and no recording may reach that stream. Neither is the exchange of gradients
(`gradient_exchange`) in a graph: of a step whose last micro-batch is replayed they travel after its
backward pass, not behind it.

All memory of the graphs comes from one pool, in which a shape reuses what another has freed. A
shape that comes rarely goes through the engine, whose memory is then needed beside the pool.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.func import functional_call

from model.config import ModelConfig
from recipes.common.json_content import Json
from recipes.corpus.mlm_batches import PackedBatch
from recipes.engine.interface import Engine

Clock = Callable[[], contextlib.AbstractContextManager[None]]
"""Times what happens inside."""
Shape = tuple[int, ...]
Use = Literal["off", "auto", "on"]
"""on is the benchmark's, which also wants to know what graphs cost where they save nothing."""

WARM_UP = 3
"""Times that a shape goes through the engine first: kernels are compiled, caches are filled."""
MOST_GRAPHS = 16
"""Shapes that are captured; those that come later go through the engine."""
LEAST_GAIN = 0.02
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3
"""Relative differences to the engine that a replay may have (of the gradient's 2-norm). The kernels
are the same ones, so nothing but an order of atomic additions can make one."""
ROUNDS = 3
"""Of which the fastest counts."""
SPARE = 1.1
"""Times the measured memory of a pass that must be free for one."""


class Device(Protocol):
    """What records work, and measures it."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what does the device's part of `work` whenever it is called. It is not done now.

        Raises:
            Exception: whatever goes wrong; the device is as it was.
        """

    def seconds(self, work: Callable[[], object]) -> float:
        """Measure how long `work` takes, waiting for it."""

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Do `work`, and return how much memory it had at once, beyond what is held anyway."""

    def free_bytes(self) -> int:
        """Return how much memory is left for work that is not recorded."""

    def release(self) -> None:
        """Give back the memory of recordings that nobody holds any more."""


def why_not(model: ModelConfig, deepspeed: Json, tensor_parallel: int) -> str | None:
    """Say why passes of this run cannot be graphs; None if they can."""
    if model.attention_dropout:
        return f"{model.name} draws random numbers in its attention"
    if tensor_parallel > 1:
        return "ranks that share a model talk to each other within a pass"
    bf16, zero = deepspeed.get("bf16", {}), deepspeed.get("zero_optimization", {})
    if not (bf16.get("enabled") and bf16.get("immediate_grad_update") and zero.get("stage") == 1):
        return (
            "gradients have to be summed in place, which the engine does with bf16.enabled, "
            "bf16.immediate_grad_update and zero_optimization.stage 1, as in ds_configs/base.json"
        )
    return None


def pass_through(engine: Engine, batch: PackedBatch, scale: float, clock: Clock) -> Tensor:
    """Do forward and backward pass of a micro-batch through DeepSpeed's engine.

    Args:
        scale: factor of the loss whose gradient is wanted.
        clock: times the forward pass.

    Returns:
        The loss, without the factor: fp32 scalar.
    """
    with clock():
        arguments, named = _arguments(batch)
        loss: Tensor = engine(*arguments, **named)
    engine.backward(loss * (scale * _poison(loss)), scale_wrt_gas=False)
    return loss.detach()


def _arguments(batch: PackedBatch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what the model is called with for its loss."""
    arguments = (
        batch.input_ids,
        batch.sequence_offsets,
        batch.max_sequence_length,
        batch.masked_positions,
        batch.labels,
    )
    return arguments, {"sequence_keys": batch.sequence_keys}


def _poison(loss: Tensor) -> Tensor:
    """Return 1, or not a number where the loss is not finite: the gradient must not be, either."""
    return loss.detach() * 0 + 1


class GraphedPass:
    """Both passes of micro-batches of one shape, recorded."""

    def __init__(self, engine: Engine, batch: PackedBatch, device: Device):
        self._module, self._optimizer = engine.module, engine.optimizer
        self._inputs = batch.copy()
        self._scale = torch.zeros((), device=batch.input_ids.device)
        self._loss: Tensor | None = None
        self._aliases: dict[Tensor, Tensor] = {}
        self._result = torch.zeros((), device=batch.input_ids.device)
        self._has_gradient: list[list[bool]] = []
        self._forward = device.record(self._record_forward)
        self._backward = device.record(self._record_backward)
        self._loss = None  # with the activations: a replay needs none of Python's
        self._aliases = {}

    def __call__(self, batch: PackedBatch, scale: float, clock: Clock) -> Tensor:
        """Do what `pass_through` does, but for the reduction; the loss is valid until the next."""
        for name, tensor in _tensors(batch).items():
            getattr(self._inputs, name).copy_(tensor, non_blocking=True)
        self._scale.fill_(scale)
        with clock():
            self._forward()
        self._backward()
        self._optimizer.fp32_groups_has_gradients = [list(group) for group in self._has_gradient]
        return self._result

    def _record_forward(self) -> None:
        named = dict(self._module.named_parameters())
        aliases = {name: each.detach().requires_grad_() for name, each in named.items()}
        self._aliases = {parameter: aliases[name] for name, parameter in named.items()}
        self._loss = functional_call(self._module, aliases, *_arguments(self._inputs))
        self._result.copy_(self._loss.detach())

    def _record_backward(self) -> None:
        assert self._loss is not None
        loss = self._loss * (self._scale * _poison(self._loss))
        groups, sums = self._optimizer.bf16_groups, self._optimizer.fp32_groups_gradients
        aliases = [self._aliases[parameter] for group in groups for parameter in group]
        found = torch.autograd.grad(loss, aliases, allow_unused=True)
        gradients = iter(found)
        self._has_gradient = []
        with torch.no_grad():
            for group, totals in zip(groups, sums, strict=True):
                self._has_gradient.append([])
                for parameter, total in zip(group, totals, strict=True):
                    gradient = next(gradients)
                    self._has_gradient[-1].append(gradient is not None)
                    if gradient is not None:
                        total.add_(gradient.reshape(total.shape))
                        parameter._hp_grad = total


def _tensors(batch: PackedBatch) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def shape_of(batch: PackedBatch) -> Shape:
    """Return what decides which kernels run, and how."""
    sizes = (len(tensor) for tensor in _tensors(batch).values())
    return (*sizes, batch.max_sequence_length)


@dataclass(frozen=True)
class Trial:
    """One micro-batch through the engine and replayed, measured before graphs are used."""

    engine_seconds: float
    graph_seconds: float
    loss_difference: float
    gradient_difference: float
    engine_bytes: int
    """Memory of the pass through the engine."""
    free_bytes: int
    """Memory beside the graph."""

    def fault(self, *, gain: float) -> str | None:
        """Say why graphs are not to be used; None if they are.

        Args:
            gain: share of the time that they have to save.
        """
        differs = (
            self.loss_difference <= LOSS_TOLERANCE
            and self.gradient_difference <= GRADIENT_TOLERANCE
        )
        if not differs:  # or is not a number
            return "they differ"
        if self.free_bytes < SPARE * self.engine_bytes:
            return (
                f"shapes without a graph need {SPARE * self.engine_bytes / 1e9:.1f} GB, and "
                f"{self.free_bytes / 1e9:.1f} GB are left"
            )
        if self.graph_seconds > (1 - gain) * self.engine_seconds:
            return f"they save less than {gain:.0%}"
        return None

    def __str__(self) -> str:
        equal = self.loss_difference == self.gradient_difference == 0
        differences = (
            "loss and gradient equal to the bit"
            if equal
            else f"relative difference of the loss {self.loss_difference:.1e}, of the gradient "
            f"{self.gradient_difference:.1e}"
        )
        return (
            f"{1e3 * self.graph_seconds:.2f} ms a micro-batch, launched one by one "
            f"{1e3 * self.engine_seconds:.2f} ms; {differences}"
        )


class MicroSteps:
    """Does the passes of a run: through the engine, or replayed where that is allowed and pays.

    A trial on the first micro-batch of a step, when kernels are warm, decides. Whatever goes wrong
    with a graph, then or later, ends their use with one line, and the run goes on without.

    Args:
        engine: DeepSpeed's, for which `why_not` says nothing unless `use` is off.
        use: off; auto, if they save time; on, in any case in which they compute the same.
        device: records and measures.
        tell: takes a line for the user.
    """

    def __init__(
        self,
        engine: Engine,
        use: Use = "off",
        device: Device | None = None,
        tell: Callable[[str], None] = print,
    ):
        self.engine = engine
        self._deepspeed: Any = engine  # which is not the control's where graphs are used
        self._gain = LEAST_GAIN if use == "auto" else -float("inf")
        self._device = device if use != "off" else None
        self._tell = tell
        self._seen: Counter[Shape] = Counter()
        self._graphs: dict[Shape, GraphedPass] = {}
        self._trial: Trial | None = None
        self._rows_of_trial = 1

    def __call__(self, batch: PackedBatch, scale: float, clock: Clock) -> Tensor:
        """Do forward and backward pass of a micro-batch; see `pass_through`."""
        if self._device is None:
            return pass_through(self.engine, batch, scale, clock)
        shape = shape_of(batch)
        self._seen[shape] += 1
        graph = self._graphs.get(shape) or self._captured(shape, batch, scale)
        if graph is None:
            return pass_through(self.engine, batch, scale, clock)
        loss = graph(batch, scale, clock)
        if self.engine.is_gradient_accumulation_boundary():
            self._deepspeed.allreduce_gradients()
        return loss

    def _captured(self, shape: Shape, batch: PackedBatch, scale: float) -> GraphedPass | None:
        """Capture a shape that has come often enough; before the first one, try it."""
        if self._trial is None and any(map(any, self.engine.optimizer.fp32_groups_has_gradients)):
            return None  # a trial begins and ends with sums that are zero
        assert self._device is not None
        if self._seen[shape] <= WARM_UP or len(self._graphs) >= MOST_GRAPHS:
            self._make_room(batch)
            return None
        why: str | None = None
        try:
            if self._trial is not None:
                graph = GraphedPass(self.engine, batch, self._device)
            else:
                graph, self._trial = self._try(self._device, batch, scale)
                if fault := self._trial.fault(gain=self._gain):
                    del graph
                    why = f"{self._trial}: not used, since {fault}"
                else:
                    self._tell(f"CUDA graphs: {self._trial}: used")
        except Exception as error:
            why = f"not used any more, {type(error).__name__}: {error}"
        if why:  # here, where no frame of an exception holds the recordings any more
            self._give_up(why)
            return None
        self._graphs[shape] = graph
        return graph

    def _make_room(self, batch: PackedBatch) -> None:
        """Give the graphs' memory back if a pass through the engine would not find enough."""
        if self._trial is not None and self._device is not None:
            rows = len(batch.input_ids) / self._rows_of_trial
            needed = SPARE * rows * self._trial.engine_bytes
            if self._device.free_bytes() < needed:
                self._give_up(f"not used any more, a rare shape needs {needed / 1e9:.1f} GB")

    def _give_up(self, why: str) -> None:
        self._graphs.clear()
        device, self._device = self._device, None
        self._tell(f"CUDA graphs: {why.splitlines()[0]}")
        if device is not None:
            device.release()

    def _try(self, device: Device, batch: PackedBatch, scale: float) -> tuple[GraphedPass, Trial]:
        """Do the same micro-batch both ways, and leave the sums of gradients as they were: zero."""
        optimizer = self.engine.optimizer
        sums: list[Tensor] = optimizer.fp32_groups_gradients_flat

        def through_engine() -> Tensor:
            return pass_through(self.engine, batch, scale, contextlib.nullcontext)

        def replayed() -> Tensor:
            return graph(batch, scale, contextlib.nullcontext)

        try:
            with self._deepspeed.no_sync():  # the ranks' gradients are not to be averaged
                engine_bytes = device.peak_bytes(through_engine)
                engine_seconds = min(device.seconds(through_engine) for _ in range(ROUNDS))
                optimizer.clear_hp_grads()
                loss = through_engine().clone()
                expected = [total.clone() for total in sums]
            optimizer.clear_hp_grads()
            graph = GraphedPass(self.engine, batch, device)
            loss_difference = float((replayed() - loss).abs() / loss.abs())
            for total, own in zip(expected, sums, strict=True):
                total.sub_(own)
            gradient_difference = float(_norm(expected) / _norm(sums))
            graph_seconds = min(device.seconds(replayed) for _ in range(ROUNDS))
        finally:
            optimizer.clear_hp_grads()
        self._rows_of_trial = len(batch.input_ids)
        seconds, differences = (
            (engine_seconds, graph_seconds),
            (loss_difference, gradient_difference),
        )
        return graph, Trial(*seconds, *differences, engine_bytes, device.free_bytes())


def _norm(tensors: list[Tensor]) -> Tensor:
    norms = torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])
    whole: Tensor = torch.linalg.vector_norm(norms)
    return whole
