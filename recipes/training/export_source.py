"""Finding the trained model that a user names: an export, or any checkpoint of a run.

A checkpoint is pieces of fp32 weights under the names of our model. It knows the settings of its
run, but has no tokenizer: that is the prepared data's, or one that the run has exported already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn

from model.config import ModelConfig
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from model.pretrained import Export
from model.weights import (
    BERT_DECODER_BIAS,
    DECODER_BIAS,
    NEVER_PREDICTED,
    State,
    join_shards,
    not_finite,
    shard_shape,
    to_public,
)
from recipes.common.errors import UserError
from recipes.common.json_content import Json, object_in
from recipes.corpus.tokenizer import Tokenizer, open_tokenizer
from recipes.interop.source import Source
from recipes.training.checkpoints.manifest import damage, published, read_manifest
from recipes.training.checkpoints.reader import PieceReader
from recipes.training.export import export_directory, open_export, read_tokenizer
from recipes.training.run_record import CONFIG


def read_source(place: Path) -> Source:
    """Read an export, a run that has one, or a checkpoint.

    Raises:
        UserError: there is none at this place, or it is damaged; or no tokenizer that it was
            trained with.
    """
    initialize_parallel()
    place = place.absolute()
    if place in published(place.parent):
        return _read_checkpoint(place)
    try:
        weights = open_export(place)
    except UserError as error:
        newest = next(iter(published(place / "checkpoints")), None)
        way_out = [f"its newest checkpoint can be exported: --input {newest}"] if newest else []
        raise UserError(*error.faults, *way_out) from None
    try:
        weights.state("none")  # an encoder of these settings is there
    except ValueError as error:
        raise UserError(str(error)) from None
    tokenizer = read_tokenizer(place, weights.config, weights.description)
    tensors = dict(weights.tensors)
    for name in {DECODER_BIAS, BERT_DECODER_BIAS} & tensors.keys():
        # Older versions left the rows that pad the vocabulary as the training had them.
        tensors[name] = tensors[name].clone()
        tensors[name][weights.config.vocab_size :] = NEVER_PREDICTED
    data = _recorded_data(export_directory(place).parent)
    return Source(place, replace(weights, tensors=tensors), tokenizer, data)


def _read_checkpoint(place: Path) -> Source:
    if faults := list(damage(place)):
        raise UserError(*faults)
    manifest, run = read_manifest(place), place.parents[1]
    identity = manifest.get("identity") or object_in(run / CONFIG).get("identity")
    if not identity:
        raise UserError(f"{place}: no settings in it, and no {run / CONFIG} that has them")
    try:
        config = ModelConfig.from_dict(
            {k.removeprefix("model."): v for k, v in identity.items() if k.startswith("model.")}
        )
        trained, length = identity["tokenizer"], identity["sequence_length"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{place}: {error}: not the settings of a pretraining") from None
    data = _recorded_data(run)
    tokenizer = _tokenizer_of(place, trained, [data, *_exported(run)])
    tensors = to_public(_join(place, manifest, config), config)
    if fault := not_finite(tensors):
        raise UserError(f"{place}: {fault}")
    tensors[DECODER_BIAS] = tensors[DECODER_BIAS].clone()
    tensors[DECODER_BIAS][config.vocab_size :] = NEVER_PREDICTED
    description = {
        "model": config.to_dict(),
        "tokenizer": tokenizer.info(),
        "sequence_length": length,
        "git_revision": manifest["facts"].get("git_revision"),
        "progress": manifest["progress"],
    }
    return Source(place, Export(run / "export", config, tensors, description), tokenizer, data)


def _join(place: Path, manifest: Json, config: ModelConfig) -> State:
    """Return the whole weights as our model names them, from every tensor-parallel rank's part."""
    shards = manifest["tensor_parallel_size"]
    readers = [PieceReader(place, manifest, rank) for rank in range(shards)]
    # Built for the shapes, and for the ways in which Megatron's layers are cut.
    model: nn.Module = RapidBertForMaskedLM(config)
    state: State = {}
    for name, parameter in model.named_parameters():
        shape = shard_shape(parameter, shards)
        numel = parameter.new_empty(shape, device="meta").numel()
        parts = [reader.read("weight", name, 0, numel).view(shape) for reader in readers]
        state[name] = join_shards(parameter, parts)
    return state


def _recorded_data(run: Path) -> Path | None:
    """Return the directory of the prepared data, as the run was started with it."""
    settings = object_in(run / CONFIG).get("run")
    data = settings.get("data") if isinstance(settings, dict) else None
    return Path(data) if isinstance(data, str) else None


def _exported(run: Path) -> Iterator[Path]:
    yield run / "export"
    yield from sorted(run.glob("at-*/export"))


def _tokenizer_of(place: Path, trained: str, candidates: list[Path | None]) -> Tokenizer:
    """Return the tokenizer with this fingerprint, of the first directory that has it."""
    looked: list[str] = []
    for directory in filter(None, candidates):
        try:
            tokenizer = open_tokenizer(directory)
        except UserError as error:
            looked += error.faults
            continue
        if tokenizer.fingerprint == trained:
            return tokenizer
        looked.append(f"{tokenizer.path}: its fingerprint is {tokenizer.fingerprint}")
    raise UserError(
        f"{place}: trained with the tokenizer {trained}, which is not there any more", *looked
    )
