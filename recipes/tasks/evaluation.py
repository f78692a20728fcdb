"""What a finetuning computes of its data: token ids before it, predictions and metrics after it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from model.classifier import RapidBertForSequenceClassification
from recipes.common.errors import UserError
from recipes.engine.ds_config import precision
from recipes.engine.world import World
from recipes.planning.memory import activation_bytes, device_bytes, state_bytes
from recipes.tasks.classification_batches import EncodedExamples
from recipes.tasks.classification_data import Examples
from recipes.tasks.finetune_options import Finetuning
from recipes.tasks.metrics import compute
from recipes.tasks.predictions import write_predictions

EVALUATION_BATCH = 256
EVALUATION_LENGTH = 512
"""Up to so many tokens; beyond, the batch shrinks as attention's scores grow, with the square."""


def learnt(work: Finetuning) -> Examples:
    """The training set, its labels on the scale on which they are learnt."""
    train = work.data.train
    if work.scale is None:
        return train
    assert train.labels is not None
    return replace(train, labels=work.scale.learnt(train.labels))


def encode_all(work: Finetuning) -> tuple[EncodedExamples, dict[str, EncodedExamples]]:
    """The training set, and the development sets by name."""
    dev = {name: encode(work, examples) for name, examples in work.data.dev.items()}
    return encode(work, learnt(work)), dev


def check_memory(work: Finetuning, train: EncodedExamples, world: World) -> None:
    """Compare a rank's part of the longest batch with the memory there is. Call on every rank.

    Raises:
        UserError: it does not fit, on all ranks, with the arithmetic and the batch that does.
    """
    ranks = world.data_parallel_size
    batch = min(work.task.batch_size, len(train))
    dtype = torch.bfloat16 if precision(work.deepspeed) == "bf16" else torch.float32
    longest = np.sort(train.lengths)[::-1][: -(-batch // ranks)]
    lengths, places = np.unique(longest, return_inverse=True)
    sizes = [
        activation_bytes(
            *(work.config, dtype, int(length), 0.0),
            attention=work.options.attention,
            kernels=work.options.kernels,
        )
        for length in lengths
    ]
    kept = np.cumsum(np.array(sizes)[places])  # of so many of the longest
    states = sum(state_bytes(work.config.parameters(), work.deepspeed, ranks))
    free = min(free_bytes(world))
    if states + kept[-1] > free:
        fitting = ranks * int(np.searchsorted(kept, free - states, side="right"))
        raise UserError(
            f"a batch of {batch:,} examples of up to {longest[0]:,} tokens: {states / 1e9:.1f} GB "
            f"for the model and {kept[-1] / 1e9:.1f} GB for what its backward pass needs "
            f"(estimates), {free / 1e9:.1f} GB are free for each of {ranks} processes; "
            + (f"--batch-size {fitting} fits" if fitting else "give a shorter --max-length")
        )


def free_bytes(world: World) -> list[int]:
    """Memory that each rank may use; ranks of one host without GPUs share its memory."""
    on_gpu = world.device.type == "cuda"
    free = device_bytes(world.device)
    if not on_gpu:  # a container's limit, and what others have left of the machine
        free = min(free, host_bytes())
    everyone: list[Any] = [None] * world.world_size
    dist.all_gather_object(everyone, (socket.gethostname(), free))
    hosts = [host for host, _ in everyone]
    return [size if on_gpu else size // hosts.count(host) for host, size in everyone]


def host_bytes() -> int:
    """Memory of the machine that is free or can be freed; all of it where that is not told."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cut_notes(work: Finetuning, sets: Mapping[str, EncodedExamples]) -> list[str]:
    return [
        f"{name} set: {of.cut:,} of {len(of):,} examples are cut to {work.options.max_length:,} "
        f"tokens, the longest has {of.longest:,} (--max-length)"
        for name, of in sets.items()
        if of.cut
    ]


def encode(work: Finetuning, examples: Examples) -> EncodedExamples:
    return EncodedExamples(
        work.tokenizer,
        examples.first,
        examples.second,
        examples.labels,
        max_length=work.options.max_length,
    )


def evaluation_batch(length: int, world: World) -> int:
    """Examples over all ranks, one per rank at least."""
    fitting = EVALUATION_BATCH * EVALUATION_LENGTH**2 // max(length, EVALUATION_LENGTH) ** 2
    return max(world.data_parallel_size, fitting)


@torch.no_grad()
def predict(
    model: RapidBertForSequenceClassification, examples: EncodedExamples, world: World
) -> np.ndarray:
    """Class index int64 [examples], or value float32 [examples]. Call on every rank.

    Raises:
        UserError: the model computes something else than numbers.
    """
    model.eval()
    mine: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for batch in examples.evaluation_batches(
        evaluation_batch(examples.max_length, world),
        rank=world.data_parallel_rank,
        world_size=world.data_parallel_size,
    ):
        batch = batch.to(world.device)
        logits = model.logits(
            batch.input_ids,
            batch.sequence_offsets,
            batch.max_sequence_length,
            batch.token_type_ids,
        )
        logits = logits[: len(batch.rows)]
        best = logits.squeeze(-1) if model.outputs == 1 else logits.argmax(-1)
        finite = logits.isfinite().all(-1)  # of what is not, argmax makes a class like any other
        mine.append((batch.rows, best.cpu().numpy(), finite.cpu().numpy()))
    model.train()
    gathered: list[Any] = [None] * world.world_size
    dist.all_gather_object(gathered, mine)
    predictions = np.zeros(len(examples), np.float32 if model.outputs == 1 else np.int64)
    broken = 0
    for rows, values, finite in (batch for part in gathered for batch in part):
        predictions[rows] = values
        broken += int((~finite).sum())
    if broken:
        raise UserError(
            f"for {broken:,} of {len(examples):,} examples the model computes something else than "
            "numbers (NaN or infinity); nothing of it is written, a lower --learning-rate is the "
            "usual cure"
        )
    return predictions


def evaluate(
    model: RapidBertForSequenceClassification,
    work: Finetuning,
    sets: Mapping[str, EncodedExamples],
    world: World,
) -> dict[str, dict[str, float]]:
    """The task's metrics for each development set, by its name. Call on every rank."""
    metrics = {}
    for name, examples in sets.items():
        assert examples.labels is not None
        predictions = predict(model, examples, world)
        if work.scale is not None:
            predictions = work.scale.own_units(predictions)
        try:
            metrics[name] = compute(work.task.metrics, predictions, examples.labels)
        except ValueError as error:
            raise UserError(f"{work.name}, {name} set: {error}") from None
    return metrics


def predict_test(model: RapidBertForSequenceClassification, work: Finetuning, world: World) -> None:
    """Files for the GLUE server in `<task>-seed<k>/predictions`. Call on every rank."""
    for name, examples in work.data.test.items():
        predictions = predict(model, encode(work, examples), world)
        if world.rank == 0:
            path = write_predictions(work.predictions, work.task, name, predictions)
            print(f"test predictions: {path}")
