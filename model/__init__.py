"""RapidBERT and the BERT baselines, built from Megatron-core's layers.

    from model import RapidBertForMaskedLM

    model = RapidBertForMaskedLM.from_pretrained("runs/base/export")
    scores = model.logits(input_ids, attention_mask=attention_mask)

What is imported here is loaded when it is first asked for: who only reads a configuration does not
wait for torch and Megatron.

Shapes, in all files of this folder:

    S sequences, L length of the padded batch, T packed tokens, K rows picked of them
    H heads, D dimensions of a head, hidden = H * D, F inner width of the feed-forward
    V vocabulary (padded to a multiple of 64), TP tensor-parallel ranks, over which H, F and V are
    split; QKV is [T, H, 3, D], query, key and value of a head side by side
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .classifier import RapidBertForSequenceClassification
    from .config import PRESETS, ModelConfig, ModelOptions, preset
    from .encoder import RapidBert
    from .masked_lm import RapidBertForMaskedLM
    from .sentence_encoder import RapidBertForSentenceEmbedding
    from .span_classifier import RapidBertForQuestionAnswering
    from .token_classifier import RapidBertForTokenClassification

__all__ = [
    "PRESETS",
    "ModelConfig",
    "ModelOptions",
    "RapidBert",
    "RapidBertForMaskedLM",
    "RapidBertForQuestionAnswering",
    "RapidBertForSentenceEmbedding",
    "RapidBertForSequenceClassification",
    "RapidBertForTokenClassification",
    "preset",
]

_FILES = {
    "PRESETS": "config",
    "ModelConfig": "config",
    "ModelOptions": "config",
    "RapidBert": "encoder",
    "RapidBertForMaskedLM": "masked_lm",
    "RapidBertForQuestionAnswering": "span_classifier",
    "RapidBertForSentenceEmbedding": "sentence_encoder",
    "RapidBertForSequenceClassification": "classifier",
    "RapidBertForTokenClassification": "token_classifier",
    "preset": "config",
}


def __getattr__(name: str) -> object:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FILES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
