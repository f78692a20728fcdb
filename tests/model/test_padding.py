from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.padding import pack, pad, padded_index, sequence_of_row, unpad

masks = st.integers(1, 6).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=1, max_size=5
    )
)
lengths = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def offsets_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([sum(lengths[:s]) for s in range(len(lengths) + 1)], dtype=torch.int32)


@given(masks)
def test_pad_is_the_inverse_of_unpad(mask):
    attention_mask = torch.tensor(mask)
    sequences, length = attention_mask.shape
    padded = torch.randn(sequences, length, 2) * attention_mask.unsqueeze(-1)
    rows, offsets = unpad(attention_mask)
    packed = padded.flatten(0, 1)[rows]
    assert packed.shape[0] == offsets[-1] == sum(map(sum, mask))
    assert torch.equal(pad(packed, rows, sequences, length), padded)


@given(masks)
def test_unpad_lists_the_real_cells_in_order(mask):
    rows, offsets = unpad(torch.tensor(mask))
    length = len(mask[0])
    cells = [s * length + p for s, row in enumerate(mask) for p, real in enumerate(row) if real]
    assert rows.tolist() == cells
    assert torch.equal(offsets, offsets_of([sum(row) for row in mask]))
    assert offsets.dtype == torch.int32


@given(lengths, st.integers(0, 4))
def test_every_row_finds_its_sequence(lengths, tail):
    expected = [(s, p) for s, length in enumerate(lengths) for p in range(length)]
    expected += [(len(lengths), p) for p in range(tail)]
    sequence, position = sequence_of_row(offsets_of(lengths), len(expected))
    assert list(zip(sequence.tolist(), position.tolist(), strict=True)) == expected


@given(lengths, st.integers(0, 2))
def test_every_cell_finds_its_row(lengths, spare):
    width = max(lengths) + spare
    row, real = padded_index(offsets_of(lengths), width)
    starts = offsets_of(lengths).tolist()
    for s, length in enumerate(lengths):
        for p in range(width):
            assert real[s, p].item() == (p < length)
            assert row[s, p].item() == (starts[s] + p if p < length else 0)


OFFSETS = torch.tensor([0, 2, 4])
PACKED, PADDED, MASK = torch.ones(4).long(), torch.ones(2, 2).long(), torch.ones(2, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((PACKED, None, 2, None, None), "are packed: they need sequence_offsets"),
        ((PACKED, OFFSETS, None, None, None), "are packed: they need sequence_offsets"),
        ((PACKED, OFFSETS, 2, None, MASK), "and have no attention_mask"),
        ((PADDED, OFFSETS, 2, None, None), r"input_ids \[2, 2\]: give them packed"),
        ((PADDED[None], None, None, None, None), r"input_ids \[1, 2, 2\]: give them packed"),
        ((PADDED, None, None, None, MASK[:, :1]), r"attention_mask is \[2, 1\], input_ids are"),
        ((PADDED, None, None, PACKED, MASK), r"token_type_ids is \[4\], input_ids are \[2, 2\]"),
        ((PADDED, None, None, None, 0 * MASK), "zero everywhere"),
    ],
)
def test_arguments_of_neither_form_or_of_both(arguments, said):
    with pytest.raises(ValueError, match=said):
        pack(*arguments)
