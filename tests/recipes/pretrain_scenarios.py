"""Worlds of one to four processes in which the tests of the training path run pretraining.

Importing torch, Megatron-core and DeepSpeed takes seconds. A fork server does it once; every rank
of every world is then a fork of it, with the imports done and no process group made.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  (imported for the forks)
import numpy as np
import torch
import torch._dynamo  # (imported for the forks: torch's optimizers load it when one is made)
from safetensors.torch import load_file
from torch import Tensor

from model.config import PRESETS, ModelConfig
from model.masked_lm import RapidBertForMaskedLM
from recipes import pretrain
from recipes.common import settings
from recipes.corpus.sentencepiece_tokenizer import SPECIAL_IDS
from recipes.corpus.sentencepiece_training import MIN_VOCAB_SIZE, train_tokenizer
from recipes.corpus.token_shards import MANIFEST_FORMAT, MANIFEST_NAME, ShardWriter
from recipes.engine.engine import (
    build_engine,
    full_precision_parameters,
    import_muon,
    set_learning_rate,
    update_weights,
)
from recipes.engine.kernel_choice import KernelChoice
from recipes.engine.micro_steps import MicroSteps
from recipes.engine.world import World, initialize_world
from recipes.training.run import Run, resolve
from recipes.training.settings import Adjustable, Identity, Places, Rehearsal, Settings
from recipes.training.step import GlobalBatch, compute_gradients, fetch, training_batches
from recipes.training.stragglers import RankTimes

_SIZES: dict[str, Any] = dict(num_layers=2, hidden_size=32, num_heads=2, ffn_size=64)
PRESETS["probe-tiny"] = ModelConfig("probe-tiny", **_SIZES, hidden_dropout=0.0, ffn_dropout=0.0)
PRESETS["dropout-tiny"] = ModelConfig("dropout-tiny", **_SIZES)


# A world that has not answered by then hangs: one rank waits for another.
TIMEOUT_SECONDS = 60

TOPICS, TOPIC_PIECES = 12, 5


@dataclass
class Outcome:
    """How one rank ended: what its task returned or raised, and what it printed."""

    value: Any = None
    error: BaseException | None = None
    output: str = ""


def run_world(world_size: int, task: Callable[..., Any], *arguments: Any) -> list[Outcome]:
    """Run `task(*arguments)` on every rank of a new world."""
    context = _fork_server()
    port = free_port()
    ranks = []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        process = context.Process(target=_rank, args=(sender, environment, task, arguments))
        process.start()
        sender.close()
        ranks.append((process, receiver))
    outcomes = [_receive(receiver) for _, receiver in ranks]
    for process, _ in ranks:
        process.join(5)  # a loader's workers end with their rank, unless it is killed
        process.kill()
    return outcomes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def values(outcomes: list[Outcome]) -> list[Any]:
    """What the ranks returned; raises the first error there was."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [outcome.value for outcome in outcomes]


def _prepare_forks() -> None:
    """Do what every rank would do once: imports, the reading of settings, an export's tables."""
    import_muon()
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "tokenizer.model"
        train_tokenizer(["abba"], model, MIN_VOCAB_SIZE + 2).files()
    settings.parse(Settings, command_line(Path(), Path(), Path()))


@functools.cache
def _fork_server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # Python 3.11 gives the server no sys.path, and ignores a module that it does not find.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def _receive(receiver: Any) -> Outcome:
    if not receiver.poll(TIMEOUT_SECONDS):
        return Outcome(error=TimeoutError("hangs"))
    try:
        return pickle.loads(receiver.recv_bytes())
    except EOFError:
        return Outcome(error=RuntimeError("died"))


def _rank(sender: Any, environment: dict[str, Any], task: Callable[..., Any], arguments) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    outcome, printed = Outcome(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            outcome.value = task(*arguments)
        except BaseException as error:
            outcome.error = error
            traceback.print_exc()
    outcome.output = printed.getvalue()
    # Tensors by value: what multiprocessing itself would hand out ends with this rank.
    sender.send_bytes(pickle.dumps(outcome))


def write_data(directory: Path, vowels: str = "aeiou") -> Path:
    """Prepared data that a tiny model learns within a hundred steps, with a real tokenizer.

    Every document runs in a cycle through the few pieces of its topic, so that a masked piece
    follows from its neighbours, while the frequencies alone say nothing.

    Args:
        vowels: letters that the words of the tokenizer's text end in; others give another one.
    """
    directory.mkdir(parents=True)
    vocab_size = MIN_VOCAB_SIZE + TOPICS * TOPIC_PIECES
    letters = [chr(ord("a") + n) for n in range(26)]
    words = [a + b + c for a in letters for b in letters for c in vowels]
    tokenizer = train_tokenizer(
        (" ".join(words[n : n + 50]) for n in range(0, len(words), 50)),
        directory / "tokenizer.model",
        vocab_size,
    )
    (directory / "tokenizer.vocab").write_text(tokenizer.vocabulary())
    generator = np.random.default_rng(0)
    pieces = np.arange(TOPICS * TOPIC_PIECES).reshape(TOPICS, TOPIC_PIECES) + MIN_VOCAB_SIZE
    splits = {}
    for split, documents in (("train", 600), ("validation", 60)):
        with ShardWriter(directory / f"{split}-00000", vocab_size) as writer:
            for number in range(documents):
                cycle = np.tile(pieces[number % TOPICS], 20)
                first = generator.integers(TOPIC_PIECES)
                writer.add(cycle[first : first + generator.integers(10, 90)])
        splits[split] = {
            "documents": writer.info["documents"],
            "tokens": writer.info["tokens"],
            "unigram_entropy_nats": float(np.log(pieces.size)),
            "shards": [writer.info],
        }
    manifest = {
        "format": MANIFEST_FORMAT,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": vocab_size,
            "lower_case": True,
            "special_ids": SPECIAL_IDS,
        },
        "splits": splits,
    }
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest))
    return directory


