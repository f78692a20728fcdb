from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from plain_bert import paper_slopes
from torch import Tensor

from model import padded_attention
from model.attention import (
    BACKENDS,
    alibi_slopes,
    best_backend,
    packed_attention,
    plan_attention,
    slopes_on,
)
from model.config import ATTENTION_BACKENDS

# On the CPU: FlashAttention-2 has none, Triton's interpreter is off where there is a GPU.
HERE = ("reference", "sdpa", *(() if torch.cuda.is_available() else ("triton",)))


def test_the_names_that_need_no_torch_are_the_backends():
    assert set(ATTENTION_BACKENDS) == set(BACKENDS)


def test_slopes_by_hand():
    eight = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert alibi_slopes(8) == eight
    # 12: the eight, then every second one of sixteen heads.
    assert alibi_slopes(12) == pytest.approx(eight + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
    assert alibi_slopes(16) == pytest.approx([2 ** (-k / 2) for k in range(1, 17)])
    assert alibi_slopes(3) == pytest.approx([1 / 16, 1 / 256, 1 / 4])


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 20, 28])
def test_slopes_by_the_papers_rule(heads):
    slopes = alibi_slopes(heads)
    assert slopes == pytest.approx(paper_slopes(heads))
    assert len(set(slopes)) == heads


def test_slopes_of_a_tensor_parallel_rank_are_its_part_of_all():
    device = torch.device("cpu")
    parts = [slopes_on(device, 12, first, 4) for first in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), slopes_on(device, 12, 0, 12))
    assert parts[0].dtype == torch.float32


def attention_by_loops(q: Tensor, k: Tensor, v: Tensor, offsets: list[int], slopes) -> Tensor:
    context = torch.zeros_like(q)
    for start, end in itertools.pairwise(offsets):
        for head in range(q.shape[1]):
            for i in range(start, end):
                scores = []
                for j in range(start, end):
                    score = torch.dot(q[i, head], k[j, head]) / math.sqrt(q.shape[2])
                    scores.append(score - (slopes[head] * abs(i - j) if slopes else 0.0))
                weights = torch.stack(scores).softmax(0)
                context[i, head] = weights @ v[start:end, head]
    return context


@pytest.mark.parametrize("alibi", [True, False])
@pytest.mark.parametrize("max_length", [6, 16])
@pytest.mark.parametrize("backend", HERE)
def test_backends_equal_the_loops(backend, max_length, alibi):
    torch.manual_seed(0)
    # Empty sequences in the middle and at the end, and two rows behind the last one.
    offsets, tokens = [0, 4, 4, 5, 11, 11], 13
    qkv = torch.randn(tokens, 3, 3, 8, requires_grad=True)
    slopes = paper_slopes(3) if alibi else None
    q, k, v = qkv.unbind(2)
    expected = attention_by_loops(q, k, v, offsets, slopes)
    weight = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), qkv)

    context = packed_attention(
        qkv,
        torch.tensor(offsets, dtype=torch.int32),
        max_length,
        slopes=torch.tensor(slopes) if alibi else None,
        backend=backend,
    )
    torch.testing.assert_close(context, expected, rtol=0, atol=1e-6)
    assert not context[11:].any()
    (grad,) = torch.autograd.grad((context * weight).sum(), qkv)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=5e-6)
    assert not grad[11:].any()


