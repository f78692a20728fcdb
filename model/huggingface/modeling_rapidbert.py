"""RapidBERT for transformers, complete in this one file: `trust_remote_code=True` loads it.

RapidBERT is the encoder published as MosaicBERT (arXiv 2312.17482). What differs from BERT:

- ALiBi (arXiv 2108.12409) instead of position embeddings: the score of query i and key j gets
  -slope_h * |i - j|, in both directions, so that there is no longest sequence.
- A gated feed-forward, Wo (gelu(Wg x) * (Wv x)) with Wg and Wv in one matrix.
- Padding is taken out once, before the embedding, and put back once, as zeros, behind the last
  layer; only attention by SDPA or `eager` looks at padded rows in between. A graph that is compiled
  or exported keeps the padding, because it cannot depend on the number of tokens.

Attention is `sdpa` unless `from_pretrained` is told `attn_implementation="eager"`, the only one
that returns its weights, or `"flash_attention_2"`, which needs the package flash-attn, a GPU and
bf16 or fp16. Nothing else is taken instead: what cannot be had is an error.

Shapes: S sequences, L padded length, T tokens, H heads, D head_dim.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput, logging

try:
    from flash_attn import flash_attn_varlen_qkvpacked_func
except ImportError:  # transformers says so where it is asked for
    flash_attn_varlen_qkvpacked_func = None

logger = logging.get_logger(__name__)

ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
FEED_FORWARDS = ("fused_glu", "glu", "standard")


class RapidBertConfig(PretrainedConfig):
    """Sizes and dropout rates, as far as there are any by BERT's names for them."""

    model_type = "rapidbert"
    vocab_size: int = 30528  # rows of the weights; the tokenizer may have fewer pieces
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    feed_forward: str = "fused_glu"  # or "glu", the same to this file, or "standard", BERT's
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0
    feed_forward_dropout_prob: float = 0.1  # of what the second matrix of a gated one reads
    classifier_dropout: float = 0.1  # before the last matrix of a finetuned head
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    add_pooling_layer: bool = False  # whether the weights have a pooler; none is made up
    pad_token_id: int = 0
    tie_word_embeddings: bool = True


def alibi_slopes(heads: int, device: torch.device) -> Tensor:
    """Return one slope per head, fp32 [H]: 2^(-8/n), 2^(-16/n), ... for n a power of two.

    Otherwise those of the next lower power, then every second one of the next higher, as the
    authors of ALiBi have it. Not a buffer: loading would leave noise in it and a cast round it.
    """
    lower = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / lower) for i in range(lower)]
    slopes += [2.0 ** (-8.0 * (i + 1) / (2 * lower)) for i in range(0, 2 * (heads - lower), 2)]
    return torch.tensor(slopes, dtype=torch.float32, device=device)


class Batch:
    """A padded batch's tokens, and the way from [S, L, ...] to a row for each, [T, ...], and back.

    Where nothing is unpadded, T is S * L. Tokens may stand anywhere in their row of the batch.
    """

    def __init__(self, padded: Tensor, attention_mask: Tensor | None, unpad: bool):
        self.shape = padded.shape[:2]
        self.device = padded.device
        self.real: Tensor | None = None  # bool [S, L]
        self.rows: Tensor | None = None  # int64 [T], into S * L cells
        if attention_mask is None:
            return
        if attention_mask.shape != self.shape:
            raise ValueError(
                f"attention_mask is {list(attention_mask.shape)}, the batch is {list(self.shape)}"
            )
        self.real = attention_mask != 0
        if unpad:
            rows = self.real.flatten().nonzero().squeeze(1)
            self.rows = rows if len(rows) < self.real.numel() else None

    def pack(self, padded: Tensor) -> Tensor:
        """Turn [S, L, ...] into [T, ...]."""
        if padded.shape[:2] != self.shape:
            raise ValueError(f"{list(padded.shape)} beside a batch of {list(self.shape)}")
        cells = padded.flatten(0, 1)
        return cells if self.rows is None else cells.index_select(0, self.rows)

    def pad(self, packed: Tensor) -> Tensor:
        """Turn [T, ...] into [S, L, ...]; padding is zero if it was left out, else undefined."""
        if self.rows is not None:
            cells = packed.new_zeros(self.shape.numel(), *packed.shape[1:])
            packed = cells.index_copy(0, self.rows, packed)
        return packed.unflatten(0, self.shape)

    def restore(self, packed: Tensor) -> Tensor:
        """Turn [T, ...] into [S, L, ...], zeros on padding."""
        padded = self.pad(packed)
        if self.real is None or self.rows is not None:
            return padded
        return padded.masked_fill(~self.real.view(*self.shape, *[1] * (padded.dim() - 2)), 0)

    def first(self, padded: Tensor) -> Tensor:
        """Take the first token of every sequence: [S, L, hidden] to [S, hidden]."""
        if self.real is None:
            return padded[:, 0]
        at = self.real.int().argmax(1)  # [S]
        return padded[torch.arange(self.shape[0], device=self.device), at]


