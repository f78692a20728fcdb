"""The DeepSpeed JSON: what it may say, read and checked.

One home per number: the JSON owns precision, ZeRO, communication and batch sizes; the recipe owns
model, data, optimizer, schedule and duration. A key that has its home elsewhere, or that nobody
knows, is an error.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

import torch

from recipes.common.errors import UserError
from recipes.common.json_content import Json

# What a configuration may say: a type, a choice of values, or the keys of a section. `None`:
# DeepSpeed's own (pydantic) check of the section is used; it has none for the others.
JSON_KEYS: Json = {
    "train_batch_size": object,
    "train_micro_batch_size_per_gpu": object,
    "bf16": None,
    "data_types": {"grad_accum_dtype": ("fp32", "bf16")},
    "zero_optimization": None,
    "communication_data_type": ("fp32", "bf16"),
    "prescale_gradients": bool,
    "gradient_predivide_factor": float,
    "disable_allgather": bool,
    "comms_logger": {
        "enabled": bool,
        "verbose": bool,
        "prof_all": bool,
        "prof_ops": list,
        "debug": bool,
    },
    "wall_clock_breakdown": bool,
    "steps_per_print": int,
}

# What of it decides numbers, beyond the order in which they are summed.
NUMERIC_KEYS = ("bf16", "data_types", "communication_data_type")

# Of these, what changes how sums are stored on the way and not one bit of them.
SPEED_KEYS = {"bf16": ("immediate_grad_update",)}

# Keys DeepSpeed knows and this recipe sets elsewhere.
RECIPE_KEYS = {
    "optimizer": "the recipe builds AdamW: --learning-rate, --weight-decay",
    "scheduler": "the recipe sets the schedule: --warmup-fraction, --final-lr-fraction",
    "gradient_clipping": "the recipe trains without clipping and passes 0 to DeepSpeed",
    "gradient_accumulation_steps": "it follows from the batch sizes and the world size",
    "tensorboard": "the recipe writes TensorBoard itself",
    "fp16": "these models train in bf16 or fp32",
    "torch_autocast": "Megatron's layers keep fp32 biases, so autocast runs most of them in fp32; "
    "bf16 with ZeRO keeps fp32 master weights as well",
}

MOST_SEQUENCES = 100_000_000
"""The largest batch that is accepted: more sequences than that are a whole run, not a step."""


def read_config(path: Path, *, batch_sizes: bool = True) -> Json:
    """Read and check a DeepSpeed JSON.

    Args:
        batch_sizes: whether the file is the home of the batch sizes, and must have them; for
            finetuning the table of tasks is, and it must not.

    Raises:
        UserError: all faults at once: unreadable, unknown or misplaced keys, impossible values.
    """
    try:
        config = json.loads(path.read_bytes(), object_pairs_hook=_no_duplicates)
    except OSError as error:
        available = sorted(str(p) for p in Path("ds_configs").glob("*.json"))
        raise UserError(f"{path}: {error.strerror}; there are {', '.join(available)}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: the DeepSpeed configuration must be a JSON object")
    faults = [f"{path}: {fault}" for fault in _config_faults(config, batch_sizes)]
    if faults:
        raise UserError(*faults)
    return config


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"key {', '.join(twice)} given twice")
    return dict(pairs)


def _config_faults(config: Json, batch_sizes: bool) -> list[str]:
    faults = []
    for key, value in config.items():
        if key in RECIPE_KEYS:
            faults.append(
                f"{key!r} has no place in the DeepSpeed configuration: {RECIPE_KEYS[key]}"
            )
        elif key not in JSON_KEYS:
            near = difflib.get_close_matches(key, JSON_KEYS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            faults.append(f"unknown key {key!r}{hint}; known: {', '.join(JSON_KEYS)}")
        else:
            faults += _value_faults(key, value, JSON_KEYS[key])
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu"):
        value = config.get(key)
        if not batch_sizes:
            if key in config:
                faults.append(f"{key}: finetuning takes the batch size from its task, remove it")
        elif type(value) is not int or not 1 <= value <= MOST_SEQUENCES:
            faults.append(
                f"{key} must be a positive whole number up to {MOST_SEQUENCES:,}, got {value!r}"
            )
    stage = config.get("zero_optimization", {})
    stage = stage.get("stage", 0) if isinstance(stage, dict) else 0
    if _enabled(config, "bf16") and stage == 0:
        # Without ZeRO gradients accumulate in bf16, and the fp32 master weights are out of reach of
        # the export, which would silently be bf16.
        faults.append("bf16 needs ZeRO: set zero_optimization.stage to 1")
    return faults


def _value_faults(key: str, value: Any, allowed: Any) -> list[str]:
    if allowed is None:
        return _section_faults(key, value)
    if isinstance(allowed, dict):
        if not isinstance(value, dict):
            return [f"{key} must be an object, got {value!r}"]
        faults = []
        for name, inner in value.items():
            if name in allowed:
                faults += _value_faults(f"{key}.{name}", inner, allowed[name])
            else:
                faults.append(f"unknown key '{key}.{name}'; known: {', '.join(sorted(allowed))}")
        return faults
    if isinstance(allowed, tuple):
        fits, wanted = value in allowed, " or ".join(map(repr, allowed))
    else:
        fits, wanted = isinstance(value, allowed), allowed.__name__
        if allowed in (int, float):
            fits = isinstance(value, int | allowed) and not isinstance(value, bool)
    return [] if fits else [f"{key} must be {wanted}, got {value!r}"]


def expect_device() -> None:
    """Tell DeepSpeed, before it is imported, that there is no GPU: else it looks, and warns."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _section_faults(key: str, value: object) -> list[str]:
    """What DeepSpeed finds wrong with a section that it checks itself."""
    expect_device()
    import pydantic
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    if not isinstance(value, dict):
        return [f"{key} must be an object, got {value!r}"]
    faults = []
    if key == "zero_optimization":
        stage = value.get("stage", 0)
        if type(stage) is not int or not 0 <= stage <= 2:  # pydantic takes "1" for 1, and 3
            why = "; 3 shards the weights themselves, which evaluation and export need whole"
            faults.append(
                f"{key}.stage must be 0, 1 or 2, got {stage!r}{why if stage == 3 else ''}"
            )
            value = {**value, "stage": 0}
    section = {"bf16": DeepSpeedBF16Config, "zero_optimization": DeepSpeedZeroConfig}[key]
    try:
        section(**value)
    except pydantic.ValidationError as error:
        return faults + [
            f"{'.'.join([key, *map(str, e['loc'])])}: {e['msg']}" for e in error.errors()
        ]
    if key == "zero_optimization":
        return faults + _zero_faults(value)
    # pydantic takes "false" for False, everything else here would take it for true.
    faults = [
        f"{key}.{name}: master weights, Adam's state and the overflow check stay as they are, "
        "remove it"
        for name in (
            "bf16_master_weights_and_grads",
            "bf16_optimizer_states",
            "check_grad_overflow",
        )
        if name in value
    ]
    return faults + _value_faults(f"{key}.enabled", value.get("enabled", False), bool)


def _zero_faults(section: Json) -> list[str]:
    return [
        f"zero_optimization.{name}: the recipe's AdamW keeps its state on the device, remove it"
        for name in ("offload_optimizer", "offload_param", "zenflow")
        if section.get(name)
    ]


def _enabled(config: Json, section: str) -> bool:
    value = config.get(section, {})
    return isinstance(value, dict) and value.get("enabled") is True


def numeric_settings(config: Json) -> Json:
    """Return what of the configuration decides numbers; None for a section that is not there."""
    return {key: numeric_section(key, config.get(key)) for key in NUMERIC_KEYS}


def numeric_section(key: str, section: object) -> Any:
    """Return what of one section decides numbers."""
    if not isinstance(section, dict):
        return section
    without = SPEED_KEYS.get(key, ())
    return {name: value for name, value in section.items() if name not in without}


def precision(config: Json) -> str:
    """ "bf16" (with fp32 master weights in the optimizer) or "fp32"."""
    return "bf16" if _enabled(config, "bf16") else "fp32"
