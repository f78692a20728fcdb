"""Weights that a run of pretraining starts from: continued pretraining (`--init-from`).

The directory is an export of ours, the directory of a run that has one, or one of others
(`model.foreign`). The architecture is the directory's. The tokenizer is the data's: where it is
another one, embeddings are carried over piece by piece.

Only a run that has no checkpoint yet starts from the weights; a resumed one has its own, and its
record says what it started from. Their checksum is part of the run's identity, so that it is not
resumed as another one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from model.config import ModelConfig, preset
from model.masked_lm import RapidBertForMaskedLM
from model.pretrained import CONFIG
from model.weights import (
    DECODER_BIAS,
    NEVER_PREDICTED,
    WORD_EMBEDDINGS,
    State,
    from_public,
    gather_state,
    scatter_state,
)
from recipes.common.errors import Faults, UserError
from recipes.common.json_content import Json, object_in
from recipes.corpus.tokenizer import Tokenizer, open_tokenizer, why_not_of_weights
from recipes.interop.source import read_any
from recipes.training.carry_over import CarryOver, carry_over
from recipes.training.checkpoints.manifest import UNREADABLE, has_checkpointed, identities
from recipes.training.export import export_directory, unfinished

ADJUSTABLE = ("name", "vocab_size", "hidden_dropout", "attention_dropout", "ffn_dropout")
"""Fields in which a preset and the directory may differ: those of the directory hold."""


@dataclass(frozen=True)
class InitialWeights:
    """Where a run starts, and how its model becomes of it; the weights themselves are not kept."""

    directory: Path
    layout: str
    config: ModelConfig
    """The directory's model."""
    has_masked_lm: bool
    """Whether it has the masked-token head; if not, the run's is new."""
    sha256: str
    """Of the weights as they are read, whatever file holds them."""
    tokenizer: str
    """Fingerprint of the directory's tokenizer."""
    carried: CarryOver | None = None
    """How the embeddings become those of another tokenizer; None: it is the same."""

    def __str__(self) -> str:
        head = "" if self.has_masked_lm else "; no masked-token head there, it begins new"
        words = f"another tokenizer: {self.carried}" if self.carried else "the same tokenizer"
        return (
            f"{self.directory}, {self.config.name} in the layout of {self.layout}, weights "
            f"{self.sha256[:12]}; {words}{head}"
        )

    def facts(self) -> Json:
        """Return what a record and an export say about the start."""
        return {
            "directory": str(self.directory),
            "layout": self.layout,
            "sha256": self.sha256,
            "tokenizer": self.tokenizer,
            "embeddings": str(self.carried) if self.carried else "all pieces keep their rows",
        }

    def identity(self) -> dict[str, str]:
        """Return what must not change between the parts of one run."""
        return _identity(self.sha256, self.tokenizer)

    def given_identity(self) -> dict[str, str]:
        """Return the identity of what --init-from names now: it was read from there."""
        return self.identity()

    def load_into(self, model: RapidBertForMaskedLM, seed: int) -> None:
        """Load them into a new model, whole or of a tensor-parallel rank. Call on every rank.

        Args:
            seed: of the rows that have to be drawn.

        Raises:
            UserError: the files have changed since they were checked.
        """
        found = read_any(self.directory)
        if checksum(found.tensors) != self.sha256:
            raise UserError(f"{self.directory}: the weights changed while the run started")
        tensors = found.tensors
        if self.carried:
            tensors = self.carried.apply(tensors, model.config, seed)
        else:
            tensors = _with_rows(tensors, model.config)
        state = from_public(tensors, model.config, "masked_lm" if self.has_masked_lm else "none")
        if not self.has_masked_lm:
            new = gather_state(model)
            state |= {name: new[name] for name in new if name not in state}
        scatter_state(model, state)


@dataclass(frozen=True)
class RecordedStart:
    """What a run started from by its own record: all that a run with checkpoints needs of it."""

    given: Path
    """What --init-from names now; may have changed, or be gone."""
    config: ModelConfig
    started_from: Json
    """As `InitialWeights.facts`; without layout and embeddings where the record is lost."""

    def __str__(self) -> str:
        return (
            f"{self.started_from['directory']}, weights {self.started_from['sha256'][:12]}, as "
            "recorded; the run goes on from its checkpoints"
        )

    def facts(self) -> Json:
        """Return what a record and an export say about the start."""
        return self.started_from

    def identity(self) -> dict[str, str]:
        """Return what must not change between the parts of one run."""
        return _identity(self.started_from["sha256"], self.started_from["tokenizer"])

    def given_identity(self) -> dict[str, str]:
        """Return the identity that holds for what --init-from names now.

        It is the recorded one, with a note printed, where the recorded place holds other weights by
        now, or where nothing can be read. Other weights in another place are another run's.
        """
        directory = export_directory(self.given)
        try:
            weights = checksum(read_any(directory).tensors)
            found = _identity(weights, _tokenizer_of(directory).fingerprint)
        except (UserError, OSError) as error:
            what = f"the weights that the run started from cannot be read there now ({error})"
        else:
            if found == self.identity() or not self._is_recorded_place():
                return found
            what = f"the weights there are no longer those that the run started from ({weights})"
        print(f"{directory}: {what}; the run goes on from its checkpoints, which do not need them")
        return self.identity()

    def load_into(self, model: RapidBertForMaskedLM, seed: int) -> None:
        """Refuse: only a run without checkpoints loads what it starts from.

        Raises:
            UserError: always.
        """
        raise UserError("the run's checkpoints disappeared while it started; start it again")

    def _is_recorded_place(self) -> bool:
        recorded, given = Path(self.started_from["directory"]).resolve(), self.given.resolve()
        return recorded in (given, given / "export")


