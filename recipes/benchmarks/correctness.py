"""Kernels against references on this device, before any of them is timed.

The references are formulas in fp64 on the same inputs, with the same dropout masks. An error is the
2-norm of the difference over that of the reference; of the backward pass it is the largest of those
of all gradients. Sequences have 1, 127, 128, 129 and other numbers of tokens; one is empty; rows
behind the last one belong to none. Before that a whole model of two layers: loss and gradients in
fp32 with the kernels that training takes here, against the plain ones.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from model.attention import BACKENDS, alibi_slopes, check_backend, packed_attention
from model.config import ModelOptions
from model.kernels import KERNELS, check_kernels
from model.kernels import operations as ops
from model.kernels.hashed_dropout import keep_mask, row_keys
from model.masked_lm import IGNORED_LABEL, RapidBertForMaskedLM
from recipes.benchmarks.records import Record, Rows, panels
from recipes.benchmarks.training_step import full_batch, one_process, recommended
from recipes.reporting.figures import COLORS

BY_DEVICE = True
LIMITS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
OTHERS = 5
"""Times these limits for torch's and FlashAttention's kernels, which may round at every step."""
MODEL_LIMIT = 1e-4
"""Of a whole model in fp32: rounding adds up over the layers."""
DROPOUT, SITE = 0.1, 5

Errors = tuple[float, float]


@dataclass(frozen=True)
class Check:
    """An operation and what it must equal."""

    name: str
    needs: str
    """The attention backend or the kernels."""
    available: Callable[[], None]
    """Raises ValueError with the reason where these cannot run here."""
    operation: Callable[..., Tensor]
    exact: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    """Of the inputs, all of which have a gradient."""
    dtypes: tuple[torch.dtype, ...]

    @property
    def own(self) -> bool:
        """Whether its kernels are this package's."""
        return self.needs.endswith("triton")

    def errors(self, dtype: torch.dtype, device: torch.device) -> Errors:
        """Relative errors of the values and of the gradients."""
        draw = torch.Generator().manual_seed(0)
        inputs = [torch.randn(shape, generator=draw).to(device, dtype) for shape in self.shapes]
        exact = [given.double().requires_grad_() for given in inputs]
        inputs = [given.requires_grad_() for given in inputs]
        found, expected = self.operation(*inputs), self.exact(*exact)
        gradient = torch.randn(expected.shape, generator=draw).to(device, found.dtype)
        gradients = torch.autograd.grad(found, inputs, gradient)
        expected_gradients = torch.autograd.grad(expected, exact, gradient.double())
        return (
            relative_error(found, expected),
            max(map(relative_error, gradients, expected_gradients)),
        )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, 2-norms; not a number where `found` holds one."""
    return float((found.double() - expected).detach().norm() / expected.detach().norm())


def add_options(parser: ArgumentParser) -> None:
    """None: what is right does not depend on options."""


def benchmark(options: Namespace, record: Record) -> None:
    record["settings"] = {
        "limits": LIMITS | {"model in float32": MODEL_LIMIT},
        "of_torch_and_flash_times": OTHERS,
        "dropout": DROPOUT,
    }
    record["points"] = []
    with one_process():
        model = "rapidbert-base" if record.gpu else "rapidbert-tiny"
        found = record.attempt(f"{model}, float32", model_errors, model, record)
        judge(record, model, "float32", found, MODEL_LIMIT)
    for check, dtype in in_order([*attention_checks(record.device), *kernel_checks(record.device)]):
        kind = str(dtype).removeprefix("torch.")
        try:
            check.available()
        except ValueError as reason:
            record["not_run"][check.needs] = str(reason)
            continue
        if not record.out_of_time(f"{check.name}, {kind}"):
            found = record.attempt(f"{check.name}, {kind}", check.errors, dtype, record.device)
            judge(record, check.name, kind, found, LIMITS[kind] * (1 if check.own else OTHERS))


def in_order(checks: list[Check]) -> list[tuple[Check, torch.dtype]]:
    """Every check in every precision, the most important first, what compiles for long last."""
    precisions = (torch.bfloat16, torch.float32, torch.float16)
    pairs = [(check, dtype) for check in checks for dtype in check.dtypes]
    return sorted(
        pairs,
        key=lambda pair: (
            pair[0].needs == "kernels compile",
            precisions.index(pair[1]),
            not pair[0].own,
        ),
    )


def judge(record: Record, what: str, dtype: str, errors: Errors | None, limit: float) -> None:
    """Note errors; one beyond its limit, or one that is not a number, is a failure."""
    if errors is not None:
        forward, backward = errors
        right = forward <= limit and backward <= limit
        record["points"].append(
            {
                "what": what,
                "dtype": dtype,
                "forward": forward,
                "backward": backward,
                "limit": limit,
                "within_limit": right,
            }
        )
        if not right:
            said = f"relative error {forward:.1e} forward, {backward:.1e} backward, over {limit:g}"
            record["failures"][f"{what}, {dtype}"] = said
            print(f"WRONG: {what}, {dtype}: {said}", flush=True)
    record["within_limits"] = all(point["within_limit"] for point in record["points"])
    record.save()


@dataclass(frozen=True)
class _Packing:
    """A packed batch with all that is odd: very short sequences, an empty one, rows of none."""

    lengths: tuple[int, ...]
    device: torch.device

    @property
    def rows(self) -> int:
        return sum(self.lengths) + 5

    @property
    def offsets(self) -> Tensor:
        return torch.tensor([0, *self.lengths], device=self.device).cumsum(0).int()

    @property
    def keys(self) -> Tensor:
        of_sequences = torch.arange(len(self.lengths), device=self.device) * 2**40
        return row_keys(of_sequences, self.offsets, self.rows)


def _packing(device: torch.device) -> _Packing:
    lengths = (1, 127, 128, 129, 16, 0, 300) if device.type == "cuda" else (1, 33, 0, 16)
    return _Packing(lengths, device)


def _dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    half = (torch.float16,) if device.type == "cuda" else ()
    return (torch.float32, torch.bfloat16, *half)


def attention_checks(device: torch.device) -> Iterator[Check]:
    """Every backend, with heads of 64 and of 128 columns, in sequences short and long."""
    packing = _packing(device)
    longest = max(packing.lengths)
    sizes = ((12, 64), (2, 128)) if device.type == "cuda" else ((2, 64),)
    for backend in BACKENDS:
        # FlashAttention has no fp32.
        dtypes = tuple(d for d in _dtypes(device) if backend != "flash" or d.itemsize == 2)
        for heads, dim in sizes:
            # Where all sequences are short enough a kernel may hold each of them whole.
            for most in dict.fromkeys((min(128, longest), longest)):
                short = replace(packing, lengths=tuple(n for n in packing.lengths if n <= most))
                slopes = torch.tensor(alibi_slopes(heads), device=device)
                yield Check(
                    f"attention {backend}, heads of {dim}, up to {most} tokens",
                    f"attention {backend}",
                    partial(check_backend, backend, device.type),
                    partial(
                        packed_attention,
                        sequence_offsets=short.offsets,
                        max_sequence_length=most,
                        slopes=slopes,
                        backend=backend,
                    ),
                    partial(exact_attention, packing=short, slopes=slopes),
                    ((short.rows, heads, 3, dim),),
                    dtypes,
                )


def exact_attention(qkv: Tensor, packing: _Packing, slopes: Tensor) -> Tensor:
    """[T, H, 3, D] to [T, H, D], one sequence after the other."""
    contexts, start = [], 0
    for length in packing.lengths:
        q, k, v = qkv[start : start + length].permute(2, 1, 0, 3)  # each [H, L, D]
        at = torch.arange(length, device=qkv.device)
        bias = -slopes[:, None, None] * (at[:, None] - at[None, :]).abs()  # [H, L, L]
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
        contexts.append((weights @ v).transpose(0, 1))
        start += length
    return torch.cat([*contexts, torch.zeros_like(qkv[start:, :, 0])])


def kernel_checks(device: torch.device) -> Iterator[Check]:
    """The norm, the GLU and the loss of every kind of kernels."""
    packing = _packing(device)
    rows, keys = packing.rows, packing.keys
    width, vocabulary = (768, 30_528) if device.type == "cuda" else (48, 96)
    labels = torch.arange(rows, device=device) * 7 % vocabulary
    labels[::5] = IGNORED_LABEL
    for kernels in KERNELS:
        available = partial(check_kernels, kernels, device.type)
        common = available, _dtypes(device)
        stream, vector = (rows, 1, width), (width,)

        def check(name: str, operation: Any, exact: Any, *shapes: Any, common=common, k=kernels):
            return Check(
                f"{name} {k}", f"kernels {k}", common[0], operation, exact, shapes, common[1]
            )

        yield check(
            "norm",
            partial(_norm, keys=keys, kernels=kernels),
            partial(exact_norm, keys=keys),
            *(stream, vector, stream, vector, vector),
        )
        yield check(
            "GLU",
            partial(_glu, keys=keys, kernels=kernels),
            partial(exact_glu, keys=keys),
            (rows, 1, 8 * width),
        )
        yield check(
            "loss",
            partial(_loss, labels=labels, kernels=kernels),
            partial(exact_loss, labels=labels),
            (rows, vocabulary),
        )


def _norm(x, bias, residual, weight, norm_bias, *, keys: Tensor, kernels: str) -> Tensor:
    norm: Any = SimpleNamespace(weight=weight, bias=norm_bias, eps=1e-12)
    return ops.residual_norm(x, bias, residual, norm, DROPOUT, keys, SITE, kernels)[0]


def _glu(gate_and_value: Tensor, *, keys: Tensor, kernels: str) -> Tensor:
    return ops.gated_gelu(gate_and_value, DROPOUT, keys, SITE, 0, kernels)


def _loss(logits: Tensor, *, labels: Tensor, kernels: str) -> Tensor:
    # A copy, because a kernel may leave the gradient in the logits' memory.
    return ops.cross_entropy(logits.clone(), labels, IGNORED_LABEL, kernels)


def _dropped(x: Tensor, keys: Tensor) -> Tensor:
    kept = keep_mask(keys, SITE, x.shape[-1], DROPOUT).view(x.shape)
    return x * kept / (1 - DROPOUT)


def exact_norm(x, bias, residual, weight, norm_bias, *, keys: Tensor) -> Tensor:
    """LayerNorm(residual + dropout(x + bias))."""
    total = residual + _dropped(x + bias, keys)
    centred = total - total.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt() * weight + norm_bias


def exact_glu(gate_and_value: Tensor, *, keys: Tensor) -> Tensor:
    """dropout(gelu(gate) * value)."""
    gate, value = gate_and_value.chunk(2, dim=-1)
    return _dropped(0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * value, keys)


def exact_loss(logits: Tensor, *, labels: Tensor) -> Tensor:
    """Sum of the cross-entropies of the rows that count."""
    counted = (labels != IGNORED_LABEL).nonzero().flatten()
    picked = logits[counted, labels[counted]]
    return (logits[counted].logsumexp(-1) - picked).sum()


def model_errors(name: str, record: Record) -> Errors:
    """Of the loss and of the parameters' gradients, in training mode with dropout as it is."""
    setup, _ = recommended(name, record)
    config = replace(setup.model, num_layers=2)
    sequences = 8 if record.gpu else 2
    batch = full_batch(config, sequences, 128).to(record.device)
    losses, gradients = [], []
    for attention, kernels in (("reference", "torch"), (setup.attention, setup.kernels)):
        torch.manual_seed(0)
        model = (
            RapidBertForMaskedLM(config, ModelOptions(attention, kernels)).to(record.device).train()
        )
        loss = model(
            batch.input_ids,
            batch.sequence_offsets,
            batch.max_sequence_length,
            batch.masked_positions,
            batch.labels,
            sequence_keys=batch.sequence_keys,
        )
        losses.append(loss.detach().double())
        found = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([gradient.flatten().double() for gradient in found]))
    return relative_error(losses[1], losses[0]), relative_error(gradients[1], gradients[0])


