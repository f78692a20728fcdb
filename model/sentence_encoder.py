"""The encoder as a model of sentence vectors: mean pooling, and the contrastive loss on pairs.

The loss is InfoNCE with in-batch negatives (van den Oord et al. 2018, Henderson et al. 2017), as
sentence-transformers' `MultipleNegativesRankingLoss` computes it: each anchor has to find its
positive among all positives, and all hard negatives, of the whole batch, those on other ranks
included. One thing differs. A text that is known to go with the anchor is no negative of it: its
own positive once more, the anchor itself, and what another pair gives as a positive of the same
anchor are left out of the sum. Without such duplicates the losses are equal.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .config import PLAIN, ModelConfig, ModelOptions
from .encoder import RapidBert
from .megatron import parallel_state
from .padding import pack, sequence_of_row
from .pretrained import Exported

SCALE = 20.0
"""What similarities are multiplied by; sentence-transformers' own, a temperature of 0.05."""


class RapidBertForSentenceEmbedding(Exported):
    """The encoder and nothing else: a sentence's vector is the mean of its tokens' hidden states.

    [CLS] and [SEP] count as tokens, as they do for sentence-transformers. Weights and errors are as
    in `model.encoder.RapidBert`.
    """

    HEAD = "none"

    def __init__(self, config: ModelConfig, options: ModelOptions = PLAIN):
        super().__init__()
        self.config = config
        self.options = options
        self.encoder = RapidBert(config, options)

    def embed(
        self,
        input_ids: Tensor,
        sequence_offsets: Tensor | None = None,
        max_sequence_length: int | None = None,
        token_type_ids: Tensor | None = None,
        sequence_keys: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the vector of each sequence, not normalised: fp32 [S, hidden].

        The vector of an empty sequence is zero.

        Args:
            As in `RapidBert.forward`, packed or padded.
        """
        batch = pack(
            input_ids, sequence_offsets, max_sequence_length, token_type_ids, attention_mask
        )
        hidden = self.encoder(
            batch.input_ids,
            batch.sequence_offsets,
            batch.max_sequence_length,
            batch.token_type_ids,
            sequence_keys=sequence_keys,
        )  # [T, hidden]
        return mean_pool(hidden, batch.sequence_offsets)

    def forward(
        self,
        input_ids: Tensor,
        sequence_offsets: Tensor,
        max_sequence_length: int,
        labels: Tensor,
        token_type_ids: Tensor | None = None,
        sequence_keys: Tensor | None = None,
    ) -> Tensor:
        """Sum the losses of this rank's anchors, fp32 scalar. Call on every data-parallel rank.

        Args:
            labels: int64 [texts of a record, records]: a number for each text, the same for equal
                ones, -1 on empty sequences. Row 0 are the anchors, row 1 their positives, and
                further rows hard negatives. The sequences stand in the order of its elements:
                first all anchors, then all positives. All ranks have the same shape.
            sequence_keys: int64 [S], what dropout masks are a hash of (see `hashed_dropout`).
        """
        vectors = self.embed(
            input_ids, sequence_offsets, max_sequence_length, token_type_ids, sequence_keys
        )
        return contrastive_loss(vectors.view(*labels.shape, -1), labels)


def mean_pool(hidden: Tensor, sequence_offsets: Tensor) -> Tensor:
    """Average the rows of each sequence, in fp32; zero where there are none.

    Args:
        hidden: [T, hidden]; rows behind the last sequence are left out.
        sequence_offsets: int32 [S+1] (see `model.padding`).

    Returns:
        fp32 [S, hidden].
    """
    sequences = sequence_offsets.shape[0] - 1
    sequence, _ = sequence_of_row(sequence_offsets, hidden.shape[0])  # [T], S behind the last one
    sums = hidden.new_zeros((sequences + 1, hidden.shape[1]), dtype=torch.float32)
    sums = sums.index_add(0, sequence, hidden.float())[:-1]  # [S, hidden]
    return sums / sequence_offsets.diff().clamp(min=1).unsqueeze(1)


def contrastive_loss(vectors: Tensor, texts: Tensor) -> Tensor:
    """Sum -log softmax(20 cos)[own positive] over this rank's anchors, fp32 scalar.

    Candidates are the positives and hard negatives of all data-parallel ranks, and a gradient
    flows back to each of them. Summed over the ranks it is the loss of the whole batch, however
    that is spread over them.

    Args:
        vectors: fp32 [texts of a record, records, hidden], anchors first, then positives.
        texts: int64 [texts of a record, records], as in `RapidBertForSentenceEmbedding.forward`.
    """
    group = parallel_state.get_data_parallel_group()
    rank, columns, records = group.rank(), *texts.shape
    units = F.normalize(vectors, dim=-1)
    candidates = gather_with_gradient(units[1:], group)  # [ranks, columns - 1, records, hidden]
    known = gather(texts, group)  # [ranks, columns, records]
    anchors, positives = texts[0], texts[1]
    own = torch.arange(records, device=texts.device) + rank * (columns - 1) * records
    theirs = known[:, 1:].flatten()  # [C], C = ranks * (columns - 1) * records
    similarity = SCALE * units[0] @ candidates.flatten(0, 2).T  # [records, C]

    # A positive of the same anchor in another pair goes with this one too.
    asked = known[:, :1].expand(-1, columns - 1, -1).clone()
    asked[:, 1:] = -1  # other columns are negatives of that anchor
    excluded = theirs < 0
    excluded = excluded | (theirs == positives.unsqueeze(1)) | (theirs == anchors.unsqueeze(1))
    excluded |= asked.flatten() == anchors.unsqueeze(1)
    excluded[torch.arange(records, device=texts.device), own] = False
    # Finite, so that an empty record has no NaN to hand back.
    similarity = similarity.masked_fill(excluded, torch.finfo(similarity.dtype).min)
    losses = F.cross_entropy(similarity, own, reduction="none")
    return losses.masked_fill(anchors < 0, 0.0).sum()


def gather(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Stack the tensors of all ranks, which have one shape: [ranks, ...]. No gradient."""
    if group.size() == 1:
        return tensor.unsqueeze(0)
    parts = [torch.empty_like(tensor) for _ in range(group.size())]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.stack(parts)


def gather_with_gradient(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Stack the tensors of all ranks; each gets back the sum of all ranks' gradients of its own."""
    # torch has no types for `apply`.
    gathered: Tensor = _Gather.apply(tensor, group)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """Gathers, and in the backward pass sums the gradients of a rank's own part over all ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return gather(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # it is autograd's
        if ctx.group.size() > 1:
            dist.all_reduce(gradient, group=ctx.group)
        return gradient[ctx.group.rank()], None