def why_no_flash_attention(device: torch.device) -> str | None:
    """Say what is missing for FlashAttention-2; None where nothing is."""
    if flash_attn_varlen_qkvpacked_func is None:
        return "the package flash-attn is not installed"
    return None if device.type == "cuda" else f"it needs a GPU, and the batch is on {device}"


class Attention:
    """What all layers need for attention, computed once per batch."""

    def __init__(self, name: str, batch: Batch, heads: int, dtype: torch.dtype):
        self.name, self.batch = name, batch
        self.slopes = alibi_slopes(heads, batch.device)
        if name == "flash_attention_2":
            if why_not := why_no_flash_attention(batch.device):
                raise ValueError(f"flash_attention_2: {why_not}")
            sequences, length = batch.shape
            lengths = torch.full((sequences,), length, device=batch.device)
            if batch.rows is not None and batch.real is not None:
                lengths = batch.real.sum(1)
            self.offsets = F.pad(lengths.cumsum(0), (1, 0)).int()  # [S+1]
            self.longest = int(lengths.max())
        else:
            self.bias = self._bias(dtype)

    def _bias(self, dtype: torch.dtype) -> Tensor:
        """Return what is added to the scores, [S or 1, H, L, L]."""
        real = self.batch.real
        if real is None:
            at = torch.arange(self.batch.shape[1], device=self.batch.device)[None]  # [1, L]
        else:
            at = real.cumsum(1)  # [S, L]
        distance = (at[:, :, None] - at[:, None, :]).abs()  # [S or 1, L, L]
        bias = (-self.slopes[:, None, None] * distance[:, None]).to(dtype)
        if real is None:
            return bias
        # A row without a token attends to all of its padding: a softmax of nothing is NaN.
        visible = real | ~real.any(1, keepdim=True)
        return bias.masked_fill(~visible[:, None, None, :], -math.inf)

    def __call__(self, qkv: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
        """Turn [T, 3, H, D] into the context, [T, H * D], and with `eager` the weights."""
        if self.name == "flash_attention_2":
            context = flash_attn_varlen_qkvpacked_func(
                qkv, self.offsets, self.longest, dropout, causal=False, alibi_slopes=self.slopes
            )
            return context.flatten(1), None
        q, k, v = self.batch.pad(qkv).permute(2, 0, 3, 1, 4).unbind(0)  # [S, H, L, D] each
        weights = None
        if self.name == "sdpa":
            context = F.scaled_dot_product_attention(
                q, k, v, attn_mask=self.bias.to(q.dtype), dropout_p=dropout
            )
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + self.bias  # [S, H, L, L]
            weights = F.dropout(scores.float().softmax(-1).to(q.dtype), dropout)
            context = weights @ v
        return self.batch.pack(context.transpose(1, 2)).flatten(1), weights


class RapidBertEmbeddings(nn.Module):
    """The sum of word and token type embeddings, then LayerNorm and dropout."""

    def __init__(self, config: RapidBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, token_types: Tensor | None) -> Tensor:
        types = self.token_type_embeddings
        hidden = words + (types.weight[0] if token_types is None else types(token_types))
        return self.dropout(self.LayerNorm(hidden))


class Residual(nn.Module):
    """LayerNorm(residual + dropout(W x))."""

    def __init__(self, inputs: int, config: RapidBertConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dropout(self.dense(hidden)))


class GatedFeedForward(nn.Module):
    """LayerNorm(x + Wo dropout(gelu(Wg x) * (Wv x)))."""

    def __init__(self, config: RapidBertConfig):
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.feed_forward_dropout_prob)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, value = self.gated_layers(hidden).chunk(2, dim=-1)
        return self.layernorm(hidden + self.wo(self.dropout(F.gelu(gate) * value)))


class RapidBertLayer(nn.Module):
    """Attention and feed-forward, a norm behind each."""

    attention: Any
    intermediate: Any

    def __init__(self, config: RapidBertConfig):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        # Dictionaries where only the weights' names have another level.
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({"Wqkv": nn.Linear(hidden, 3 * hidden)}),
                "output": Residual(hidden, config),
            }
        )
        if config.feed_forward not in FEED_FORWARDS:
            raise ValueError(
                f"feed_forward {config.feed_forward!r}: RapidBERT has {', '.join(FEED_FORWARDS)}"
            )
        self.gated = config.feed_forward != "standard"
        if self.gated:
            self.mlp = GatedFeedForward(config)
        else:
            self.intermediate = nn.ModuleDict({"dense": nn.Linear(hidden, inner)})
            self.output = Residual(inner, config)

    def forward(self, hidden: Tensor, attention: Attention) -> tuple[Tensor, Tensor | None]:
        """Turn [T, hidden] into [T, hidden] and the attention weights, if there are any."""
        qkv = self.attention["self"]["Wqkv"](hidden).unflatten(-1, (3, self.heads, -1))
        context, weights = attention(qkv, self.dropout if self.training else 0.0)
        hidden = self.attention["output"](context, hidden)
        if self.gated:
            return self.mlp(hidden), weights
        return self.output(F.gelu(self.intermediate["dense"](hidden)), hidden), weights


