"""The files that make an export a directory of transformers and of sentence-transformers.

RapidBERT is loaded by the modelling file that is copied into the export, BERT by transformers' own
classes, without any code of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import model
from model.config import ModelConfig
from model.pretrained import CONFIG, OURS
from model.weights import Head
from recipes.common.json_content import Json, json_bytes

MODELLING_FILE = "modeling_rapidbert.py"
_CODE = Path(model.__file__).with_name("huggingface") / MODELLING_FILE

# The class of a head, without the family's name in front.
_CLASSES: dict[Head, str] = {
    "masked_lm": "ForMaskedLM",
    "classifier": "ForSequenceClassification",
    "token_classifier": "ForTokenClassification",
    "span_classifier": "ForQuestionAnswering",
    "none": "Model",
}
_AUTO_MAP = {
    "AutoConfig": "Config",
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
}
ENCODERS: tuple[Head, ...] = ("masked_lm", "none")
"""Exports that sentence-transformers can take: those that have learnt no task."""

_WITHOUT_LABELS: tuple[Head, ...] = ("span_classifier", "none")
"""Exports whose outputs have no names: starts and ends of answers, of which transformers knows that
they are two, and vectors."""

SENTENCE_TOKENS = 512
"""Tokens that sentence-transformers cuts a text to, unless the run was longer. ALiBi has no limit,
but a default must have one, or a long document would fill the memory; a run at 128 tokens would cut
off most paragraphs."""


def is_plain_bert(config: ModelConfig) -> bool:
    """Whether transformers' own BERT computes the same from the same weights."""
    return config.positions == "learned" and config.feed_forward == "standard"


def hf_config(config: ModelConfig, head: Head, description: Mapping[str, Any]) -> Json:
    """Return `config.json` as transformers reads it, our own description under one key.

    Args:
        description: what the export says of itself; `labels` of its `task` become the class's, and
            `problem_type` too, without which labels are of one class each, no labels a regression.

    Raises:
        ValueError: learned positions and a gated feed-forward, for which there is no class.
    """
    bert = is_plain_bert(config)
    if config.positions == "learned" and not bert:
        raise ValueError(
            f"{config.name}: learned positions with the feed-forward {config.feed_forward}: "
            "transformers has no class for it, and the modelling file of RapidBERT has ALiBi"
        )
    special = description.get("tokenizer", {}).get("special_ids", {})
    family = "Bert" if bert else "RapidBert"
    values: Json = {
        "architectures": [family + _CLASSES[head]],
        "model_type": family.lower(),
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_size,
        "type_vocab_size": config.type_vocab_size,
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.layernorm_eps,
        "initializer_range": config.initializer_range,
        "pad_token_id": special.get("pad", 0),
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if bert:
        values |= {"hidden_act": "gelu", "max_position_embeddings": config.max_positions}
    else:
        module = Path(MODELLING_FILE).stem
        values |= {
            "auto_map": {auto: f"{module}.{family}{name}" for auto, name in _AUTO_MAP.items()},
            "feed_forward": config.feed_forward,
            "feed_forward_dropout_prob": config.ffn_dropout,
            "add_pooling_layer": head == "classifier",
        }
    if "task" in description and head not in _WITHOUT_LABELS:
        values |= _labels(description["task"], head)
    return values | {OURS: {"model": config.to_dict(), **description}}


def _labels(task: Mapping[str, Any], head: Head) -> Json:
    """What transformers wants to know of a task: the names of its outputs and its kind."""
    labels: Sequence[str] | None = task.get("labels")
    names = labels or [task.get("name", "score")]
    values: Json = {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
    if head == "classifier":
        kind = "single_label_classification" if labels else "regression"
        values["problem_type"] = task.get("problem_type", kind)
    return values


def hf_files(config: ModelConfig, head: Head, description: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files beside weights and tokenizer, by their paths in the export.

    Raises:
        ValueError: as `hf_config`.
    """
    files = {CONFIG: json_bytes(hf_config(config, head, description))}
    if not is_plain_bert(config):
        files[MODELLING_FILE] = _CODE.read_bytes()
    if head in ENCODERS:
        files |= _sentence_transformers_files(config, description)
    return files


def sentence_tokens(config: ModelConfig, description: Mapping[str, Any]) -> int:
    """Return how many tokens a text is cut to before it becomes a vector."""
    longest: int = max(SENTENCE_TOKENS, description.get("sequence_length") or 0)
    return min(longest, config.max_positions) if config.positions == "learned" else longest


def _sentence_transformers_files(
    config: ModelConfig, description: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return what makes sentence-transformers average the last layer over the tokens of a text."""
    package = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{package}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{package}.Pooling"},
    ]
    transformer = {
        "max_seq_length": sentence_tokens(config, description),
        "do_lower_case": False,
    }
    pooling = {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True}
    return {
        "modules.json": json_bytes(modules),
        "sentence_bert_config.json": json_bytes(transformer),
        "1_Pooling/config.json": json_bytes(pooling),
    }
