"""GGUF for llama.cpp and what is built on it: the encoder as a model of embeddings.

RapidBERT is written as the architecture `jina-bert-v2`, the same encoder with query, key and value
apart; llama.cpp's slopes of ALiBi are fixed and equal ours for every number of heads. BERT is
written as `bert`. There is no masked-token head, and no row that only pads the vocabulary.

Three things differ in llama.cpp, and are said to the user: GELU in its tanh form, by a table in
fp16, hence the tolerance; no spelling in bytes, so that characters outside the vocabulary's
alphabet are [UNK], one for several in a row; and names of special pieces in a text are read as
these pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import torch
from torch import Tensor

from recipes.common.errors import UserError
from recipes.common.settings import shorten
from recipes.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from recipes.interop import llama_tokenizer
from recipes.interop.comparing import LONGEST, TEXTS, Comparison
from recipes.interop.llama_server import Server
from recipes.interop.source import Source

FILE = "model.gguf"
TOLERANCE = 1e-4
"""Of 1 - cosine between two embeddings."""

# Public names of a layer's parts, with weight and bias, and llama.cpp's.
_EVERY = {
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
}
_GATED = {"mlp.wo": "ffn_down", "mlp.layernorm": "layer_output_norm"}
_STANDARD = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def faults(source: Source) -> Iterator[str]:
    """Yield what llama.cpp has no place for."""
    config = source.config
    if (config.positions == "learned") != (config.feed_forward == "standard"):
        yield (
            f"{config.name}: {config.positions} positions with the feed-forward "
            f"{config.feed_forward}; llama.cpp has ALiBi with a gated one, or learned positions "
            "with standard"
        )
    yield from llama_tokenizer.faults(source.tokenizer)
    if source.head not in ("masked_lm", "none"):
        yield (
            f"{source.place}: a finetuned head, which llama.cpp has no place for; use --format hf "
            "or onnx, or name the pretrained model"
        )


def notes(source: Source) -> Iterator[str]:
    """Yield what is left out, and what llama.cpp does otherwise."""
    if source.head == "masked_lm":
        yield "left out: the masked-token head; llama.cpp averages the hidden states of a text"
    if isinstance(source.tokenizer, SentencePieceTokenizer):
        yield (
            "in llama.cpp characters outside the vocabulary's alphabet are [UNK], where the "
            "training spelt them in bytes"
        )
    yield "llama.cpp's server reads [MASK] or [CLS] in a text as these pieces"


def write(source: Source, directory: Path) -> None:
    """Write the encoder and its vocabulary as `model.gguf`, all in float32."""
    config = source.config
    architecture = "bert" if config.positions == "learned" else "jina-bert-v2"
    writer = gguf.GGUFWriter(directory / FILE, architecture)
    writer.add_name(config.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(source.longest)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_head_count(config.num_heads)
    writer.add_layer_norm_eps(config.layernorm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_token_type_count(config.type_vocab_size)
    llama_tokenizer.add(writer, source.tokenizer)
    for name, tensor in tensors(source).items():
        writer.add_tensor(name, tensor.float().contiguous().numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def tensors(source: Source) -> dict[str, Tensor]:
    """The encoder's tensors by llama.cpp's names, the vocabulary without rows that pad it."""
    public = source.tensors
    found: dict[str, Tensor] = {}

    def both(theirs: str, ours: str) -> None:
        for part in ("weight", "bias"):
            found[f"{theirs}.{part}"] = public[f"{ours}.{part}"]

    embeddings = "bert.embeddings"
    words = public[f"{embeddings}.word_embeddings.weight"]
    found["token_embd.weight"] = words[: source.tokenizer.vocab_size]
    found["token_types.weight"] = public[f"{embeddings}.token_type_embeddings.weight"]
    gated = source.config.feed_forward != "standard"
    if not gated:
        found["position_embd.weight"] = public[f"{embeddings}.position_embeddings.weight"]
    both("token_embd_norm", f"{embeddings}.LayerNorm")
    for number in range(source.config.num_layers):
        ours, theirs = f"bert.encoder.layer.{number}", f"blk.{number}"
        for name, short in (_EVERY | (_GATED if gated else _STANDARD)).items():
            both(f"{theirs}.{short}", f"{ours}.{name}")
        if gated:
            for part in ("weight", "bias"):
                thirds = public[f"{ours}.attention.self.Wqkv.{part}"].chunk(3)
                for letter, third in zip("qkv", thirds, strict=True):
                    found[f"{theirs}.attn_{letter}.{part}"] = third
            gate, value = public[f"{ours}.mlp.gated_layers.weight"].chunk(2)
            found[f"{theirs}.ffn_gate.weight"] = gate
            found[f"{theirs}.ffn_up.weight"] = value
    return found


def compare(source: Source, directory: Path) -> Comparison:
    """Load the file in llama.cpp, and compare ids and embeddings of texts.

    Raises:
        UserError: llama.cpp cannot load it, or cuts a text into other pieces.
    """
    longest = min(LONGEST, source.longest)
    texts = [_fitting(text, source, longest) for text in TEXTS]
    with Server(directory / FILE, longest) as server:
        rows = [server.tokenize(text) for text in texts]
        wrong = [
            f"llama.cpp cuts {shorten(text)} into the pieces {found}, the training into {ids}"
            for text, found, ids in zip(texts, rows, map(source.ids, texts), strict=True)
            if found != llama_tokenizer.as_there(source.tokenizer, ids)
        ]
        if wrong:
            raise UserError(*wrong)
        embeddings = torch.stack([server.embed(row) for row in rows])
    ids, mask = source.padded(rows)
    hidden = source.hidden_states(ids, mask) * mask[..., None]
    expected = hidden.sum(1) / mask.sum(1, keepdim=True)
    cosine = torch.cosine_similarity(embeddings.double(), expected.double())
    bytes_ = isinstance(source.tokenizer, SentencePieceTokenizer)
    return Comparison(
        f"ids are equal{', with [UNK] for bytes' if bytes_ else ''}; "
        f"1 - cosine of the embeddings of {len(rows)} texts",
        float((1 - cosine).max()),
        TOLERANCE,
        "GELU is the tanh form in llama.cpp, by a table in fp16",
    )


def _fitting(text: str, source: Source, longest: int) -> str:
    """Return a text, or the beginning of one that has too many tokens."""
    while len(source.all_ids(text)) > longest:
        text = text[: len(text) // 2]
    return text
