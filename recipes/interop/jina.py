"""The JinaBERT-v2 layout: RapidBERT as text-embeddings-inference and other servers read it.

jina-embeddings-v2 is the same encoder: ALiBi in both directions, a gated feed-forward, a norm
behind each part. Its tensors have query, key and value apart, and its `config.json` calls itself
`bert` and tells the rest by `position_embedding_type` and `feed_forward_type`; servers find their
code for it by `_name_or_path`. Rows that only pad the vocabulary stay, and are never predicted.

The check reads the files as Jina's definition says, without a line of the training's model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.pretrained import CONFIG, WEIGHTS
from model.weights import BERT_DECODER_BIAS, DECODER_BIAS, State
from recipes.common.files import write_whole
from recipes.common.json_content import Json, json_bytes
from recipes.interop.comparing import LONGEST as LONGEST_TEXT
from recipes.interop.comparing import TEXTS, Comparison, largest_difference
from recipes.interop.jina_reference import hidden_states, logits
from recipes.interop.source import LONGEST, Source

TOLERANCE = 1e-5
_CODE = "jinaai/jina-bert-implementation"


def faults(source: Source) -> Iterator[str]:
    """Yield what the layout has no place for."""
    config = source.config
    if config.positions == "learned":
        yield (
            f"{config.name} has learned positions, and JinaBERT-v2 has ALiBi alone; --format hf "
            "makes of it what every reader of BERT reads"
        )
    elif config.feed_forward == "standard":
        yield f"{config.name} has a feed-forward without a gate; servers read JinaBERT-v2 with one"
    if source.head not in ("masked_lm", "none"):
        yield (
            f"{source.place}: a finetuned head, which servers do not read in this layout; use "
            "--format hf or onnx, or name the pretrained model"
        )


def notes(source: Source) -> Iterator[str]:
    """Yield what is different there."""
    if source.head == "masked_lm":
        yield "the masked-token head goes along; servers of embeddings leave it out"


def write(source: Source, directory: Path) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer's files."""
    save_file(tensors(source), str(directory / WEIGHTS), metadata={"format": "pt"})
    write_whole(directory / CONFIG, json_bytes(config_values(source)))
    for name, content in source.tokenizer.files(source.longest).items():
        write_whole(directory / name, content)


def config_values(source: Source) -> Json:
    """Return `config.json` with the keys of the published jina-embeddings-v2."""
    config = source.config
    kind = "JinaBertForMaskedLM" if source.head == "masked_lm" else "JinaBertModel"
    return {
        "_name_or_path": _CODE,
        "architectures": [kind],
        "auto_map": {
            "AutoConfig": f"{_CODE}--configuration_bert.JinaBertConfig",
            "AutoModel": f"{_CODE}--modeling_bert.JinaBertModel",
            "AutoModelForMaskedLM": f"{_CODE}--modeling_bert.JinaBertForMaskedLM",
        },
        "model_type": "bert",
        "position_embedding_type": "alibi",
        "feed_forward_type": "geglu",
        "emb_pooler": "mean",
        "hidden_act": "gelu",
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": LONGEST,
        "type_vocab_size": config.type_vocab_size,
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.layernorm_eps,
        "initializer_range": config.initializer_range,
        "pad_token_id": source.tokenizer.pad_id,
        "torch_dtype": "float32",
    }


def tensors(source: Source) -> State:
    """The source's tensors by Jina's names: those of a bare encoder have no `bert.` in front."""
    found: State = {}
    for name, tensor in source.tensors.items():
        name = BERT_DECODER_BIAS if name == DECODER_BIAS else name
        if ".Wqkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[name.replace("Wqkv", part)] = third.contiguous()
        else:
            found[name] = tensor
    if source.head == "none":
        found = {name.removeprefix("bert."): tensor for name, tensor in found.items()}
    return found


@torch.inference_mode()
def compare(source: Source, directory: Path) -> Comparison:
    """Read the files back as Jina's definition says, and put texts through both."""
    ids, mask = source.padded([source.ids(text, LONGEST_TEXT) for text in TEXTS])
    config: Json = json.loads((directory / CONFIG).read_bytes())
    weights = load_file(directory / WEIGHTS)
    found = hidden_states(weights, config, ids, mask)
    what = "hidden states"
    if source.head == "masked_lm":
        # Without the rows that pad the vocabulary: beside their -10,000 nothing is large.
        found, what = logits(weights, config, found)[..., : source.config.vocab_size], "logits"
    difference = largest_difference(found, source.outputs(ids, mask), mask)
    why = "the same sums in fp32 in another order"
    return Comparison(f"{what} of {len(TEXTS)} texts", difference, TOLERANCE, why)
