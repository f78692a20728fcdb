"""A model of any export as one that gives vectors: the mean of its hidden states over a text."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from model.config import ModelOptions
from model.pretrained import Export
from model.sentence_encoder import RapidBertForSentenceEmbedding
from recipes.inference.computing import Compute, load_here
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
    load_here(model, export, "none", precision)

    def compute(batch: ClassificationBatch) -> Tensor:
        vectors = model.embed(*batch.packed)
        return F.normalize(vectors, dim=-1) if normalize else vectors

    return compute