def write_config(directory: Path, batch: int, micro_batch: int, stage: int = 1, **keys) -> Path:
    """A DeepSpeed JSON in `directory`."""
    path = directory / f"{batch}x{micro_batch}-stage{stage}-{'-'.join(keys) or 'fp32'}.json"
    batches = {"train_batch_size": batch, "train_micro_batch_size_per_gpu": micro_batch}
    path.write_text(json.dumps({**batches, "zero_optimization": {"stage": stage}, **keys}))
    return path


SMALL: dict[str, Any] = {
    "model": "probe-tiny",
    "sequence_length": 32,
    "loader_workers": 0,
    "log_every": 1,
    "save_every": 3,
    "eval_every": 0,
    "eval_sequences": 16,
}
"""A run of a few small steps, every step logged."""


def command_line(data: Path, output: Path, config: Path, **options: Any) -> list[str]:
    """Arguments of `pretrain.py` for a small run, changed by `options`."""
    places = {"data": data, "output": output, "deepspeed_config": config}
    chosen = places | SMALL | options
    return [
        word
        for name, value in chosen.items()
        if value is not None
        for word in (f"--{name}", str(value))
    ]


def settings_of(data: Path, output: Path, config: Path, **options: Any) -> Settings:
    """The settings of a small run, changed by `options`."""
    chosen = SMALL | options
    if "duration" in chosen:
        chosen["duration"] = str(chosen["duration"])

    def group(kind: type, **inside: Any) -> Any:
        names = [field.name for field in fields(kind) if field.name in chosen]
        return kind(**{name: chosen.pop(name) for name in names}, **inside)

    settings = Settings(
        Places(data, output, config, chosen.pop("init_from", None)),
        group(Identity),
        group(Adjustable, kernel_choice=group(KernelChoice)),
        group(Rehearsal),
    )
    assert not chosen, chosen
    return settings


def pretraining(arguments: list[str]) -> int | None:
    """`pretrain.py` as it is started, but for the interpreter."""
    sys.argv = ["pretrain.py", *arguments]
    return pretrain.main()


def trained(output: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The scalars of a run that do not depend on the clock, and its exported weights."""
    timed = ("seconds", "time/", "throughput/", "cost/", "memory/", "checkpoint/")
    records = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    scalars = [{k: v for k, v in r.items() if not k.startswith(timed)} for r in records]
    return scalars, load_file(output / "export" / "model.safetensors")


def build(settings: Settings) -> tuple[Run, World, Any]:
    """A run up to its engine: the run, its world and DeepSpeed's engine around a fresh model."""
    run = resolve(settings, int(os.environ["WORLD_SIZE"]))
    world = initialize_world(run.identity.tensor_parallel)
    torch.manual_seed(run.identity.seed)
    model = RapidBertForMaskedLM(run.model, run.model_options)
    return run, world, build_engine(model, run.deepspeed, run.plan, world, **run.optimizer)


def one_step(run: Run, world: World, engine: Any, step: int) -> float:
    """The loop's step `step`; returns its loss."""
    batch = fetch(training_batches(run, world, step), run.plan.accumulation, {}, world)
    return float(one_update(engine, batch, RankTimes(world), run.identity.seed, step))


def one_update(engine: Any, batch: GlobalBatch, times: RankTimes, seed: int, step: int) -> Tensor:
    """What the loop does with a batch; returns the loss."""
    set_learning_rate(engine, 1e-3)
    loss = compute_gradients(MicroSteps(engine), batch, seed=seed, step=step, times=times)
    update_weights(engine)
    return loss


def weights(engine: Any) -> dict[str, Tensor]:
    """Copies of the optimizer's fp32 weights."""
    return {name: w.clone() for name, w in full_precision_parameters(engine)}


_prepare_forks()
