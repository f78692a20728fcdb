"""What RapidBERT is measured beside: Hugging Face's models, and the published RapidBERT design.

All of them are built from configurations, with random weights; nothing is downloaded. They take
padded batches, `input_ids`, `attention_mask` and `labels` int64 [S, L], and return a mean loss.

Legend: S sequences, L length, T real tokens, K masked tokens, H heads, D head_dim.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import alibi_slopes
from model.config import ModelConfig
from model.labels import IGNORED_LABEL
from recipes.benchmarks.records import NotHere


class PaddedRapidBERT(nn.Module):
    """RapidBERT as it was published (MosaicBERT, arXiv 2312.17482), written anew.

    The residual stream holds real tokens only, but each layer pads its queries, keys and values to
    [S, L], attends with a bias that is materialised as [S, H, L, L], and removes the padding again,
    for which the host has to wait. The last layer's end, the head and the loss see the masked
    tokens only; norms run in the precision of autocast. Attention itself is torch's fused kernel,
    which is kind to the design. Parameters have the public checkpoint's names.
    """

    bert: Any
    cls: Any
    slopes: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.bert = _named(
            embeddings=_named(
                word_embeddings=nn.Embedding(config.padded_vocab_size, hidden),
                token_type_embeddings=nn.Embedding(config.type_vocab_size, hidden),
                LayerNorm=self._norm(),
            ),
            encoder=_named(layer=nn.ModuleList(self._layer() for _ in range(config.num_layers))),
        )
        self.cls = _named(
            predictions=_named(
                transform=_named(dense=nn.Linear(hidden, hidden), LayerNorm=self._norm()),
                decoder=nn.Linear(hidden, config.padded_vocab_size),
            )
        )
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=config.initializer_range)
        slopes = torch.tensor(alibi_slopes(config.num_heads))
        self.register_buffer("slopes", slopes, persistent=False)

    def _norm(self) -> nn.LayerNorm:
        return _LowPrecisionLayerNorm(self.config.hidden_size, eps=self.config.layernorm_eps)

    def _layer(self) -> nn.Module:
        hidden, ffn = self.config.hidden_size, self.config.ffn_size
        attention = _named(
            self=_named(Wqkv=nn.Linear(hidden, 3 * hidden)),
            output=_named(dense=nn.Linear(hidden, hidden), LayerNorm=self._norm()),
        )
        mlp = _named(
            gated_layers=nn.Linear(hidden, 2 * ffn, bias=False),
            wo=nn.Linear(ffn, hidden),
            layernorm=self._norm(),
        )
        return _named(attention=attention, mlp=mlp)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the labelled tokens, in nats."""
        embeddings = self.bert.embeddings
        hidden = embeddings.word_embeddings(input_ids)
        hidden = hidden + embeddings.token_type_embeddings.weight[0]
        hidden = self._dropout(embeddings.LayerNorm(hidden))
        hidden = _unpad(hidden, attention_mask)  # [T, hidden]
        predicted = _unpad(labels, attention_mask) != IGNORED_LABEL
        bias = self._bias(attention_mask)
        *others, last = self.bert.encoder.layer
        for layer in others:
            hidden = self._through(layer, hidden, attention_mask, bias)
        hidden = self._through(last, hidden, attention_mask, bias, predicted)  # [K, hidden]
        head = self.cls.predictions
        hidden = head.transform.LayerNorm(F.gelu(head.transform.dense(hidden)))
        return F.cross_entropy(head.decoder(hidden), labels[labels != IGNORED_LABEL])

    def _bias(self, attention_mask: Tensor) -> Tensor:
        """Return ALiBi with a very low score on padding keys, [S, H, L, L]."""
        at = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        alibi = -self.slopes[:, None, None] * (at[:, None] - at[None, :]).abs()  # [H, L, L]
        padding = (1.0 - attention_mask[:, None, None, :].float()) * -1e4  # [S, 1, 1, L]
        return alibi + padding

    def _through(
        self,
        layer: Any,
        hidden: Tensor,
        attention_mask: Tensor,
        bias: Tensor,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Compute one layer; behind its attention only the rows that are `wanted`, bool [T]."""
        sequences, length = attention_mask.shape
        heads, dim = self.config.num_heads, self.config.head_dim
        real = attention_mask.flatten().nonzero().flatten()
        qkv = layer.attention.self.Wqkv(hidden)
        padded = qkv.new_zeros(sequences * length, qkv.shape[-1]).index_copy(0, real, qkv)
        q, k, v = padded.view(sequences, length, 3, heads, dim).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        context = _unpad(context.transpose(1, 2).flatten(2), attention_mask)
        if wanted is not None:
            context, hidden = context[wanted], hidden[wanted]
        output, mlp = layer.attention.output, layer.mlp
        hidden = output.LayerNorm(self._dropout(output.dense(context)) + hidden)
        gate, value = mlp.gated_layers(hidden).chunk(2, dim=-1)
        inner = F.dropout(F.gelu(gate) * value, self.config.ffn_dropout, self.training)
        output = mlp.layernorm(mlp.wo(inner) + hidden)  # nothing is dropped behind the matrix
        assert isinstance(output, Tensor)
        return output

    def _dropout(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.config.hidden_dropout, self.training)


class _LowPrecisionLayerNorm(nn.LayerNorm):
    """LayerNorm that under autocast computes in autocast's precision, and not in fp32."""

    def forward(self, hidden: Tensor) -> Tensor:
        kind = hidden.device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(hidden)
        low = torch.get_autocast_dtype(kind)
        weight, bias = self.weight.to(low), self.bias.to(low)
        with torch.autocast(kind, enabled=False):
            return F.layer_norm(hidden.to(low), self.normalized_shape, weight, bias, self.eps)


def _named(**children: nn.Module) -> nn.ModuleDict:
    """Make a place in the tree of public names."""
    return nn.ModuleDict(children)


def _unpad(padded: Tensor, attention_mask: Tensor) -> Tensor:
    """Keep the real tokens: [S, L, ...] to [T, ...]."""
    return padded.flatten(0, 1)[attention_mask.flatten().nonzero().flatten()]


def hugging_face_bert(toy: bool, ours: ModelConfig, attention: str) -> nn.Module:
    """Build BertForMaskedLM of BERT-Base's size, or of our size and number of parameters."""
    transformers = _transformers()
    sizes = _vocabulary(transformers.BertConfig(), ours)
    if toy:
        # A gated feed-forward has three matrices: two of half as much again hold as many weights.
        sizes |= dict(
            vocab_size=ours.padded_vocab_size,
            hidden_size=ours.hidden_size,
            num_hidden_layers=ours.num_layers,
            num_attention_heads=ours.num_heads,
            intermediate_size=3 * ours.ffn_size // 2,
            hidden_dropout_prob=ours.hidden_dropout,
            attention_probs_dropout_prob=ours.attention_dropout,
        )
    built: nn.Module = transformers.AutoModelForMaskedLM.from_config(
        transformers.BertConfig(**sizes), attn_implementation=attention
    )
    return built


def hugging_face_modernbert(toy: bool, ours: ModelConfig, attention: str | None) -> nn.Module:
    """Build ModernBertForMaskedLM of ModernBERT-base's size, or near our number of parameters.

    Args:
        attention: None for what transformers chooses itself.
    """
    transformers = _transformers()
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise NotHere("flash-attn is not installed")
    sizes = _vocabulary(transformers.ModernBertConfig(), ours)
    if toy:
        # ModernBERT-base's proportions: 22 layers for our 12, a feed-forward of 1.5 widths.
        sizes |= dict(
            vocab_size=ours.padded_vocab_size,
            hidden_size=ours.hidden_size,
            intermediate_size=3 * ours.hidden_size // 2,
            num_hidden_layers=math.ceil(ours.num_layers * 22 / 12),
            num_attention_heads=ours.num_heads,
            pad_token_id=0,
            bos_token_id=2,
            cls_token_id=2,
            eos_token_id=3,
            sep_token_id=3,
        )
    named = {} if attention is None else {"attn_implementation": attention}
    built: nn.Module = transformers.AutoModelForMaskedLM.from_config(
        transformers.ModernBertConfig(**sizes), **named
    )
    return built


def _vocabulary(standard: Any, ours: ModelConfig) -> dict[str, Any]:
    """Return the size of the model's own vocabulary, or of the data's if that is larger."""
    return {"vocab_size": max(standard.vocab_size, ours.vocab_size)}


def _transformers() -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise NotHere("transformers is not installed")
    import transformers

    return transformers


def peers(toy: bool, ours: ModelConfig) -> dict[str, Callable[[], nn.Module]]:
    """Return what builds each peer.

    Args:
        toy: give the Hugging Face models about as many parameters as `ours`; else they are
            BERT-Base and ModernBERT-base as they are.
        ours: the model that the padded design is built as.
    """
    return {
        "HF BERT, eager": lambda: hugging_face_bert(toy, ours, "eager"),
        "HF BERT, SDPA": lambda: hugging_face_bert(toy, ours, "sdpa"),
        "HF ModernBERT": lambda: hugging_face_modernbert(toy, ours, None),
        "HF ModernBERT, flash": lambda: hugging_face_modernbert(toy, ours, "flash_attention_2"),
        "RapidBERT, padded in each layer": lambda: PaddedRapidBERT(ours),
    }
