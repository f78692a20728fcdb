"""Weights of others: a directory that others wrote becomes our configuration and our names.

| layout     | written by                             | what differs from ours               |
|------------|----------------------------------------|--------------------------------------|
| rapidbert  | this recipe, now or by older versions  | nothing                              |
| mosaicbert | the published code                     | `config.json`                        |
| bert       | `transformers`, and what came before   | norms' names, second names           |
| jinabert   | JinaBERT-v2's code                     | query, key and value are apart       |

Sizes come from the file's own `config.json`. What a model of ours cannot compute (another
activation, relative positions, a decoder, norms on queries and keys) is refused by name: a model
that loads and computes something else would be the worst outcome.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from .config import PRESETS, ModelConfig
from .pretrained import CONFIG, Export
from .weight_files import read_weights
from .weights import (
    BUFFERS,
    DECODER_BIAS,
    WORD_EMBEDDINGS,
    State,
    not_finite,
    public_names,
    under_our_names,
)

Layout = Literal["rapidbert", "mosaicbert", "bert", "jinabert"]

_SIZES = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_size",
    "vocab_size": "vocab_size",
}
# The shape of a preset, by which an imported model gets its name.
_SHAPE = (
    *("num_layers", "hidden_size", "num_heads", "ffn_size"),
    *("feed_forward", "positions", "max_positions", "type_vocab_size"),
)
# Parts that may stand on an encoder besides the masked-token head.
_OTHER_HEADS = ("bert.pooler.", "cls.seq_relationship.", "classifier.", "qa_outputs.")
_TELLS_MOSAICBERT = ".attention.self.Wqkv."
_QK_NORMS = ("up_gated_layer", "layer_norm_q", "layer_norm_k")


@dataclass(frozen=True)
class Foreign(Export):
    """The contents of such a directory; `state` and `load_into` are those of an export."""

    layout: Layout
    source: str
    """Name of the file that the weights were found by."""
    has_masked_lm: bool
    """Whether the masked-token head is there; if not, the tensors are of an encoder alone."""
    left_out: tuple[str, ...]
    """Tensors of other heads, which are not among `tensors`."""


def read_foreign(directory: str | Path) -> Foreign:
    """Read a directory of weights, ours or of others.

    Raises:
        ValueError: everything that is wrong with it, a line each: no or an unreadable
            `config.json`, an architecture that is not one of ours, weights that are damaged, not
            plain tensors, missing, superfluous, of another shape or not finite.
    """
    directory = Path(directory)
    if not directory.is_dir():
        what = "a file; name its directory" if directory.exists() else "no such directory"
        raise ValueError(f"{directory}: {what}")
    faults: list[str] = []
    description = _read_config(directory, faults)
    tensors, source = read_weights(directory, faults)
    layout, config = None, None
    if description is not None:
        layout = _layout(description, tensors, faults)
    if description is not None and layout is not None:
        config = _configuration(description, layout, faults)
    if source and not tensors and not faults:
        faults.append(f"{source}: holds no tensors")
    if config is None or layout is None or description is None or not tensors:
        raise ValueError("\n".join(f"{directory}: {fault}" for fault in faults))
    named = _normalised(tensors, config, layout, faults)
    has_masked_lm = any(name.startswith("cls.predictions.") for name in named)
    expected = expected_shapes(config, masked_lm=has_masked_lm)
    others = [name for name in named if name.startswith(_OTHER_HEADS)]
    kept = {name: x for name, x in named.items() if name not in others and name not in BUFFERS}
    faults += _misfits(kept, expected, config)
    if fault := not_finite({name: x for name, x in kept.items() if name in expected}):
        faults.append(f"{source}: {fault}")
    if faults:
        raise ValueError("\n".join(f"{directory}: {fault}" for fault in faults))
    said = dict(own_description(description) or description)
    return Foreign(
        directory, config, kept, said, layout, source, has_masked_lm, tuple(sorted(others))
    )


def _read_config(directory: Path, faults: list[str]) -> dict[str, Any] | None:
    path = directory / CONFIG
    if not path.is_file():
        inside = directory / "export"
        hint = f" (did you mean {inside}?)" if (inside / CONFIG).is_file() else ""
        faults.append(f"no {CONFIG} there, which says what the weights are{hint}")
        return None
    try:
        description = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        faults.append(f"{CONFIG}: {error}")
        return None
    if not isinstance(description, dict):
        faults.append(f"{CONFIG}: not a JSON object")
        return None
    return description


def own_description(description: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a `config.json` says in our own words, from the key "model" on; None: nothing.

    Older exports have these words at the top, newer ones under "rapidbert".
    """
    for ours in (description.get("rapidbert"), description):
        if isinstance(ours, Mapping) and isinstance(ours.get("model"), dict):
            return ours
    return None


