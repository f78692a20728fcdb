"""The work between the matmuls, and the choice of kernels for it.

At these sizes the time that is not spent in matmuls is spent in moving activations, so what counts
is how often a tensor is read and written. Worth a kernel of their own are

    residual_norm    LayerNorm(residual + dropout(x + bias)), in places without the dropout
    gated_gelu       dropout(gelu(gate) * value)
    cross_entropy    log-softmax over the vocabulary and the picked label
    norm_dropout     dropout(LayerNorm(x + bias)), behind the embedding
    dropout          by itself, before a classifier
    embedding        the gradient of a table, summed by id in a fixed order
    attention        softmax(q k^T + ALiBi) v of packed sequences, short and tiled

`operations` has all but attention as functions with a choice of

    torch      plain PyTorch, one pass over memory for each operator; what the others must equal
    compile    the same functions through torch.compile
    triton     the file of the operation's name: one pass forward and one backward, dropout masks
               computed and not stored, the loss without fp32 copies of the logits

Attention has a choice of its own, in `model.attention`. `hashed_dropout` says what the masks are.
`ctx` is `Any` in all of them, because torch lets every function put its own attributes there.

The files with Triton kernels are imported by the first call that needs one: Triton may be missing.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec

KERNELS = ("torch", "compile", "triton")


def best_kernels(device_type: str) -> str:
    """Name the fastest kernels that need no compiler on a device of this type."""
    return "triton" if device_type == "cuda" else "torch"


def check_kernels(kernels: str, device_type: str) -> None:
    """Raise ValueError for kernels that are unknown or cannot run on a device of this type."""
    if kernels not in KERNELS:
        raise ValueError(f"unknown kernels {kernels!r}; known: {', '.join(KERNELS)}")
    if kernels == "triton" and (reason := why_no_triton(device_type)):
        raise ValueError(f"kernels 'triton': {reason}; use 'torch' or 'compile'")


@functools.cache
def installed(package: str) -> bool:
    """Say whether `package` can be imported. The answer is kept: attention asks in every layer."""
    return find_spec(package) is not None


def why_no_triton(device_type: str) -> str | None:
    """Say why Triton kernels cannot run on a device of this type; None if they can."""
    if not installed("triton"):
        return "the package triton is not installed"
    if device_type == "cuda":
        return None
    import triton

    if triton.knobs.runtime.interpret:
        return None
    return "they need a GPU (or TRITON_INTERPRET=1, which computes them slowly on the CPU)"
