"""Between the weights as Megatron's layers hold them and as the public checkpoints name them.

The public layout is MosaicBERT's for RapidBERT (`bert.encoder.layer.N.attention.self.Wqkv`, rows
q|k|v; `mlp.gated_layers`, rows gate|value) and Hugging Face's for BERT. Megatron interleaves QKV
per head, rows [head, (q, k, v), head_dim], so that a tensor-parallel rank holds whole heads. The
decoder's matrix is the word embedding's and is stored once.

Files of others are read as they are found: what has two names may have either or both, if they hold
the same; `gamma` and `beta` are the weight and bias of old norms; rows that the padded vocabulary
has beyond the file's are made, so that they are never predicted. What is left out on purpose is the
heads that were not asked for, the pooler and the next-sentence head among them, and numbers of
positions. Anything else that the model has no place for is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .megatron import parallel_state

State = dict[str, Tensor]

WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
DECODER_BIAS = "cls.predictions.decoder.bias"
BERT_DECODER_BIAS = "cls.predictions.bias"
# Second names of one tensor: what files of Hugging Face's BERT call it, and we do.
SAME = {
    BERT_DECODER_BIAS: DECODER_BIAS,
    "cls.predictions.decoder.weight": WORD_EMBEDDINGS,
}
OLD_NORMS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
NEVER_PREDICTED = -1e4
"""Bias of a vocabulary row without a piece: its probability is zero in every precision."""

Head = Literal["masked_lm", "classifier", "token_classifier", "span_classifier", "none"]


def to_public(state: Mapping[str, Tensor], config: ModelConfig, head: Head = "masked_lm") -> State:
    """Give a whole (not tensor-parallel) state its public names. Values may share memory with it.

    Args:
        head: what stands on the encoder.
    """
    public: State = {}
    for ours, theirs in _names(config, head).items():
        if isinstance(theirs, str):
            tensor = state[ours]
            public[theirs] = _split_heads(tensor, config) if "Wqkv" in theirs else tensor
        else:  # query, key, value apart
            parts = _split_heads(state[ours], config).chunk(len(theirs))
            public.update(zip(theirs, (part.contiguous() for part in parts), strict=True))
    if config.feed_forward == "glu":
        for prefix in _layer_prefixes(config):
            gate, value = (public.pop(f"{prefix}.mlp.{part}.weight") for part in ("gate", "value"))
            public[f"{prefix}.mlp.gated_layers.weight"] = torch.cat([gate, value])
    return public


def from_public(
    public: Mapping[str, Tensor], config: ModelConfig, head: Head = "masked_lm"
) -> State:
    """Undo `to_public`, also for files that others wrote (see the head of this file).

    Raises:
        ValueError: missing tensors, ones that the model has no place for, two names with different
            values, or QKV rows that cannot be regrouped, all of them named. The other shapes are
            for `scatter_state` to check.
    """
    faults: list[str] = []
    public = under_our_names(public, config, faults)
    faults += _without_a_place(public, config, head)
    if config.feed_forward == "glu":
        for prefix in _layer_prefixes(config):
            fused = public.pop(f"{prefix}.mlp.gated_layers.weight", None)
            if fused is not None:
                gate, value = fused.chunk(2)
                public[f"{prefix}.mlp.gate.weight"] = gate
                public[f"{prefix}.mlp.value.weight"] = value
    state = {}
    for ours, theirs in _names(config, head).items():
        names = [theirs] if isinstance(theirs, str) else theirs
        missing = [name for name in names if name not in public]
        if missing:
            faults.append(f"missing {', '.join(missing)}")
            continue
        if "linear_qkv" in ours:
            rows = 3 * config.hidden_size // len(names)
            wrong = [name for name in names if public[name].shape[:1] != (rows,)]
            if wrong:
                faults += [f"{x} is {list(public[x].shape)}, not {rows} rows" for x in wrong]
                continue
            state[ours] = _merge_heads(torch.cat([public[name] for name in names]), config)
        else:
            state[ours] = public[names[0]]
    if faults:
        raise ValueError("weights do not fit the model: " + "; ".join(faults))
    return state


def public_names(config: ModelConfig, head: Head = "masked_lm") -> list[str]:
    """Name the tensors of a model in the public layout."""
    fused = replace(config, feed_forward="fused_glu") if config.feed_forward == "glu" else config
    names: list[str] = []
    for theirs in _names(fused, head).values():
        names += [theirs] if isinstance(theirs, str) else theirs
    return names


def under_our_names(public: Mapping[str, Tensor], config: ModelConfig, faults: list[str]) -> State:
    """Give each tensor of a file one name, and pad the vocabulary.

    Args:
        faults: tensors that have two names and different values are added here.
    """
    if not any(name.startswith("bert.") for name in public):
        # Of an encoder that was saved without a head, names begin one level further down.
        parts = ("embeddings.", "encoder.", "pooler.")
        public = {f"bert.{x}" if x.startswith(parts) else x: t for x, t in public.items()}
    named: State = {}
    spelt: dict[str, str] = {}
    for found, tensor in public.items():
        name = SAME.get(found, found)
        for old, new in OLD_NORMS.items():
            name = name.replace(old, new)
        if name not in named:
            named[name], spelt[name] = tensor, found
        elif not torch.equal(named[name], tensor):
            faults.append(f"{spelt[name]} and {found} differ: to the model they are one tensor")
    for name, value in ((WORD_EMBEDDINGS, 0.0), (DECODER_BIAS, NEVER_PREDICTED)):
        found_rows = named[name].shape[0] if name in named and named[name].dim() else 0
        if config.vocab_size <= found_rows < config.padded_vocab_size:
            rows = config.padded_vocab_size - found_rows
            beside = (0, 0) * (named[name].dim() - 1)
            named[name] = F.pad(named[name], (*beside, 0, rows), value=value)
    return named


def _without_a_place(public: Mapping[str, Tensor], config: ModelConfig, head: Head) -> list[str]:
    """Name the tensors of the encoder or of this head that the model has no place for."""
    known = {DECODER_BIAS, *BUFFERS}
    for names in _names(config, head).values():
        known.update([names] if isinstance(names, str) else names)
    if config.feed_forward == "glu":
        known.update(f"{prefix}.mlp.gated_layers.weight" for prefix in _layer_prefixes(config))
    inside: tuple[str, ...] = ("bert.embeddings.", "bert.encoder.")
    inside += ("cls.predictions.",) if head == "masked_lm" else ()
    unknown = [name for name in public if name.startswith(inside) and name not in known]
    return [f"the model has no place for {', '.join(sorted(unknown))}"] if unknown else []


def gather_state(
    model: nn.Module, value: Callable[[str, nn.Parameter], Tensor] = lambda _, p: p.detach()
) -> State:
    """Gather the whole state of a tensor-parallel model, on the CPU in fp32. Call on every rank.

    Args:
        value: what to take for a parameter, of its shape; the parameter itself unless told.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    shards = group.size()
    whole: State = {}
    for name, parameter in model.named_parameters():
        tensor = value(name, parameter)
        if shards > 1 and _split(parameter):
            parts = [torch.empty_like(tensor) for _ in range(shards)]
            dist.all_gather(parts, tensor.contiguous(), group=group)
            tensor = join_shards(parameter, parts)
        whole[name] = tensor.to("cpu", torch.float32, copy=True)
    return whole


