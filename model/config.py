"""The models as one dataclass and one table of presets: sizes, parameter counts, FLOPs.

RapidBERT is the encoder published as MosaicBERT (arXiv 2312.17482): ALiBi instead of position
embeddings, a gated linear unit instead of Linear-GELU-Linear, padding removed. The BERT presets
are the baselines it is measured against; they run through the same layers.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

FeedForward = Literal["standard", "glu", "fused_glu"]
Positions = Literal["alibi", "learned"]

ATTENTION_BACKENDS = ("reference", "sdpa", "triton", "flash")
"""Names in `model.attention.BACKENDS`, for who does not want to wait for torch."""

# The vocabulary is padded to a multiple of this, so that matmul tiles and tensor-parallel shards
# divide it: 30,522 becomes 30,528.
VOCAB_MULTIPLE = 64


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape of the weights and the function they compute."""

    name: str
    """Preset this configuration came from."""
    num_layers: int
    """Transformer layers."""
    hidden_size: int
    """Width of the residual stream."""
    num_heads: int
    """Attention heads; head_dim = hidden_size / num_heads."""
    ffn_size: int
    """Inner width of the feed-forward; a gated one projects to twice this."""
    feed_forward: FeedForward = "fused_glu"
    """Appendix G: (A) standard, (B) glu with two matmuls, (C) fused_glu with one."""
    positions: Positions = "alibi"
    """ALiBi bias -slope*|i-j|, or learned position embeddings."""
    vocab_size: int = 30522
    """Pieces of the tokenizer; the weights have `padded_vocab_size` rows."""
    max_positions: int = 512
    """Rows of the position table (learned positions only); ALiBi has no limit."""
    type_vocab_size: int = 2
    """Token types (first and second segment)."""
    hidden_dropout: float = 0.1
    """After the embedding and attention's output, and after a standard feed-forward."""
    attention_dropout: float = 0.0
    """On the attention probabilities."""
    ffn_dropout: float = 0.1
    """Between the activation and the second matrix of a gated feed-forward, its only dropout."""
    layernorm_eps: float = 1e-12
    """Added to the variance in LayerNorm."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        faults = []
        for field in ("num_layers", "hidden_size", "num_heads", "ffn_size", "vocab_size"):
            if getattr(self, field) < 1:
                faults.append(f"{field} must be positive, got {getattr(self, field)}")
        if not faults and self.hidden_size % self.num_heads:
            faults.append(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.feed_forward == "standard" and self.ffn_dropout:
            faults.append(
                f"ffn_dropout {self.ffn_dropout}: the standard feed-forward has none, set it to 0"
            )
        if faults:
            raise ValueError(f"{self.name}: " + "; ".join(faults))

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def why_not_length(self, tokens: int) -> str | None:
        """What is against sequences of so many tokens; None where nothing is."""
        if self.positions == "learned" and tokens > self.max_positions:
            return f"{self.name} has learned positions for {self.max_positions} tokens at most"
        return None

    def parameters(self) -> int:
        """Count the learnable parameters (N of Eq. 3), the decoder and the embedding once."""
        h, f = self.hidden_size, self.ffn_size
        embeddings = (self.padded_vocab_size + self.type_vocab_size) * h + 2 * h
        if self.positions == "learned":
            embeddings += self.max_positions * h
        attention = 3 * (h * h + h) + (h * h + h) + 2 * h
        if self.feed_forward == "standard":
            mlp = (h * f + f) + (f * h + h) + 2 * h
        else:
            mlp = 2 * h * f + (f * h + h) + 2 * h
        head = (h * h + h) + 2 * h + self.padded_vocab_size
        return embeddings + self.num_layers * (attention + mlp) + head

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build from a dictionary.

        Raises:
            ValueError: unknown keys, so that no mistyped dropout vanishes, or values of another
                type than the field's.
            TypeError: keys are missing.
        """
        known = get_type_hints(cls)
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown model settings {unknown}; known: {sorted(known)}")
        wrong = [f"{name} is {v!r}" for name, v in values.items() if not _can_be(v, known[name])]
        if wrong:
            raise ValueError(f"model settings that cannot be: {', '.join(wrong)}")
        return cls(**values)


def _can_be(value: object, kind: Any) -> bool:  # the types of fields have no type in common
    if kind is int:
        return type(value) is int and 0 <= value < 2**31
    if kind is float:
        return isinstance(value, int | float) and type(value) is not bool and 0 <= value < 1e9
    return isinstance(value, str) and value in (get_args(kind) or (value,))


@dataclass(frozen=True)
class ModelOptions:
    """How a model computes: nothing here changes what the weights mean, only speed, memory and
    rounding.
    """

    attention: str = "reference"
    """Attention backend, a key of `model.attention.BACKENDS`: reference (fp32 throughout), sdpa
    (everywhere), triton (the fastest in bf16 on a GPU), flash (FlashAttention-2)."""
    kernels: str = "torch"
    """Kernels of the operations between the matmuls, one of `model.kernels.KERNELS`."""
    recompute: bool = False
    """Keep only the input of all layers but the last one, and compute the rest again during the
    backward pass: less memory, about a third more time."""


PLAIN = ModelOptions()
"""What a model is built with unless told otherwise: the form that all others must equal."""


def training_flops(
    config: ModelConfig, *, tokens: int, masked_tokens: int, token_pairs: int
) -> float:
    """Count the matmul FLOPs really executed, forward and backward (3x the forward).

    Args:
        tokens: real tokens; all layers but the end of the last one see each of them.
        masked_tokens: tokens to predict; the last layer's output projection and feed-forward and
            the MLM head see only these.
        token_pairs: sum of squared sequence lengths, for QK^T and PV.
    """
    h, f = config.hidden_size, config.ffn_size
    qkv = 3 * h * h
    after_attention = h * h + (2 if config.feed_forward == "standard" else 3) * h * f
    head = h * h + h * config.padded_vocab_size
    multiply_adds = (
        config.num_layers * (qkv * tokens + 2 * h * token_pairs)
        + after_attention * ((config.num_layers - 1) * tokens + masked_tokens)
        + head * masked_tokens
    )
    return 3.0 * 2.0 * multiply_adds


def _bert(name: str, attention_dropout: float = 0.1, **sizes: Any) -> ModelConfig:
    return ModelConfig(
        name=name,
        feed_forward="standard",
        positions="learned",
        attention_dropout=attention_dropout,
        ffn_dropout=0.0,
        **sizes,
    )


BASE: dict[str, Any] = dict(num_layers=12, hidden_size=768, num_heads=12, ffn_size=3072)
LARGE: dict[str, Any] = dict(num_layers=24, hidden_size=1024, num_heads=16, ffn_size=4096)
TINY: dict[str, Any] = dict(num_layers=3, hidden_size=192, num_heads=3, ffn_size=768)

PRESETS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        # Tiny runs are short and see every sequence a few times at most: dropout only slows them.
        ModelConfig("rapidbert-tiny", **TINY, hidden_dropout=0.0, ffn_dropout=0.0),
        ModelConfig("rapidbert-base", **BASE),
        ModelConfig("rapidbert-large", **LARGE),
        ModelConfig("rapidbert-xl", num_layers=24, hidden_size=1792, num_heads=28, ffn_size=7168),
        _bert("bert-tiny", **TINY, hidden_dropout=0.0, attention_dropout=0.0),
        _bert("bert-base", **BASE),
        _bert("bert-large", **LARGE),
    )
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """Return the preset `name` with some fields replaced; ValueError names the nearest one."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name.lower(), PRESETS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"unknown model {name!r}{hint}; presets: {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)
