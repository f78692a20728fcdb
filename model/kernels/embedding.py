"""Triton kernels of the gradient of a table whose rows are looked up, summed in a fixed order.

The rows of the gradient are put in the order of their ids, those of one id in the order of the
batch, and summed in chunks of a few rows: by a matrix product with zeros and ones, on tensor cores,
in fp32. An id whose rows lie in one chunk is done with that; of others, such as [MASK], chunks
leave partial sums, which a second kernel adds. No two programs write to one place, and the result
is the same to the bit each time. PyTorch's own kernels add the partial sums of an id one after the
other, and (from 2.11 at the latest) those of a table of a few hundred rows in whatever order they
come, so that a resumed run would not be the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .attention_parts import dot
from .launch import FUSED, VARYING, accumulator, triton_accumulator

_ROWS, _COLUMNS = 32, 128
"""Of a chunk; and as many partial sums of an id are read at once."""


@triton.jit(do_not_specialize=VARYING)
def _embedding_backward(
    DOutput, Ids, Order, DTable, Parts,
    rows, ids_end, columns_in_all,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum the rows of each id of a chunk; Parts [chunks, 2, columns]: 0 is for the id that came in
    from the chunk before, 1 for the one that begins here and goes on in the next."""
    chunk = tl.program_id(0)
    begin, end = chunk * ROWS, (chunk + 1) * ROWS
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = begin + tl.arange(0, ROWS)
    ids = tl.load(Ids + place, place < rows, ids_end).to(tl.int32)
    ids_before = tl.load(Ids + place - 1, (place > 0) & (place < rows), -1).to(tl.int32)
    before = tl.load(Ids + begin - 1, chunk > 0, -1).to(tl.int32)
    after = tl.load(Ids + end, end < rows, -1).to(tl.int32)

    row = tl.load(Order + place, place < rows, 0).to(tl.int64)
    inside = (ids < ids_end)[:, None] & (columns < columns_in_all)[None, :]
    x = tl.load(DOutput + row[:, None] * columns_in_all + columns[None, :], inside, 0.0)
    same = tl.where(ids[:, None] == ids[None, :], 1.0, 0.0).to(x.dtype)
    sums = dot(same, x, ACC)  # in each row the sum of its id's

    first = ((place == begin) | (ids != ids_before))[:, None] & inside
    came_in, goes_on = ids == before, ids == after
    whole = first & ~(came_in | goes_on)[:, None]
    to = DTable + ids.to(tl.int64)[:, None] * columns_in_all + columns[None, :]
    tl.store(to, sums.to(DTable.dtype.element_ty), whole)
    part = chunk.to(tl.int64) * 2 + tl.where(came_in, 0, 1)
    to = Parts + part[:, None] * columns_in_all + columns[None, :]
    tl.store(to, sums, first & (came_in | goes_on)[:, None])


@triton.jit(do_not_specialize=VARYING)
def _embedding_parts_backward(
    Ids, DTable, Parts,
    rows, chunks, ids_end, columns_in_all,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add the parts of the id that begins in this chunk and goes on in the next, if one does."""
    chunk = tl.program_id(0)
    begin, end = chunk * ROWS, (chunk + 1) * ROWS
    before = tl.load(Ids + begin - 1, chunk > 0, -1).to(tl.int32)
    mine = tl.load(Ids + end - 1, end < rows, -1).to(tl.int32)
    after = tl.load(Ids + end, end < rows, -2).to(tl.int32)
    if (mine == after) & (mine != before) & (mine < ids_end):
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < columns_in_all
        own = Parts + (chunk.to(tl.int64) * 2 + 1) * columns_in_all
        total = tl.zeros([ROWS, COLUMNS], ACC)
        next = chunk + 1
        while tl.load(Ids + next * ROWS, next < chunks, -1).to(tl.int32) == mine:
            others = next + tl.arange(0, ROWS)
            ids = tl.load(Ids + others * ROWS, others < chunks, -1).to(tl.int32)
            at = others.to(tl.int64)[:, None] * (2 * columns_in_all) + columns[None, :]
            total += tl.load(Parts + at, (ids == mine)[:, None] & inside[None, :], 0.0)
            next += ROWS
        sums = tl.load(own + columns, inside, 0.0) + tl.sum(total, 0)
        to = DTable + mine.to(tl.int64) * columns_in_all + columns
        tl.store(to, sums.to(DTable.dtype.element_ty), inside)


class Embedding(torch.autograd.Function):
    """Gives `operations.embedding` its gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        ctx.save_for_backward(ids, real)
        ctx.ids_end = table.shape[0]
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor, None, None]:
        ids, real = ctx.saved_tensors
        return table_gradient(d_output, ids, real, ctx.ids_end), None, None


def table_gradient(d_output: Tensor, ids: Tensor, real: Tensor, ids_end: int) -> Tensor:
    """Sum the rows of each id.

    Args:
        d_output: [T, N]; ids: int64 [T], from 0 to `ids_end` - 1.
        real: integer scalar; the rows behind so many are left out, whatever they hold.

    Returns:
        [ids_end, N] in the dtype of `d_output`, each row rounded once.
    """
    d_output = d_output.contiguous()
    rows, columns = d_output.shape
    # The shortest integers are sorted fastest. The rows left out stand last, under no id.
    kind = torch.int16 if ids_end < 2**15 else torch.int32
    behind = torch.arange(rows, device=ids.device) >= real
    in_order, order = ids.masked_fill(behind, ids_end).to(kind).sort(stable=True)
    d_table = d_output.new_zeros(ids_end, columns)
    chunks = triton.cdiv(rows, _ROWS)
    parts = d_output.new_empty((chunks, 2, columns), dtype=accumulator(d_output))
    options: dict[str, Any] = dict(ACC=triton_accumulator(d_output), num_warps=4, **FUSED)
    options |= dict(ROWS=_ROWS, COLUMNS=_COLUMNS)
    grid = chunks, triton.cdiv(columns, _COLUMNS)
    _embedding_backward[grid](
        d_output, in_order, order, d_table, parts, rows, ids_end, columns, **options
    )
    _embedding_parts_backward[grid](
        in_order, d_table, parts, rows, chunks, ids_end, columns, **options
    )
    return d_table