def join_shards(parameter: nn.Parameter, parts: Sequence[Tensor]) -> Tensor:
    """Put the parts of a parameter that tensor-parallel ranks hold together, in their order."""
    split = _split(parameter)
    if not split:
        return parts[0]
    dim, stride = split
    # Each rank holds one piece of each of the `stride` blocks (gate and value of a GLU).
    blocks = [part.chunk(stride, dim) for part in parts]
    return torch.cat([rank[block] for block in range(stride) for rank in blocks], dim)


def shard_shape(parameter: nn.Parameter, shards: int) -> list[int]:
    """Return the shape of a whole parameter's part on each of so many tensor-parallel ranks."""
    shape = list(parameter.shape)
    if split := _split(parameter):
        shape[split[0]] //= shards
    return shape


def scatter_state(model: nn.Module, whole: Mapping[str, Tensor]) -> None:
    """Load this rank's part of a whole state. It undoes `gather_state`.

    Raises:
        ValueError: missing or superfluous tensors, or wrong shapes, all of them named.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    rank, shards = group.rank(), group.size()
    parameters = dict(model.named_parameters())
    faults = [f"missing {name}" for name in parameters if name not in whole]
    faults += [f"unknown {name}" for name in whole if name not in parameters]
    local: State = {}
    for name, parameter in parameters.items():
        if name not in whole:
            continue
        tensor, shape = whole[name], list(parameter.shape)
        split = _split(parameter) if shards > 1 else None
        if split:
            shape[split[0]] *= shards
        if list(tensor.shape) != shape:
            faults.append(f"{name} is {list(tensor.shape)}, the model has {shape}")
        elif split:
            dim, stride = split
            local[name] = torch.cat(tensor.chunk(shards * stride, dim)[rank::shards], dim)
        else:
            local[name] = tensor
    if faults:
        raise ValueError("weights do not fit the model: " + "; ".join(faults))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(local[name])


def _split(parameter: nn.Parameter) -> tuple[int, int] | None:
    """Find dimension and stride of Megatron's cut through a parameter; None if it is whole."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return None
    # Megatron puts these on the parameter.
    return parameter.partition_dim, parameter.partition_stride  # type: ignore[attr-defined]


