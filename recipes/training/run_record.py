"""`config.json`: the resolved run, written down before it starts and checked when it goes on."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from recipes.common.errors import UserError
from recipes.common.files import write_whole
from recipes.common.json_content import Json
from recipes.common.locks import lock
from recipes.common.settings import flat
from recipes.engine.ds_config import numeric_section, numeric_settings, precision
from recipes.engine.world import World, on_first_rank
from recipes.training.checkpoints.manifest import has_checkpointed, identities
from recipes.training.provenance import git_revision, versions
from recipes.training.run import Run
from recipes.training.run_description import describe

CONFIG = "config.json"

# Of a manifest's tokenizer, for the export; the last three are missing in older ones.
TOKENIZER_FACTS = (
    *("fingerprint", "vocab_size", "lower_case", "special_ids"),
    *("normalizer", "keeps_text", "kind"),
)

# Parts of the identity that the records of older versions lack.
LATER_IDENTITY = {"train_indexes", "validation_shards"}

FOLLOWS_THE_CLOCK = (
    "learning rate and number of steps are functions of the clock: the data order and the masks of "
    "a repeated or resumed run are the same, its losses are not to the bit"
)


def start(run: Run, world: World) -> bool:
    """Write `config.json`, or compare with the one that is there. Call on every rank.

    Returns:
        Whether the run has checkpointed before, so that a missing checkpoint is an error.

    Raises:
        UserError: the directory holds a run with other settings, all differences named.
    """
    return on_first_rank(lambda: _start(run, world), run.places.output)


def check(run: Run) -> None:
    """Compare a run with what its directory holds, as `start` will; nothing is written.

    Raises:
        UserError: as `start`.
    """
    if run.places.output.is_dir():
        _check_identity(run.places.output, _identity_now(run))


def _identity_now(run: Run) -> Json:
    # Read only where it is compared: on one rank, what a run that goes on once started from.
    return {**identity(run), **(run.initial.given_identity() if run.initial else {})}


def _start(run: Run, world: World) -> bool:
    output = run.places.output
    output.mkdir(parents=True, exist_ok=True)
    lock(output, "training into it")
    path = output / CONFIG
    record = _record(run, world)
    _check_identity(output, _identity_now(run))
    if path.exists():
        record["started"] = _read(path).get("started")  # the first start; earlier versions lack it
    print(describe(run))
    write_whole(path, (json.dumps(record, indent=1, default=str) + "\n").encode())
    # A first checkpoint that a crash left unfinished is no progress to go on from.
    return has_checkpointed(output) or (output / "export").exists()


def _check_identity(output: Path, now: Json) -> None:
    """Compare with what is there: with `config.json`, and with every checkpoint, which it may have
    lost, or which may have been copied there.

    Raises:
        UserError: it is another run's, or nobody can say whose; all differences named.
    """
    config = output / CONFIG
    recorded = _read(config)["identity"] if config.exists() else None
    changed = _differences(recorded, now) if recorded else []
    checkpoints = identities(output / "checkpoints")
    known = {path: identity for path, identity in checkpoints.items() if identity is not None}
    foreign = {path: found for path, each in known.items() if (found := _differences(each, now))}
    if changed:
        if known and not foreign:
            raise UserError(
                f"{config} is another run's; the checkpoints beside it have the settings given "
                "now. Move it away, it is written again:",
                *changed,
            )
        raise UserError(
            f"{output} holds a run with other settings; give another --output, or the same:",
            *changed,
        )
    for path, differences in foreign.items():
        raise UserError(
            f"{path} belongs to a run with other settings; give another --output, or the same"
            + (f"; {config} is not that run's" if recorded else "")
            + ":",
            *differences,
        )
    if unknown := [path for path in checkpoints if path not in known]:
        if recorded is None:
            raise UserError(
                f"{unknown[0]} does not say which settings it was trained with (an earlier "
                f"version wrote it), and {config} is missing. Bring it back, or move the run's "
                "directory away to start again from zero."
            )
        if unknown[0] == next(iter(checkpoints)):
            print(f"{unknown[0]}: written by an earlier version, its settings are in {CONFIG} only")
    elif known and recorded is None:
        print(f"{config} was missing; the checkpoints have the settings given now")


def identity(run: Run) -> Json:
    """Return what must not change between the parts of one run, as a file gives it back."""
    manifest = run.train.manifest
    splits = manifest["splits"]
    return _as_read(
        {
            **flat(run.identity),
            **{f"model.{name}": value for name, value in run.model.to_dict().items()},
            "global_batch": run.plan.global_batch,
            **{f"deepspeed.{k}": value for k, value in numeric_settings(run.deepspeed).items()},
            "tokenizer": manifest["tokenizer"]["fingerprint"],
            **(run.initial.identity() if run.initial else {}),
            "train_shards": [shard["bin_sha256"] for shard in splits["train"]["shards"]],
            "train_indexes": [shard["idx_sha256"] for shard in splits["train"]["shards"]],
            "validation_shards": [
                digest
                for shard in splits["validation"]["shards"]
                for digest in (shard["bin_sha256"], shard["idx_sha256"])
            ],
        }
    )


def _as_read(value: Json) -> Json:
    read: Json = json.loads(json.dumps(value, default=str))
    return read


def _read(path: Path) -> Json:
    try:
        record: Json = json.loads(path.read_bytes())
        record["identity"], record["versions"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not the record of a run; move the directory away") from None
    return record


_TEXTS = {
    "train_shards": "training text",
    "train_indexes": "division of the training text into documents",
    "validation_shards": "held-out text",
}
"""What is known by checksums, which tell a reader nothing."""


def _differences(before: Json, now: Json) -> list[str]:
    # Earlier versions recorded all of a section.
    before = {
        n: numeric_section(n.removeprefix("deepspeed."), value) for n, value in before.items()
    }
    return [
        f"--data: another {_TEXTS[name]} than that of the run"
        if name in _TEXTS
        else f"{name}: was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not (name in LATER_IDENTITY and name not in before)
    ]


def _record(run: Run, world: World) -> Json:
    plan, train = run.plan, run.train.manifest
    return {
        "model": {**run.model.to_dict(), "parameters": run.model.parameters()},
        "run": flat(run.settings),
        "deepspeed": run.deepspeed,
        "precision": precision(run.deepspeed),
        "adamw_weight_decay": run.optimizer["weight_decay"],
        "world_size": world.world_size,
        "device": run.device_name,
        "versions": versions(),
        "git_revision": git_revision(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "requested_global_batch": plan.requested,
        "global_batch": plan.global_batch,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "total_steps": run.total_steps,
        "sequences": run.total_steps and run.total_steps * plan.global_batch,
        **({} if run.total_steps else {"follows_the_clock": FOLLOWS_THE_CLOCK}),
        "data": {
            "tokenizer_fingerprint": train["tokenizer"]["fingerprint"],
            "train_tokens": run.train.tokens,
            "unigram_entropy_nats": run.validation.unigram_entropy_nats,
        },
        **_start_facts(run),
        "identity": identity(run),
    }


def _start_facts(run: Run) -> Json:
    return {"started_from": run.initial.facts()} if run.initial else {}


def recorded(output: Path) -> Json:
    """Return what `config.json` says to people: without the checksums of every shard."""
    return {name: value for name, value in _read(output / CONFIG).items() if name != "identity"}


def facts(run: Run, world: World) -> dict[str, str]:
    """What a checkpoint says about who wrote it, and a resume announces when it has changed."""
    stage = run.deepspeed.get("zero_optimization", {}).get("stage", 0)
    return {
        **versions(),
        "git_revision": git_revision(),
        "device": run.device_name,
        "world_size": str(world.world_size),
        "micro_batch": str(run.plan.micro_batch),
        "ZeRO stage": str(stage),
    }


def export_facts(run: Run) -> Json:
    """What an export says about its origin, beside the model."""
    return {
        "tokenizer": {
            key: value
            for key, value in run.train.manifest["tokenizer"].items()
            if key in TOKENIZER_FACTS
        },
        "sequence_length": run.identity.sequence_length,
        **_start_facts(run),
        "git_revision": git_revision(),
    }
