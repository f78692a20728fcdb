"""Between padded [sequences, length] tensors and packed [tokens] ones.

`sequence_offsets` int32 [S+1] holds the row at
which each sequence starts; its last entry is the number of real tokens. Rows behind it belong to
no sequence: they only round T up to one of a few shapes. Two equal neighbours in
`sequence_offsets` are an empty sequence. The encoder works on packed rows from the embedding to
the loss; nothing is padded again on the way except inside the plain attention backends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """A batch as the encoder takes it, and the way back to the form in which it came."""

    input_ids: Tensor
    """int64 [T]."""
    sequence_offsets: Tensor
    """int32 [S+1]."""
    max_sequence_length: int
    """At least as long as every sequence."""
    token_type_ids: Tensor | None
    """int64 [T], or None for all zeros."""
    rows: Tensor | None = None
    """int64 [T], index of each token in the flattened padded batch; None if it came packed."""

    @property
    def padded(self) -> bool:
        """Say whether the batch came padded."""
        return self.rows is not None

    def restore(self, packed: Tensor) -> Tensor:
        """Turn [T, ...] into [S, L, ...] with zeros on padding, if the batch came padded."""
        if self.rows is None:
            return packed
        sequences = self.sequence_offsets.shape[0] - 1
        return pad(packed, self.rows, sequences, self.max_sequence_length)


def pack(
    input_ids: Tensor,
    sequence_offsets: Tensor | None,
    max_sequence_length: int | None,
    token_type_ids: Tensor | None,
    attention_mask: Tensor | None,
) -> Packing:
    """Bring a batch, packed or padded, into the packed form.

    Args:
        input_ids: int64 [T], packed, with `sequence_offsets` int32 [S+1] and
            `max_sequence_length`; or int64 [S, L], padded.
        token_type_ids: int64, shaped like `input_ids`; None for all zeros.
        attention_mask: [S, L], non-zero on real tokens; None if all of a padded batch are real.

    Raises:
        ValueError: the arguments are of neither form or of both, or no token is real.
    """
    if input_ids.dim() == 1:
        if sequence_offsets is None or max_sequence_length is None or attention_mask is not None:
            raise ValueError(
                "input_ids [T] are packed: they need sequence_offsets and max_sequence_length, "
                "and have no attention_mask"
            )
        return Packing(input_ids, sequence_offsets, max_sequence_length, token_type_ids)
    if input_ids.dim() != 2 or sequence_offsets is not None or max_sequence_length is not None:
        raise ValueError(
            f"input_ids {list(input_ids.shape)}: give them packed, [T], with sequence_offsets and "
            "max_sequence_length, or padded, [S, L], without"
        )
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    for name, tensor in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
        if tensor is not None and tensor.shape != input_ids.shape:
            raise ValueError(
                f"{name} is {list(tensor.shape)}, input_ids are {list(input_ids.shape)}"
            )
    rows, offsets = unpad(attention_mask)
    if not rows.shape[0]:
        raise ValueError("attention_mask is zero everywhere: there is no token to compute")
    types = None if token_type_ids is None else token_type_ids.flatten()[rows]  # [S*L] to [T]
    return Packing(input_ids.flatten()[rows], offsets, input_ids.shape[1], types, rows)


def unpad(attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Find the real tokens of a padded batch.

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
    padded = padded.index_copy(0, rows, packed)
    return padded.view(sequences, length, *packed.shape[1:])  # [S*L, ...] to [S, L, ...]


def sequence_of_row(sequence_offsets: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Find the sequence that each packed row belongs to, and the row's place in it.

    Returns:
        sequence: int64 [T]; S on the rows behind the last sequence.
        position: int64 [T], counted from the start of the sequence; from the end of the last
            sequence on the rows behind it.
    """
    row = torch.arange(tokens, device=sequence_offsets.device, dtype=sequence_offsets.dtype)
    sequence = torch.searchsorted(sequence_offsets, row, right=True) - 1
    return sequence, row.long() - sequence_offsets[sequence].long()


def padded_index(sequence_offsets: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Find the packed row that each cell of a padded [S, L] batch comes from.

    Returns:
        row: int64 [S, L]; some valid row where the cell is padding.
        real: bool [S, L].
    """
    start = sequence_offsets[:-1].long().unsqueeze(1)  # [S, 1]
    lengths = sequence_offsets.diff().long().unsqueeze(1)  # [S, 1]
    column = torch.arange(length, device=sequence_offsets.device).unsqueeze(0)  # [1, L]
    real = column < lengths
    return torch.where(real, start + column, 0), real