def _layout(
    description: Mapping[str, Any], tensors: Iterable[str], faults: list[str]
) -> Layout | None:
    if own_description(description):
        return "rapidbert"
    kind = description.get("model_type")
    if kind not in ("bert", "rapidbert"):
        faults.append(
            f"{CONFIG}: model_type {kind!r} is an architecture that is not read here; these are: "
            "bert (Hugging Face's, MosaicBERT's, JinaBERT-v2's) and rapidbert"
        )
        return None
    if description.get("position_embedding_type") == "alibi":
        return "jinabert"
    published = "alibi_starting_size" in description or kind == "rapidbert"
    if published or any(_TELLS_MOSAICBERT in name for name in tensors):
        return "mosaicbert"
    return "bert"


def _configuration(
    description: Mapping[str, Any], layout: Layout, faults: list[str]
) -> ModelConfig | None:
    """Return the model that a `config.json` describes; None, and faults, if it is none of ours."""
    if layout == "rapidbert":
        ours = own_description(description)
        try:
            return ModelConfig.from_dict(dict(ours["model"])) if ours else None
        except (ValueError, TypeError) as error:
            faults.append(f"{CONFIG}: {error}")
            return None
    found = [f"{CONFIG}: {fault}" for fault in _cannot_be_computed(description, layout)]
    values, wrong = _numbers(description, layout)
    faults += found
    faults += [f"{CONFIG}: {fault}" for fault in wrong]
    if found or wrong:
        return None
    family = "bert" if layout == "bert" else "rapidbert"
    hidden_dropout = values.pop("hidden_dropout")
    try:
        config = ModelConfig(
            f"{family}-{values['num_layers']}x{values['hidden_size']}",
            **values,
            feed_forward="standard" if layout == "bert" else "fused_glu",
            positions="learned" if layout == "bert" else "alibi",
            hidden_dropout=hidden_dropout,
            ffn_dropout=0.0 if layout == "bert" else hidden_dropout,
        )
    except ValueError as error:
        faults.append(f"{CONFIG}: {error}")
        return None
    return replace(config, name=_preset_of(config) or config.name)


def _preset_of(config: ModelConfig) -> str | None:
    """Return the preset whose shape this is; the vocabulary may be another."""

    def shape(of: ModelConfig) -> list[Any]:
        return [getattr(of, field) for field in _SHAPE if field != "max_positions" or _learns(of)]

    return next((p.name for p in PRESETS.values() if shape(p) == shape(config)), None)


def _learns(config: ModelConfig) -> bool:
    return config.positions == "learned"


def _cannot_be_computed(description: Mapping[str, Any], layout: Layout) -> Iterator[str]:
    """Yield what a `config.json` asks for that no model of ours computes."""
    wanted: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("gelu", None),
        "is_decoder": (False, None),
        "add_cross_attention": (False, None),
        "pruned_heads": ({}, None),
        "tie_word_embeddings": (True, None),
        "quantization_config": (None,),
    }
    if layout == "bert":
        wanted["position_embedding_type"] = ("absolute", None)
    if layout == "jinabert":
        wanted["feed_forward_type"] = ("geglu",)
    for key, possible in wanted.items():
        value = description.get(key)
        if value not in possible:
            can = f"{possible[0]!r} alone" if possible[0] is not None else "none"
            yield f"{key} {value!r}: this model computes {can}"
    code = json.dumps([description.get("_name_or_path"), description.get("auto_map")])
    if layout == "jinabert" and "qk-post-norm" in code:
        yield (
            "the variant of JinaBERT with norms on queries and keys (qk-post-norm): this model has "
            "none of them"
        )


def _numbers(description: Mapping[str, Any], layout: Layout) -> tuple[dict[str, Any], list[str]]:
    """Return the numbers of a configuration by our names, and what is wrong with them."""
    # What a file leaves out has the value that its own code gives it.
    attention_dropout = 0.0 if layout == "mosaicbert" else 0.1
    others: dict[str, tuple[str, Any]] = {
        "max_position_embeddings": ("max_positions", 512),
        "type_vocab_size": ("type_vocab_size", 2),
        "hidden_dropout_prob": ("hidden_dropout", 0.1),
        "attention_probs_dropout_prob": ("attention_dropout", attention_dropout),
        "layer_norm_eps": ("layernorm_eps", 1e-12),
        "initializer_range": ("initializer_range", 0.02),
    }
    values: dict[str, Any] = {}
    faults = []
    for theirs, ours in _SIZES.items():
        value = description.get(theirs)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            found = "is missing" if value is None else f"is {value!r}"
            faults.append(f"{theirs} {found}; it must be a whole number from 1 on")
        values[ours] = value
    for theirs, (ours, default) in others.items():
        value = description.get(theirs, default)
        whole = isinstance(default, int)
        good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        upper = 1.0 if "dropout" in theirs else math.inf
        if not good or not 0 <= value < upper or (whole and value < 1):
            faults.append(f"{theirs} is {value!r}; it must be a number like {default}")
        values[ours] = value
    return values, faults