@pytest.mark.parametrize("alibi", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_calls_of_one_and_of_several_sequences_equal_the_reference(alibi, dtype, monkeypatch):
    """On the CPU; the whole batch in one call, as on a GPU, too."""
    torch.manual_seed(0)
    lengths, outside = [70, 0, 20, 9, 20, 300, 1, 1, 0, 65, 64], 3
    ends = list(itertools.accumulate(lengths))
    offsets = torch.tensor([0, *ends], dtype=torch.int32)
    slopes = torch.tensor(paper_slopes(3)) if alibi else None
    qkv = torch.randn(ends[-1] + outside, 3, 3, 8, dtype=dtype)
    qkv[ends[-1] :] = float("nan")  # what such rows hold is not read
    qkv.requires_grad_()
    weight = torch.randn_like(qkv[:, :, 0])

    def attend(backend: str) -> tuple[Tensor, Tensor]:
        context = packed_attention(qkv, offsets, 300, slopes=slopes, backend=backend)
        (gradient,) = torch.autograd.grad(context, qkv, weight)
        assert not context[ends[-1] :].any() and not gradient[ends[-1] :].any()
        return context.detach(), gradient

    plan = plan_attention("sdpa", offsets, 300, len(qkv), slopes, dtype)
    assert [call.rows for call in plan.calls] == [70, 49, 300, 2, 65, 64]
    assert [call.padding is None for call in plan.calls] == [True, False, True, False, True, True]
    expected, alone = attend("reference"), attend("sdpa")
    whole = functools.partial(padded_attention.plan_padding, one_call=True)
    monkeypatch.setattr(
        "model.attention.plan_padding", lambda *arguments, one_call: whole(*arguments)
    )
    tolerance = dict(rtol=0, atol=1e-5) if dtype == torch.float32 else dict(rtol=0.02, atol=0.06)
    for found in (alone, attend("sdpa")):
        for name, one, other in zip(("context", "gradient"), found, expected, strict=True):
            torch.testing.assert_close(
                one, other, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("backend", HERE)
def test_nothing_but_empty_sequences_gives_zeros_and_finite_gradients(backend):
    qkv = torch.randn(4, 2, 3, 8, requires_grad=True)
    offsets = torch.zeros(3, dtype=torch.int32)
    context = packed_attention(qkv, offsets, 4, slopes=torch.tensor([0.5, 0.25]), backend=backend)
    context.sum().backward()
    assert not context.any()
    assert qkv.grad is not None and not qkv.grad.any()


@pytest.mark.parametrize("backend", ("reference", "sdpa"))
def test_dropout_falls_on_the_attention_weights(backend):
    torch.manual_seed(0)
    sequences, length = 64, 16
    query = torch.randn(sequences * length, 1, length)
    offsets = torch.arange(0, sequences * length + 1, length, dtype=torch.int32)
    # Each token's value is the unit vector of its position, so a context is a row of weights.
    value = torch.eye(length).repeat(sequences, 1).unsqueeze(1)
    arguments = (torch.stack([query, query, value], 2), offsets, length)
    weights = packed_attention(*arguments, slopes=None, backend=backend)
    dropped = packed_attention(*arguments, slopes=None, dropout=0.25, backend=backend)
    torch.testing.assert_close(weights.sum(-1), torch.ones(sequences * length, 1))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], weights[kept] / 0.75)
    # 16,384 draws: five standard deviations are 0.017.
    assert (~kept).float().mean().item() == pytest.approx(0.25, abs=0.017)


def test_what_cannot_run_is_named():
    qkv, offsets = torch.randn(2, 1, 3, 8), torch.tensor([0, 2], dtype=torch.int32)

    def attend(backend: str, dropout: float = 0.0):
        packed_attention(qkv, offsets, 2, slopes=None, dropout=dropout, backend=backend)

    with pytest.raises(ValueError, match="'nothing'; known: reference, sdpa, triton, flash"):
        attend("nothing")
    with pytest.raises(ValueError, match="'flash': .*not installed; use 'sdpa'"):
        attend("flash")
    with pytest.raises(ValueError, match="'triton': it does not drop attention weights"):
        attend("triton", dropout=0.1)


def test_the_best_backend_is_one_that_can():
    assert best_backend("cuda", "bf16", 0.0) == "triton"
    assert best_backend("cuda", "fp32", 0.0) == "sdpa"
    assert best_backend("cuda", "bf16", 0.1) == "sdpa"
    assert best_backend("cpu", "bf16", 0.0) == "sdpa"


@pytest.mark.parametrize("backend", HERE)
def test_a_sequence_that_is_too_long_is_not_cut(backend):
    qkv = torch.randn(7, 1, 3, 8)
    offsets = torch.tensor([0, 2, 7], dtype=torch.int32)
    with pytest.raises(ValueError, match="sequence of 5 tokens is longer than .* 4"):
        packed_attention(qkv, offsets, 4, slopes=None, backend=backend)