def figure(record: dict[str, Any]) -> Figure:
    """Errors on a logarithmic axis, with their limits."""
    points = record["points"]
    drawn, ((axes,),) = panels(
        1, 1, "Kernels against references", record, height=1.2 + 0.2 * len(points)
    )
    for place, point in enumerate(points):
        for name, marker, color in (("forward", "o", COLORS[0]), ("backward", "s", COLORS[1])):
            label = name if place == 0 else None
            error = max(point[name], 1e-17)
            axes.plot(error, place, marker, color=color, label=label, markersize=5)
        axes.plot(
            point["limit"],
            place,
            "|",
            color="black",
            markersize=9,
            label="limit" if place == 0 else None,
        )
    axes.set_xscale("log")
    names = [f"{point['what']}, {point['dtype']}" for point in points]
    axes.set_yticks(range(len(points)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("relative error (2-norm)")
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return drawn


def table(record: dict[str, Any]) -> Rows:
    rows: Rows = [("what", "precision", "forward", "backward", "limit", "")]
    for point in record["points"]:
        rows.append(
            (
                point["what"],
                point["dtype"],
                f"{point['forward']:.1e}",
                f"{point['backward']:.1e}",
                f"{point['limit']:g}",
                "" if point["within_limit"] else "WRONG",
            )
        )
    return rows


def headlines(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The largest errors of each precision, and the verdict."""
    verdict = "all within their limits" if record["within_limits"] else "WRONG KERNELS"
    lines = [("verdict", f"{len(record['points'])} comparisons, {verdict}")]
    for dtype in LIMITS:
        mine = [point for point in record["points"] if point["dtype"] == dtype]
        if mine:
            forward, backward = (max(p[key] for p in mine) for key in ("forward", "backward"))
            lines.append(
                (f"largest relative error, {dtype}", f"{forward:.1e} / {backward:.1e} fwd / bwd")
            )
    return lines