def _normalised(
    tensors: State, config: ModelConfig, layout: Layout, faults: list[str]
) -> dict[str, torch.Tensor]:
    """Return the tensors under our public names, the vocabulary padded to our multiple."""
    named = under_our_names(tensors, config, faults)
    if layout != "jinabert":
        return named
    for number in range(config.num_layers):
        attention = f"bert.encoder.layer.{number}.attention.self"
        for part in ("weight", "bias"):
            names = [f"{attention}.{x}.{part}" for x in ("query", "key", "value")]
            apart = [named.get(name) for name in names]
            # Parts that are missing or do not fit together stay, and are named as they are.
            whole = [x for x in apart if x is not None and x.shape[:1] == (config.hidden_size,)]
            if len(whole) == 3 and len({x.shape for x in whole}) == 1:
                named[f"{attention}.Wqkv.{part}"] = torch.cat(whole)
                for name in names:
                    del named[name]
    return named


def expected_shapes(config: ModelConfig, *, masked_lm: bool) -> dict[str, list[int]]:
    """Return the shape of every tensor of a model by its public name."""
    h, f, v = config.hidden_size, config.ffn_size, config.padded_vocab_size
    ends = {
        ".word_embeddings.weight": [v, h],
        ".token_type_embeddings.weight": [config.type_vocab_size, h],
        ".position_embeddings.weight": [config.max_positions, h],
        ".Wqkv.weight": [3 * h, h],
        ".Wqkv.bias": [3 * h],
        ".gated_layers.weight": [2 * f, h],
        ".wo.weight": [h, f],
        ".intermediate.dense.weight": [f, h],
        ".intermediate.dense.bias": [f],
        ".attention.output.dense.weight": [h, h],
        ".output.dense.weight": [h, f],
        ".transform.dense.weight": [h, h],
        ".query.weight": [h, h],
        ".key.weight": [h, h],
        ".value.weight": [h, h],
        DECODER_BIAS: [v],
    }
    # All others are as wide as the residual stream: norms, and biases of what projects back to it.
    return {
        name: next((shape for end, shape in ends.items() if name.endswith(end)), [h])
        for name in public_names(config, "masked_lm" if masked_lm else "none")
    }


def _misfits(found: State, expected: Mapping[str, list[int]], config: ModelConfig) -> Iterator[str]:
    """Yield the tensors that are missing, that have no place, and those of another shape."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing:
        yield f"missing tensors: {', '.join(_by_layer(missing))}"
    if extra:
        yield f"the model has no place for {', '.join(_by_layer(extra))}"
    if any(part in name for name in extra for part in _QK_NORMS):
        yield "norms on queries and keys (JinaBERT's qk-post-norm variant): this model has none"
    for name, shape in expected.items():
        if name not in found or list(found[name].shape) == shape:
            continue
        if name in (WORD_EMBEDDINGS, DECODER_BIAS):
            v = config.vocab_size
            yield (
                f"{name} has {len(found[name])} rows, and {CONFIG} says vocab_size {v}: "
                f"{v} to {config.padded_vocab_size} rows would fit"
                if list(found[name].shape)[1:] == shape[1:]
                else f"{name} is {list(found[name].shape)}, {CONFIG} makes it {shape}"
            )
        else:
            yield f"{name} is {list(found[name].shape)}, {CONFIG} makes it {shape}"


def _by_layer(names: Iterable[str]) -> list[str]:
    """Write names that differ in the number of their layer alone as one: `layer.{0,1}.x`."""
    layers: dict[str, list[str]] = {}
    for name in names:
        number = re.search(r"(?<=\.layer\.)\d+(?=\.)", name)
        pattern = name.replace(f".layer.{number[0]}.", ".layer.{}.", 1) if number else name
        layers.setdefault(pattern, []).extend([number[0]] if number else [])
    return [
        pattern.replace("{}", numbers[0] if len(numbers) == 1 else "{" + ",".join(numbers) + "}")
        if numbers
        else pattern
        for pattern, numbers in layers.items()
    ]
