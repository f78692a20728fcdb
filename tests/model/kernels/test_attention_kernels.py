"""The attention kernels, and every backend, against fp64 attention written out here."""

from __future__ import annotations

import math
import random

import pytest
import torch
from exact import GPU, TIMES_OF_OTHERS
from plain_bert import paper_slopes
from torch import Tensor, nn

from model.attention import BACKENDS, check_backend, packed_attention
from model.kernels.attention import attention, attention_op

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("on_device")]

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def by_sequence(qkv: Tensor, lengths: list[int], slopes: Tensor | None) -> Tensor:
    parts, start = [], 0
    for length in lengths:
        q, k, v = qkv[start : start + length].permute(2, 1, 0, 3)  # [H, length, D]
        scores = q @ k.transpose(1, 2) / math.sqrt(qkv.shape[3])
        if slopes is not None:
            at = torch.arange(length)
            scores = scores - slopes.view(-1, 1, 1) * (at[:, None] - at).abs()
        parts.append((scores.softmax(-1) @ v).transpose(0, 1))
        start += length
    return torch.cat([*parts, qkv.new_zeros(len(qkv) - start, *qkv.shape[1::2])])


def packed(lengths: list[int], tail: int, heads: int, head_dim: int, dtype: torch.dtype):
    torch.manual_seed(0)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    qkv = torch.randn(int(offsets[-1]) + tail, heads, 3, head_dim, dtype=torch.float64)
    return qkv.to(dtype).requires_grad_(), offsets


def check(
    lengths,
    max_length,
    *,
    tail=5,
    heads=2,
    head_dim=64,
    dtype=torch.float32,
    alibi=True,
    attend=attention,
    times=1,
):
    qkv, offsets = packed(lengths, tail, heads, head_dim, dtype)
    slopes = torch.tensor(paper_slopes(heads)) if alibi else None
    exact = qkv.detach().double().requires_grad_()
    expected = by_sequence(exact, lengths, slopes)
    weight = torch.randn(expected.shape, dtype=torch.float64).to(dtype)
    (expected * weight.double()).sum().backward()

    found = attend(qkv, offsets, slopes, max_length)
    (found * weight).sum().backward()
    for one, other in ((found, expected), (qkv.grad, exact.grad)):
        assert one.dtype == dtype
        error = (one.detach().double() - other).norm() / other.norm()
        assert error < times * TOLERANCE[dtype], float(error)
        assert not one[int(offsets[-1]) :].any()


# Two blocks of fp64 are more than the shared memory of most GPUs; small heads are tested below.
@pytest.mark.parametrize("dtype", [t for t in TOLERANCE if not (GPU and t.itemsize == 8)], ids=str)
@pytest.mark.parametrize("max_length", [128, 192], ids=["whole", "tiled"])
def test_every_precision(max_length, dtype):
    check([127, 1, 0, 128], max_length, dtype=dtype)


@pytest.mark.parametrize(
    ("lengths", "max_length"),
    [
        ([1], 1),
        ([2, 0, 0, 1], 2),
        ([17, 31, 32, 33], 33),
        ([63, 64, 65], 65),
        ([129], 129),
        ([200, 3, 0, 129], 200),
        ([0, 64, 0], 300),
    ],
)
def test_any_lengths(lengths, max_length):
    check(lengths, max_length)


@pytest.mark.parametrize("max_length", [40, 150])
@pytest.mark.parametrize("head_dim", [8, 40, 128])
def test_any_width_of_a_head(head_dim, max_length):
    dtype = (
        torch.bfloat16 if GPU else torch.float32
    )  # small GPUs have no room for the widest in fp32
    check([33, 40], max_length, head_dim=head_dim, heads=3, dtype=dtype)


@pytest.mark.parametrize("max_length", [48, 150])
def test_without_alibi(max_length):
    check([30, 48], max_length, alibi=False)


def test_many_heads():
    check([9, 4], 16, heads=28, head_dim=16)


@pytest.mark.parametrize("tail", [0, 1, 64, 700])
@pytest.mark.parametrize("max_length", [16, 130])
def test_rows_behind_the_last_sequence_are_zeros(max_length, tail):
    check([3, 16], max_length, tail=tail, heads=1, head_dim=16)


@pytest.mark.parametrize("max_length", [20, 150])
def test_random_packings(max_length):
    draw = random.Random(max_length)
    lengths = [draw.randint(0, max_length) for _ in range(6)]
    check(lengths, max_length, heads=1, head_dim=16)