class RapidBertPreTrainedModel(PreTrainedModel):
    config_class = RapidBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["RapidBertLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True  # the name in transformers 4

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def _output(self, output: ModelOutput, return_dict: bool | None) -> Any:
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()


class RapidBertModel(RapidBertPreTrainedModel):
    """The encoder. What finetuned heads need beside it in the weights is left out on purpose."""

    _keys_to_ignore_on_load_unexpected = [r"^(bert\.)?(pooler|cls|classifier|qa_outputs)\."]

    def __init__(self, config: RapidBertConfig, add_pooling_layer: bool | None = None):
        super().__init__(config)
        self.embeddings = RapidBertEmbeddings(config)
        layers = (RapidBertLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder: Any = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.gradient_checkpointing = False
        self.pooler: Any = None
        if config.add_pooling_layer if add_pooling_layer is None else add_pooling_layer:
            dense = nn.Linear(config.hidden_size, config.hidden_size)
            self.pooler = nn.ModuleDict({"dense": dense})
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value  # type: ignore[assignment]  # an nn.Embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Compute the hidden states of the last layer, [S, L, hidden], zeros on padding.

        Args:
            input_ids: int64 [S, L]; or inputs_embeds: [S, L, hidden].
            attention_mask: [S, L], non-zero on tokens; None if all are tokens.
            token_type_ids: int64 [S, L]; None for all zeros.

        Raises:
            ValueError: shapes do not agree, or the attention asked for cannot be had here.
        """
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        name = self._attention(output_attentions)

        unpad = name == "flash_attention_2" or not torch.compiler.is_compiling()
        if input_ids is not None and inputs_embeds is None:
            batch = Batch(input_ids, attention_mask, unpad)
            words = self.embeddings.word_embeddings(batch.pack(input_ids))  # [T, hidden]
        elif input_ids is None and inputs_embeds is not None:
            batch = Batch(inputs_embeds, attention_mask, unpad)
            words = batch.pack(inputs_embeds)
        else:
            raise ValueError("give either input_ids or inputs_embeds")
        types = None if token_type_ids is None else batch.pack(token_type_ids)
        hidden = self.embeddings(words, types)

        attention = Attention(name, batch, config.num_attention_heads, hidden.dtype)
        states, maps = [], []
        for layer in self.encoder["layer"]:
            if output_hidden_states:
                states.append(batch.restore(hidden))
            if self.gradient_checkpointing and self.training:
                hidden, weights = self._gradient_checkpointing_func(layer, hidden, attention)
            else:
                hidden, weights = layer(hidden, attention)
            if output_attentions:
                maps.append(weights)
        hidden = batch.restore(hidden)  # [S, L, hidden]
        output = BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None else self.pool(hidden, batch),
            hidden_states=(*states, hidden) if output_hidden_states else None,
            attentions=tuple(maps) if output_attentions else None,
        )
        return self._output(output, return_dict)

    def pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Turn [S, L, hidden] into [S, hidden], by the first token of every sequence."""
        return torch.tanh(self.pooler["dense"](batch.first(hidden)))

    def _attention(self, with_weights: bool | None) -> str:
        name: str = self.config._attn_implementation
        if name not in ATTENTIONS:
            raise ValueError(f"attn_implementation {name!r}: RapidBERT has {', '.join(ATTENTIONS)}")
        if with_weights and name != "eager":
            raise ValueError(f'{name} returns no attentions: load with attn_implementation="eager"')
        if not torch.compiler.is_compiling():
            logger.warning_once(f"RapidBERT computes attention by {name}")
        return name


class RapidBertWithHead(RapidBertPreTrainedModel):
    """What the models with a head share: `scores` and `loss` are what they differ in."""

    bert: RapidBertModel
    output_class: type[ModelOutput]

    def scores(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Turn hidden states [S, L, hidden] into logits."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of what is labelled, fp32."""
        return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())  # skips -100

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Compute the logits, and the loss where there are labels; see `RapidBertModel.forward`.

        Those of tokens are zero on padding.
        """
        encoded = self.bert(
            *(input_ids, attention_mask, token_type_ids, inputs_embeds),
            *(output_attentions, output_hidden_states),
            return_dict=True,
        )
        hidden = encoded.last_hidden_state
        logits = self.scores(
            hidden, Batch(hidden, attention_mask, not torch.compiler.is_compiling())
        )
        output = self.output_class(
            loss=None if labels is None else self.loss(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self._output(output, return_dict)


class RapidBertPredictionHead(nn.Module):
    """Dense, GELU, LayerNorm and the decoder, whose matrix is the word embedding's."""

    def __init__(self, config: RapidBertConfig):
        super().__init__()
        dense = nn.Linear(config.hidden_size, config.hidden_size)
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.transform = nn.ModuleDict({"dense": dense, "LayerNorm": norm})
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = F.gelu(self.transform["dense"](hidden))
        return self.decoder(self.transform["LayerNorm"](hidden))


class RapidBertForMaskedLM(RapidBertWithHead):
    """Scores every piece of the vocabulary at every token; labels int64 [S, L], -100 to skip."""

    output_class = MaskedLMOutput
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"
    }

    def __init__(self, config: RapidBertConfig):
        super().__init__(config)
        self.bert = RapidBertModel(config, add_pooling_layer=False)
        self.cls: Any = nn.ModuleDict({"predictions": RapidBertPredictionHead(config)})
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls["predictions"].decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.cls["predictions"].decoder = new_embeddings

    def scores(self, hidden: Tensor, batch: Batch) -> Tensor:
        return batch.restore(self.cls["predictions"](batch.pack(hidden)))


class RapidBertForSequenceClassification(RapidBertWithHead):
    """Scores sequences by their first token.

    `config.problem_type` says what the labels are: `single_label_classification` int64 [S],
    `multi_label_classification` 0 or 1 [S, classes], `regression` [S] or [S, outputs]. Without it
    one output is a regression, and several are classes, of which whole numbers are single labels.
    """

    output_class = SequenceClassifierOutput

    def __init__(self, config: RapidBertConfig):
        super().__init__(config)
        self.config.add_pooling_layer = True
        self.bert = RapidBertModel(config, add_pooling_layer=True)
        self.dropout = nn.Dropout(config.classifier_dropout)
        labels: Any = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, labels)
        self.post_init()

    def scores(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self.classifier(self.dropout(self.bert.pool(hidden, batch)))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind, logits = self.config.problem_type, logits.float()
        if kind == "regression" or (kind is None and self.config.num_labels == 1):
            return F.mse_loss(logits, labels.view_as(logits).float())
        if kind == "multi_label_classification" or (kind is None and labels.is_floating_point()):
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        return F.cross_entropy(logits, labels.flatten())


class RapidBertForTokenClassification(RapidBertWithHead):
    """Scores classes at every token; labels int64 [S, L], -100 to skip."""

    output_class = TokenClassifierOutput

    def __init__(self, config: RapidBertConfig):
        super().__init__(config)
        self.bert = RapidBertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.classifier_dropout)
        labels: Any = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, labels)
        self.post_init()

    def scores(self, hidden: Tensor, batch: Batch) -> Tensor:
        return batch.restore(self.classifier(self.dropout(batch.pack(hidden))))


