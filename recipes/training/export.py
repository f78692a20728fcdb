"""The export: what leaves a run, and what every later stage reads.

A directory as transformers reads it: `model.safetensors` under the public checkpoint's names,
`config.json`, the modelling file and the tokenizer. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from model.config import ModelConfig
from model.masked_lm import RapidBertForMaskedLM
from model.pretrained import CONFIG, WEIGHTS, Export, read_export
from model.weights import Head, gather_state, not_finite
from recipes.common.errors import SaveError, UserError
from recipes.common.files import PARTIAL, sync_directory, sync_tree
from recipes.common.json_content import Json
from recipes.common.numbers import LENGTHS
from recipes.corpus.tokenizer import Tokenizer, open_tokenizer, other_fingerprint
from recipes.engine.engine import full_precision_parameters
from recipes.engine.interface import Engine
from recipes.engine.world import on_first_rank
from recipes.interop.hf_directory import write_directory
from recipes.training.checkpoints.manifest import published

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def export(
    engine: Engine,
    config: ModelConfig,
    tokenizer_dir: Path,
    output: Path,
    facts: Json,
    head: Head = "masked_lm",
    finish: Callable[[dict[str, Tensor]], None] | None = None,
) -> Path:
    """Write `output/export` from a trained engine. Call on every rank.

    Weights are the optimizer's fp32 master weights.

    Args:
        facts: what else `config.json` should say (tokenizer fingerprint, sequence length).
        head: of the model that the engine trains.
        finish: changes the whole weights, as our model names them, before they are written.

    Raises:
        SaveError: the file system refused (full, read-only); an earlier export is untouched.
        UserError: there are weights that are not finite; likewise.
    """
    precise = dict(full_precision_parameters(engine))
    state = gather_state(engine.module, lambda name, parameter: precise[name])
    final = output / "export"

    def write() -> None:
        if finish is not None:
            finish(state)
        if fault := not_finite(state):
            raise UserError(f"{final}: not written: {fault}")
        try:
            write_export(final, state, config, tokenizer_dir, facts, head)
        except (OSError, SafetensorError) as error:
            raise SaveError(f"{final} could not be written: rank 0: {error}") from None

    on_first_rank(write, final)
    return final


def write_export(
    final: Path,
    state: dict[str, Tensor],
    config: ModelConfig,
    tokenizer_dir: Path,
    facts: Json,
    head: Head = "masked_lm",
) -> None:
    """Publish whole weights (as our model names them) with configuration and tokenizer."""
    tokenizer = open_tokenizer(tokenizer_dir)
    partial = final.with_name(final.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_directory(
        partial, state, config, tokenizer, facts, head, called=final, data=tokenizer_dir
    )
    sync_tree(partial)
    previous = final.with_name(final.name + ".previous")
    if final.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(final, previous)
    os.replace(partial, final)
    sync_directory(final.parent)
    shutil.rmtree(previous, ignore_errors=True)


def export_directory(checkpoint: Path) -> Path:
    """The export of a run's directory; any other directory is taken for an export itself."""
    return checkpoint / "export" if (checkpoint / "export").is_dir() else checkpoint


def read_tensors(checkpoint: Path) -> tuple[ModelConfig, dict[str, Tensor], Json]:
    """Configuration, weights under their public names and description of an export.

    Args:
        checkpoint: an export, or the directory of a run that has one.

    Raises:
        UserError: no export there, or a damaged one.
    """
    found = open_export(checkpoint)
    return found.config, found.tensors, found.description


def open_export(checkpoint: Path) -> Export:
    """Read an export, as `read_tensors`."""
    directory = export_directory(checkpoint)
    try:
        export = read_export(directory)
    except FileNotFoundError:
        raise UserError(f"{checkpoint}: no export there: {_lacking(directory)}") from None
    except OSError as error:
        raise UserError(f"{directory}: damaged export: {error}") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    if faults := list(_faults_of(export.description.get("task", {}))):
        raise UserError(*(f"{directory}: damaged export: {CONFIG}: {each}" for each in faults))
    return export