@pytest.mark.parametrize("max_length", [16, 150])
def test_gradients_against_differences(max_length):
    qkv, offsets = packed([2, 0, 1], 1, 1, 2, torch.float64)
    slopes = torch.tensor([0.5])
    assert torch.autograd.gradcheck(lambda x: attention(x, offsets, slopes, max_length), (qkv,))


@pytest.mark.parametrize("max_length", [16, 150])
def test_outputs_are_written_whole(poisoned_memory, max_length):
    check([3, 0, 16], max_length, heads=1, head_dim=16)


@pytest.mark.parametrize("max_length", [16, 130])
def test_a_sequence_that_is_too_long_is_no_number(max_length):
    """Where the host cannot look, the result must not look like one."""
    qkv, offsets = packed([5, 2 * max_length + 70], 0, 1, 16, torch.float32)
    found = attention(qkv, offsets, None, max_length)
    assert found[:5].isfinite().all()
    assert found[5:].isnan().all()


@pytest.mark.skipif(not GPU, reason="programs of the interpreter take turns")
@pytest.mark.parametrize("max_length", [128, 512])
def test_the_backward_pass_repeats_to_the_bit(max_length):
    qkv, offsets = packed([max_length, 97, 13] * 100, 0, 12, 64, torch.bfloat16)
    gradients = []
    for _ in range(3):
        found = attention(qkv, offsets, None, max_length)
        gradients.append(torch.autograd.grad(found.square().sum(), qkv)[0])
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("max_length", [128, 300], ids=["short", "tiled"])
@pytest.mark.parametrize(("heads", "head_dim"), [(12, 64), (2, 128)] if GPU else [(2, 64)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_at_the_sizes_of_training(backend, heads, head_dim, max_length, dtype):
    device = "cuda" if GPU else "cpu"
    try:
        check_backend(backend, device)
    except ValueError as reason:
        pytest.skip(str(reason))
    if backend == "flash" and dtype == torch.float32:
        pytest.skip("FlashAttention has no fp32")
    if backend == "triton" and dtype == torch.float32 and head_dim == 128:
        pytest.skip("small GPUs have no room for it, and fp32 is not trained with it")
    if backend == "triton" and not GPU:
        pytest.skip("its interpreter computes the tests above")

    def attend(qkv: Tensor, offsets: Tensor, slopes: Tensor, longest: int) -> Tensor:
        return packed_attention(qkv, offsets, longest, slopes=slopes, backend=backend)

    lengths = [length for length in (1, 127, 128, 129, 16, 0, 300) if length <= max_length]
    times = 1 if backend == "triton" else TIMES_OF_OTHERS
    check(
        lengths,
        max_length,
        heads=heads,
        head_dim=head_dim,
        dtype=dtype,
        attend=attend,
        times=times,
    )


@pytest.mark.parametrize("max_length", [16, 150])
def test_the_gradient_of_a_bias_is_the_sum_over_tokens(max_length):
    """Of rows that belong to a sequence, and of empty sequences nothing."""
    qkv, offsets = packed([16, 0, 9, 13], 5, 2, 16, torch.float64)
    slopes = torch.tensor(paper_slopes(2))
    plain = qkv.detach()
    bias = torch.randn(2 * 3 * 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(qkv), 2, 16, dtype=torch.float64)
    grads = []
    for tapped in (False, True):
        added = plain + (bias.detach() if tapped else bias).view(2, 3, 16)
        found = attention(added, offsets, slopes, max_length, bias if tapped else None)
        grads.append(torch.autograd.grad((found * weight).sum(), bias)[0])
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("max_length", [16, 150])
def test_torch_compile_takes_it_as_it_is(max_length):
    """One graph without a break around it, forward and backward, the same numbers."""
    qkv, offsets = packed([16, 9, 13], 2, 2, 16, torch.float32)
    slopes = torch.tensor(paper_slopes(2))

    def region(x: Tensor) -> Tensor:
        context = attention(x * 2, offsets, slopes, max_length)
        return nn.functional.layer_norm(context.flatten(1), (32,)) * context.flatten(1)

    compiled = torch.compile(region, fullgraph=True, backend="aot_eager")
    weight = torch.randn(len(qkv), 32)
    results = []
    for function in (region, compiled):
        found = function(qkv)
        results.append((found, *torch.autograd.grad((found * weight).sum(), qkv)))
    torch.testing.assert_close(results[1], results[0])
    torch.library.opcheck(attention_op, (qkv, offsets, slopes, max_length))
