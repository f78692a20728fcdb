"""Between padded [sequences, length] tensors and packed [tokens] ones.

Legend: S sequences, L length, T packed tokens. `sequence_offsets` int32 [S+1] holds the row at
which each sequence starts; its last entry is the number of real tokens. Rows behind it belong to
no sequence: they only round T up to one of a few shapes. Two equal neighbours in
`sequence_offsets` are an empty sequence. The encoder works on packed rows from the embedding to
the loss; nothing is padded again on the way except inside the plain attention backends.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpad(attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where the real tokens of a padded batch are.

    Args:
        attention_mask: [S, L], non-zero on real tokens, which may stand anywhere in the row.

    Returns:
        rows: int64 [T], index of each real token in the flattened [S*L] batch.
        sequence_offsets: int32 [S+1].
    """
    real = attention_mask != 0
    lengths = real.sum(dim=1, dtype=torch.int32)
    sequence_offsets = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return real.flatten().nonzero(as_tuple=True)[0], sequence_offsets


def pad(packed: Tensor, rows: Tensor, sequences: int, length: int) -> Tensor:
    """Put packed rows back: [T, ...] to [S, L, ...], zeros on padding."""
    padded = packed.new_zeros((sequences * length, *packed.shape[1:]))
    return padded.index_copy(0, rows, packed).unflatten(0, (sequences, length))


def sequence_of_row(sequence_offsets: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Which sequence each packed row belongs to and where in it the row stands.

    Returns:
        sequence: int64 [T]; S on the rows behind the last sequence.
        position: int64 [T], counted from the start of the sequence; from the end of the last
            sequence on the rows behind it.
    """
    row = torch.arange(tokens, device=sequence_offsets.device, dtype=sequence_offsets.dtype)
    sequence = torch.searchsorted(sequence_offsets, row, right=True) - 1
    return sequence, row.long() - sequence_offsets[sequence].long()


def padded_index(sequence_offsets: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """For each cell of a padded [S, L] batch the packed row it comes from.

    Returns:
        row: int64 [S, L]; some valid row where the cell is padding.
        real: bool [S, L].
    """
    start = sequence_offsets[:-1].long().unsqueeze(1)
    lengths = sequence_offsets.diff().long().unsqueeze(1)
    column = torch.arange(length, device=sequence_offsets.device).unsqueeze(0)
    real = column < lengths
    return torch.where(real, start + column, 0), real