def read_tokenizer(
    checkpoint: Path, config: ModelConfig, description: Mapping[str, Any]
) -> Tokenizer:
    """The tokenizer of an export whose configuration and description are read.

    Raises:
        UserError: it is damaged, or not the one that the weights were trained with.
    """
    tokenizer = open_tokenizer(export_directory(checkpoint))
    trained = description.get("tokenizer", {}).get("fingerprint", "one that is not named")
    if fault := other_fingerprint(tokenizer, trained):
        raise UserError(fault)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{tokenizer.path}: {tokenizer.vocab_size:,} pieces, the model has "
            f"{config.vocab_size:,}"
        )
    return tokenizer


def unfinished(run: Path) -> str | None:
    """How far a run is that has no export yet, and what can be done about it; None: no run."""
    try:
        record = json.loads((run / CONFIG).read_bytes())
        record["identity"], record["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    newest = next(iter(published(run / "checkpoints")), None)
    done = int(newest.name.removeprefix("step-")) if newest else None
    step = "none yet" if done is None else f"{done:,}"
    total = record.get("total_steps")
    if done is not None and done == total:
        return (
            f"this run has done all of its {done:,} steps, and exported nothing. The command that "
            "started it, given again, exports now or says why it cannot"
        )
    parts = sorted(str(path.parent) for path in run.glob("at-*/export"))
    return (
        "this run has not finished; its newest checkpoint is of step "
        f"{step}{f' of {total:,}' if newest and total else ''}. The command that started it goes "
        "on from there and exports at the end"
        + (f"; what it has exported on its way: {', '.join(parts)}" if parts else "")
    )


def _lacking(directory: Path) -> str:
    if not directory.is_dir():
        what = "a file" if directory.exists() else "no such directory"
        return f"{what}; name the directory of a run or of an export"
    if how_far := unfinished(directory):
        return how_far
    absent = [name for name in (CONFIG, WEIGHTS) if not (directory / name).is_file()]
    missing = " and ".join(f"{name} is missing" for name in absent)
    pickled = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLED)
    if pickled:
        return (
            f"{missing}, and what {', '.join(pickled)} may hold is never unpickled; weights are "
            f"read from {WEIGHTS} alone"
        )
    return f"{missing}; a run writes its export/ when it has finished"


def load_with_tokenizer(checkpoint: Path) -> tuple[RapidBertForMaskedLM, Tokenizer]:
    """Load an exported masked language model, for evaluation, and the tokenizer of its training.

    Raises:
        UserError: as `read_tensors`; weights that do not fit; another tokenizer; a finetuned
            model, which guesses no words.
    """
    found = open_export(checkpoint)
    tokenizer = read_tokenizer(checkpoint, found.config, found.description)
    task = found.description.get("task", {})
    if task or "classifier.weight" in found.tensors:
        task = task.get("name", "a task")
        raise UserError(f"{checkpoint}: finetuned on {task}; name the pretrained model it is from")
    model = RapidBertForMaskedLM(found.config)
    try:
        found.load_into(model, "masked_lm")
    except ValueError as error:
        raise UserError(str(error)) from None
    return model.eval(), tokenizer


def _faults_of(task: Json) -> Iterator[str]:
    """What cannot be, of what an export says of its task."""
    labels, columns, kind = task.get("labels"), task.get("text_columns"), task.get("kind", "")
    labels, columns = [] if labels is None else labels, [] if columns is None else columns
    length = task.get("max_length")
    if not _are_names(labels) or len(set(labels)) < len(labels):
        yield f"labels are {labels!r}, not names of which each is there once"
    if not _are_names(columns):
        yield f"text_columns are {columns!r}, no names"
    if not isinstance(kind, str):
        yield f"kind is {kind!r}, no name"
    if length is not None and (type(length) is not int or length not in LENGTHS):
        yield f"max_length is {length!r}: must be {LENGTHS}"


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
