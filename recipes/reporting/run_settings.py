"""Settings of a run as it was recorded: what differs from the defaults, and the rest folded."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from recipes.common.settings import option
from recipes.planning.commands import GPUS_PER_NODE, job_script, sbatch_line
from recipes.reporting.html_page import Markup, command, folded, joined, subheading, table
from recipes.reporting.runs import RecordedRun
from recipes.training.settings import (
    DEFAULT_DOCUMENTS,
    DEFAULT_DURATION,
    DEFAULT_MASK_PROBABILITY,
    Settings,
)

_RESOLVED = {
    "documents": DEFAULT_DOCUMENTS,
    "duration": DEFAULT_DURATION,
    "mask_probability": DEFAULT_MASK_PROBABILITY,
}
"""What a record has for settings that were not given and have no default of their own."""


def settings_part(run: RecordedRun) -> Markup:
    """Return the settings of a run and what it takes to repeat it."""
    config = run.config
    batch = {
        "global batch": config.get("global_batch"),
        "micro-batch": config.get("micro_batch"),
        "gradient accumulation": config.get("accumulation"),
        "precision": config.get("precision"),
    }
    given, left = _by_default(config.get("run", {}))
    software = {"git revision": config.get("git_revision"), **config.get("versions", {})}
    return joined(
        subheading(run.name),
        command(pretraining_command(run)),
        table(_rows(batch | given)),
        folded(f"{len(left)} settings at their defaults", table(_rows(left))),
        folded("Software", table(_rows(software))),
    )


def pretraining_command(run: RecordedRun) -> str:
    """Return the line that starts this run, from its record: what was not given is left out.

    More GPUs than one machine has are a job of SLURM's.
    """
    given, _ = _by_default(run.config.get("run", {}))
    given = {name: value for name, value in given.items() if value is not None}
    devices = run.devices or 1
    if devices > GPUS_PER_NODE and run.device != "cpu":
        return _job_line(run, given, devices)
    words = ["deepspeed", "--num_gpus", str(devices), "recipes/pretrain.py", *_options(given)]
    return ("DS_ACCELERATOR=cpu " if run.device == "cpu" else "") + shlex.join(words)


def _job_line(run: RecordedRun, given: Mapping[str, Any], gpus: int) -> str:
    """Return the sbatch line: the fewest nodes that share the GPUs evenly."""
    nodes = math.ceil(gpus / GPUS_PER_NODE)
    while gpus % nodes:
        nodes += 1
    own = ("model", "data", "output", "deepspeed_config")
    before = {name.upper(): str(given[name]) for name in own if name in given}
    if options := _options({name: given[name] for name in given if name not in own}):
        before["PRETRAIN_OPTIONS"] = shlex.join(options)
    return sbatch_line(job_script(run.model), before, nodes, gpus // nodes)


def _options(given: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in given.items():
        if name in ("dry_run", "gpus"):
            continue
        flag = [option(name)] if value is not False else []
        values = value if isinstance(value, list) else [value]
        words += flag + ([] if isinstance(value, bool) else [str(each) for each in values])
    return words


def _by_default(recorded: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that differ from their defaults, and those that do not."""
    defaults = dict(_defaults(Settings))
    as_read = json.loads(json.dumps(defaults, default=str))
    given: dict[str, Any] = {}
    left: dict[str, Any] = {}
    for name, value in recorded.items():
        same = name in defaults and value in (as_read[name], _RESOLVED.get(name, as_read[name]))
        (left if same else given)[name] = value
    return given, left


def _defaults(settings: type[Any]) -> Iterator[tuple[str, object]]:
    """Yield the fields that have a default, those of sections inside as well."""
    types = get_type_hints(settings)
    for each in dataclasses.fields(settings):
        if dataclasses.is_dataclass(types[each.name]):
            yield from _defaults(types[each.name])
        elif each.default is not dataclasses.MISSING:
            yield each.name, each.default


def _rows(settings: Mapping[str, object]) -> list[tuple[str, ...]]:
    lines = [(name, "-" if value is None else str(value)) for name, value in settings.items()]
    return [("setting", "value"), *lines]