def _layer_prefixes(config: ModelConfig) -> list[str]:
    return [f"bert.encoder.layer.{number}" for number in range(config.num_layers)]


def _names(config: ModelConfig, head: Head) -> dict[str, str | list[str]]:
    """Map our name of every tensor to its public one, or to three where q, k and v are apart."""
    names: dict[str, str | list[str]] = {}

    def both(ours: str, theirs: str) -> None:
        for part in ("weight", "bias"):
            names[f"{ours}.{part}"] = f"{theirs}.{part}"

    ours, theirs = "encoder.embedding", "bert.embeddings"
    names[f"{ours}.word_embeddings.weight"] = f"{theirs}.word_embeddings.weight"
    names[f"{ours}.token_type_embeddings.weight"] = f"{theirs}.token_type_embeddings.weight"
    if config.positions == "learned":
        names[f"{ours}.position_embeddings.weight"] = f"{theirs}.position_embeddings.weight"
    both(f"{ours}.layernorm", f"{theirs}.LayerNorm")
    for number, theirs in enumerate(_layer_prefixes(config)):
        ours = f"encoder.layers.{number}"
        for part in ("weight", "bias"):
            attention = f"{theirs}.attention.self"
            names[f"{ours}.self_attention.linear_qkv.{part}"] = (
                [f"{attention}.{x}.{part}" for x in ("query", "key", "value")]
                if config.positions == "learned"
                else f"{attention}.Wqkv.{part}"
            )
        both(f"{ours}.self_attention.linear_proj", f"{theirs}.attention.output.dense")
        both(f"{ours}.post_attention_layernorm", f"{theirs}.attention.output.LayerNorm")
        if config.feed_forward == "standard":
            both(f"{ours}.mlp.linear_fc1", f"{theirs}.intermediate.dense")
            both(f"{ours}.mlp.linear_fc2", f"{theirs}.output.dense")
            both(f"{ours}.post_mlp_layernorm", f"{theirs}.output.LayerNorm")
            continue
        if config.feed_forward == "glu":
            for part in ("gate", "value"):
                names[f"{ours}.mlp.linear_{part}.weight"] = f"{theirs}.mlp.{part}.weight"
        else:
            names[f"{ours}.mlp.linear_in.weight"] = f"{theirs}.mlp.gated_layers.weight"
        both(f"{ours}.mlp.linear_out", f"{theirs}.mlp.wo")
        both(f"{ours}.post_mlp_layernorm", f"{theirs}.mlp.layernorm")
    if head == "masked_lm":
        both("head.dense", "cls.predictions.transform.dense")
        both("head.layernorm", "cls.predictions.transform.LayerNorm")
        names["head.decoder_bias"] = DECODER_BIAS
    elif head == "classifier":
        both("pooler", "bert.pooler.dense")
        both("classifier", "classifier")
    elif head == "token_classifier":
        both("classifier", "classifier")
    elif head == "span_classifier":
        both("qa_outputs", "qa_outputs")
    return names


def _split_heads(qkv: Tensor, config: ModelConfig) -> Tensor:
    """Order rows [head, (q, k, v), head_dim] as q|k|v."""
    rows = qkv.reshape(config.num_heads, 3, config.head_dim, *qkv.shape[1:])  # [H, 3, D, ...]
    return rows.transpose(0, 1).reshape(qkv.shape)  # [3, H, D, ...] to [3*H*D, ...]


def _merge_heads(qkv: Tensor, config: ModelConfig) -> Tensor:
    """Order rows q|k|v as [head, (q, k, v), head_dim]."""
    rows = qkv.reshape(3, config.num_heads, config.head_dim, *qkv.shape[1:])  # [3, H, D, ...]
    return rows.transpose(0, 1).reshape(qkv.shape)  # [H, 3, D, ...] to [H*3*D, ...]


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Say which tensors hold a NaN or an infinity, or None. It waits once for the device."""
    flags = [tensor.isfinite().all() for tensor in tensors.values()]
    if not flags or torch.stack(flags).all():
        return None
    names = [name for name, flag in zip(tensors, flags, strict=True) if not flag]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} of {len(flags)} tensors hold numbers that are not finite"
