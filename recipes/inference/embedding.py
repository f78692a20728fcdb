"""A model of any export as one that gives vectors: the mean of its hidden states over a text."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from model.config import ModelOptions
from model.pretrained import Export
from model.sentence_encoder import RapidBertForSentenceEmbedding
from recipes.common.errors import UserError
from recipes.inference.computing import DTYPES, Compute, device
from recipes.tasks.classification_batches import ClassificationBatch


def build(export: Export, options: ModelOptions, precision: str, *, normalize: bool) -> Compute:
    """The model on its device, as a function from a batch to fp32 [S, hidden].

    Args:
        precision: of its weights, "fp32" or "bf16".
        normalize: whether to make vectors of length 1.

    Raises:
        UserError: the weights are not those of the configuration; all faults are named.
    """
    model = RapidBertForSentenceEmbedding(export.config, options)
    try:
        export.load_into(model, "none")
    except ValueError as error:
        raise UserError(str(error)) from None
    model.eval().to(device(), DTYPES[precision])

    def compute(batch: ClassificationBatch) -> Tensor:
        vectors = model.embed(
            batch.input_ids,
            batch.sequence_offsets,
            batch.max_sequence_length,
            batch.token_type_ids,
        )
        return F.normalize(vectors, dim=-1) if normalize else vectors

    return compute