class RapidBertForQuestionAnswering(RapidBertWithHead):
    """Scores every token as the start and as the end of the answer."""

    output_class = TokenClassifierOutput  # of `super().forward`, with starts and ends together

    def __init__(self, config: RapidBertConfig):
        super().__init__(config)
        self.bert = RapidBertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def scores(self, hidden: Tensor, batch: Batch) -> Tensor:
        return batch.restore(self.qa_outputs(batch.pack(hidden)))

    def forward(  # type: ignore[override]  # transformers has two labels here
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Compute the logits [S, L], and the loss where there are positions, int64 [S].

        Padding is no place for an answer: its logits are the lowest number there is. Positions
        outside the sequence are skipped: there the answer was cut off.
        """
        scored = super().forward(
            *(input_ids, attention_mask, token_type_ids, inputs_embeds, None),
            *(output_attentions, output_hidden_states),
            return_dict=True,
        )
        logits = scored.logits  # [S, L, 2]
        if attention_mask is not None:
            padding = (attention_mask == 0).unsqueeze(-1)
            logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
        starts, ends = logits.unbind(-1)  # [S, L] each
        loss = None
        if start_positions is not None and end_positions is not None:
            losses = []
            for logits, label in ((starts, start_positions), (ends, end_positions)):
                inside = (label >= 0) & (label < logits.shape[1])
                losses.append(F.cross_entropy(logits.float(), label.where(inside, -100)))
            loss = torch.stack(losses).mean()
        output = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=starts,
            end_logits=ends,
            hidden_states=scored.hidden_states,
            attentions=scored.attentions,
        )
        return self._output(output, return_dict)
