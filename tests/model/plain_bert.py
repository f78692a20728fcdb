"""RapidBERT written once more, padded and plain, to compare the packed model with.

Nothing here comes from `model/`: every tensor is [sequences, length, ...], padding is computed and
masked, the bias is filled in cell by cell, and each line is the formula of the architecture. The
modules are nested so that `state_dict` has the public checkpoints' names.

Legend: S sequences, L length, H heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class PaddedBatch:
    """A padded batch, and the same batch packed by loops."""

    input_ids: Tensor
    """int64 [S, L]."""
    token_type_ids: Tensor
    """int64 [S, L]."""
    attention_mask: Tensor
    """int64 [S, L], one on real tokens, which stand at the start of each row."""
    labels: Tensor
    """int64 [S, L]; -100 where nothing is to be predicted."""

    @classmethod
    def random(cls, lengths: list[int], vocab_size: int, seed: int = 0) -> PaddedBatch:
        """Sequences of the given lengths, every third token labelled, token types mixed."""
        draw = torch.Generator().manual_seed(seed)
        shape = (len(lengths), max(lengths))
        mask = torch.zeros(shape, dtype=torch.int64)
        labels = torch.full(shape, -100)
        for sequence, length in enumerate(lengths):
            mask[sequence, :length] = 1
            for position in range(sequence % 2, length, 3):
                labels[sequence, position] = torch.randint(vocab_size, (), generator=draw)
        return cls(
            input_ids=torch.randint(vocab_size, shape, generator=draw),
            token_type_ids=torch.randint(2, shape, generator=draw),
            attention_mask=mask,
            labels=labels,
        )

    def cells(self) -> list[tuple[int, int]]:
        """(sequence, position) of the real tokens, in packed order."""
        lengths = self.attention_mask.sum(1).tolist()
        return [(s, p) for s, length in enumerate(lengths) for p in range(length)]

    def pack(self, padded: Tensor) -> Tensor:
        """[S, L, ...] to [T, ...]."""
        return torch.stack([padded[cell] for cell in self.cells()])

    @property
    def offsets(self) -> Tensor:
        """int32 [S+1]."""
        total, offsets = 0, [0]
        for length in self.attention_mask.sum(1).tolist():
            total += length
            offsets.append(total)
        return torch.tensor(offsets, dtype=torch.int32)

    @property
    def packed_inputs(self) -> dict[str, Any]:
        """The arguments that `logits` and `forward` share."""
        return dict(
            input_ids=self.pack(self.input_ids),
            sequence_offsets=self.offsets,
            max_sequence_length=self.input_ids.shape[1],
            token_type_ids=self.pack(self.token_type_ids),
        )

    @property
    def packed_targets(self) -> dict[str, Tensor]:
        """The rows to predict and what stood there."""
        labels = self.pack(self.labels)
        rows = torch.tensor([row for row, label in enumerate(labels.tolist()) if label != -100])
        return dict(masked_positions=rows, labels=labels[rows])

    @property
    def padded_inputs(self) -> dict[str, Tensor]:
        return dict(
            input_ids=self.input_ids,
            token_type_ids=self.token_type_ids,
            attention_mask=self.attention_mask,
        )


def paper_slopes(heads: int) -> list[float]:
    """ALiBi slopes by the rule in words: each the ratio r = 2^(-8/n) times the one before it,
    starting at r; a head count between powers of two borrows the odd-numbered ones of the next.
    """

    def geometric(count: int) -> list[float]:
        ratio = 2.0 ** (-8.0 / count)
        return [ratio**k for k in range(1, count + 1)]

    power = 1
    while power * 2 <= heads:
        power *= 2
    borrowed = [slope for k, slope in enumerate(geometric(2 * power), start=1) if k % 2 == 1]
    return geometric(power) + borrowed[: heads - power]


Drop = Callable[[Tensor, float, tuple[int, str]], Tensor]
"""Of values [S, L, ...], a probability and a place: the layer, from 1, and what is dropped."""


def drop_nothing(x: Tensor, probability: float, place: tuple[int, str]) -> Tensor:
    return x


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt() * norm.weight + norm.bias
    )


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _named(**children: nn.Module) -> nn.ModuleDict:
    """A place in the tree of public names."""
    return nn.ModuleDict(children)


class PlainRapidBERT(nn.Module):
    """ALiBi, post-norm, gated or plain feed-forward, tied decoder; every token gets logits.

    Dropout where the published code (MosaicBERT's) has it, one rate for all of it: the embedding,
    attention's output, and what the second matrix of a gated feed-forward reads, or what a plain
    one gives. None on attention weights.
    """

    DROPOUT = 0.1

    bert: Any
    cls: Any

    def __init__(
        self, layers: int, hidden: int, heads: int, ffn: int, vocab: int, *, gated: bool = True
    ):
        super().__init__()
        self.heads, self.gated = heads, gated

        def layer() -> nn.Module:
            attention = _named(
                self=_named(Wqkv=nn.Linear(hidden, 3 * hidden)),
                output=_named(dense=nn.Linear(hidden, hidden), LayerNorm=nn.LayerNorm(hidden)),
            )
            if gated:
                mlp = _named(
                    gated_layers=nn.Linear(hidden, 2 * ffn, bias=False),
                    wo=nn.Linear(ffn, hidden),
                    layernorm=nn.LayerNorm(hidden),
                )
                return _named(attention=attention, mlp=mlp)
            return _named(
                attention=attention,
                intermediate=_named(dense=nn.Linear(hidden, ffn)),
                output=_named(dense=nn.Linear(ffn, hidden), LayerNorm=nn.LayerNorm(hidden)),
            )

        self.bert = _named(
            embeddings=_named(
                word_embeddings=nn.Embedding(vocab, hidden),
                token_type_embeddings=nn.Embedding(2, hidden),
                LayerNorm=nn.LayerNorm(hidden),
            ),
            encoder=_named(layer=nn.ModuleList(layer() for _ in range(layers))),
        )
        self.cls = _named(
            predictions=_named(
                transform=_named(dense=nn.Linear(hidden, hidden), LayerNorm=nn.LayerNorm(hidden)),
                decoder=nn.Linear(hidden, vocab),
            )
        )
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        drop: Drop = drop_nothing,
    ) -> Tensor:
        """[S, L] to logits [S, L, V]."""
        embeddings = self.bert.embeddings
        x = embeddings.word_embeddings(input_ids)
        x = x + embeddings.token_type_embeddings(token_type_ids)
        p = self.DROPOUT
        x = drop(layer_norm(x, embeddings.LayerNorm), p, (0, "embedding"))
        bias = self._bias(attention_mask)
        for number, layer in enumerate(self.bert.encoder.layer, start=1):
            attention = layer.attention
            attended = attention.output.dense(self._attend(x, attention.self.Wqkv, bias))
            attended = drop(attended, p, (number, "attention"))
            x = layer_norm(x + attended, attention.output.LayerNorm)
            if self.gated:
                gate, value = layer.mlp.gated_layers(x).chunk(2, dim=-1)
                inner = drop(gelu(gate) * value, p, (number, "inner"))
                x = layer_norm(x + layer.mlp.wo(inner), layer.mlp.layernorm)
            else:
                fed = layer.output.dense(gelu(layer.intermediate.dense(x)))
                fed = drop(fed, p, (number, "output"))
                x = layer_norm(x + fed, layer.output.LayerNorm)
        head = self.cls.predictions
        return head.decoder(layer_norm(gelu(head.transform.dense(x)), head.transform.LayerNorm))

    def _bias(self, attention_mask: Tensor) -> Tensor:
        """[S, H, L, L]: -slope * |i - j|; -inf on padding keys."""
        sequences, length = attention_mask.shape
        alibi = torch.empty(self.heads, length, length)
        for head, slope in enumerate(paper_slopes(self.heads)):
            for i in range(length):
                for j in range(length):
                    alibi[head, i, j] = -slope * abs(i - j)
        padding = (attention_mask == 0)[:, None, None, :]
        bias = alibi.repeat(sequences, 1, 1, 1)
        return bias.masked_fill(padding, float("-inf"))

    def _attend(self, x: Tensor, qkv: nn.Linear, bias: Tensor) -> Tensor:
        hidden = x.shape[-1]
        dim = hidden // self.heads
        q, k, v = qkv(x).split(hidden, dim=-1)  # each [S, L, H*D]
        contexts = []
        for head in range(self.heads):
            at = slice(head * dim, (head + 1) * dim)
            scores = torch.einsum("sid,sjd->sij", q[..., at], k[..., at]) / math.sqrt(dim)
            weights = (scores + bias[:, head]).softmax(-1)
            contexts.append(torch.einsum("sij,sjd->sid", weights, v[..., at]))
        return torch.cat(contexts, dim=-1)


def randomise(model: nn.Module, seed: int = 1) -> None:
    """Weights under which every term matters.

    At the usual initial weights (std 0.02, zero biases) attention is almost uniform, and a wrong
    scale, bias or norm weight would hide below the tolerance.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if parameter.dim() > 1:
                parameter.copy_(noise / math.sqrt(parameter.shape[1]))
            else:
                centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.1 * noise)