def recorded_start(output: Path, given: Path) -> RecordedStart | None:
    """Return what the run in `output` started from, by its checkpoints and its `config.json`.

    Args:
        given: what --init-from names now.

    Returns:
        None where `given` has to be read: the run has no checkpoint, it began with random weights,
        or its record is lost and `given` is there to write it again.
    """
    if not has_checkpointed(output):
        return None
    record = object_in(output / CONFIG)
    known = [*identities(output / "checkpoints").values(), record.get("identity")]
    try:
        identity = next(each for each in known if each)
        weights, tokenizer = identity["initial_weights"], identity["initial_tokenizer"]
        values = {
            name.removeprefix("model."): value
            for name, value in identity.items()
            if name.startswith("model.")
        }
        config = ModelConfig.from_dict(values)
    except (StopIteration, *UNREADABLE):
        return None
    facts = {"directory": str(given), "sha256": weights, "tokenizer": tokenizer}
    recorded: Json = record.get("started_from") or {}
    if recorded.get("sha256") == weights and recorded.get("tokenizer") == tokenizer:
        return RecordedStart(given, config, {**facts, **recorded})
    return None if given.is_dir() else RecordedStart(given, config, facts)


def open_initial_weights(
    path: Path, tokenizer: Tokenizer | None, faults: Faults
) -> InitialWeights | None:
    """Read and check the directory that a run is to start from.

    Args:
        path: the directory, or that of a run with an export.
        tokenizer: of the data; None if that has a fault.

    Returns:
        None, with all faults added, if nothing can start from it.
    """
    directory = export_directory(path)
    if refusal := unfinished(directory):
        faults.append(f"{directory}: {refusal}")
        return None
    found = faults.attempt(lambda: read_any(directory))
    theirs = faults.attempt(lambda: _tokenizer_of(directory)) if directory.is_dir() else None
    if found is None or theirs is None or tokenizer is None:
        return None
    ours = found.description if found.layout == "rapidbert" else {}
    rows = found.config.vocab_size
    if wrong := list(why_not_of_weights(theirs, rows, ours.get("tokenizer", {}))):
        faults += wrong
        return None
    same = theirs.fingerprint == tokenizer.fingerprint
    return InitialWeights(
        directory,
        found.layout,
        found.config,
        found.has_masked_lm,
        checksum(found.tensors),
        theirs.fingerprint,
        None if same else carry_over(theirs, tokenizer),
    )


def contradiction(name: str, found: ModelConfig) -> str | None:
    """Say in what the preset `name` is not the directory's model; None where they agree.

    Raises:
        ValueError: there is no such preset.
    """
    asked = preset(name)
    differing = [
        f"{field.name} {getattr(asked, field.name)}, there {getattr(found, field.name)}"
        for field in fields(ModelConfig)
        if field.name not in ADJUSTABLE
        and (field.name != "max_positions" or asked.positions == "learned")
        and getattr(asked, field.name) != getattr(found, field.name)
    ]
    if not differing:
        return None
    return f"--model {name} is not the model of --init-from: {'; '.join(differing)}; leave it out"


def checksum(tensors: State) -> str:
    """Compute SHA-256 of names and values, whatever file they are in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy().data.cast("B"))
    return digest.hexdigest()


def _identity(weights: str, tokenizer: str) -> dict[str, str]:
    return {"initial_weights": weights, "initial_tokenizer": tokenizer}


def _tokenizer_of(directory: Path) -> Tokenizer:
    try:
        return open_tokenizer(directory)
    except UserError as error:
        way_out = "`convert_hf.py import --tokenizer` makes an export with one that lies elsewhere"
        raise UserError(*error.faults, way_out) from None


def _with_rows(tensors: State, config: ModelConfig) -> State:
    """Return the weights with as many rows of the vocabulary as a model of `config` has.

    The tokenizer is the same, so what may differ are rows without a piece.
    """
    changed = dict(tensors)
    for name, value in ((WORD_EMBEDDINGS, 0.0), (DECODER_BIAS, NEVER_PREDICTED)):
        if name in tensors:
            kept = tensors[name][: config.padded_vocab_size]
            more = kept.new_full((config.padded_vocab_size - len(kept), *kept.shape[1:]), value)
            changed[name] = kept if not len(more) else torch.cat([kept, more])
    return changed
