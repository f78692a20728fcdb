"""Finding the trained model that a user names, for an export to other software."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from model.weights import BERT_DECODER_BIAS, DECODER_BIAS, NEVER_PREDICTED
from recipes.interop.source import Source
from recipes.training.export import open_export, read_tokenizer


def read_source(place: Path) -> Source:
    """Read a run's export.

    Raises:
        UserError: there is none at this place, or it is damaged.
    """
    weights = open_export(place)
    tokenizer = read_tokenizer(place, weights.config, weights.description)
    tensors = dict(weights.tensors)
    for name in {DECODER_BIAS, BERT_DECODER_BIAS} & tensors.keys():
        # Older versions left the rows that pad the vocabulary as the training had them.
        tensors[name] = tensors[name].clone()
        tensors[name][weights.config.vocab_size :] = NEVER_PREDICTED
    return Source(place, replace(weights, tensors=tensors), tokenizer)
