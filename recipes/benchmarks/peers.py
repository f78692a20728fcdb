"""RapidBERT beside what else there is: same tokens, same optimizer work, taking turns.

One step of each is a whole update on the same sequences, with AdamW over all parameters. RapidBERT
and our BERT-Base run as `pretrain.py` runs them. The others run as people run them: batches padded
to the full length, fp32 weights with bf16 autocast on a GPU, torch's fused AdamW, in micro-batches
as large as fit. Rates count real tokens for all of them. A ratio is that of the times of two steps
of the same round: how many times as long the other one takes.

On the CPU, at toy size, Hugging Face's models are given about as many parameters as ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from model.labels import IGNORED_LABEL
from recipes.benchmarks.mode import DataSettings, Mode
from recipes.benchmarks.peer_models import peers
from recipes.benchmarks.presentation import panels, shown
from recipes.benchmarks.records import Record, Rows
from recipes.benchmarks.timing import (
    alternate,
    ratios,
    release_memory,
    seconds_per_call,
    spread,
)
from recipes.benchmarks.training_step import (
    SEQUENCE_LENGTH,
    STEPS_MADE,
    Trainer,
    made_batches,
    on_data,
    one_process,
    recommended,
    training_data,
)
from recipes.common.json_content import Json
from recipes.corpus.mlm_batches import PackedBatch
from recipes.reporting.figures import COLORS

ROUNDS = 11
FULL_MODELS = ("rapidbert-base", "bert-base")
TOY_MODELS = ("rapidbert-tiny", "bert-tiny")
TOY_SEQUENCES = 16


@dataclass(frozen=True)
class Settings(DataSettings):
    """Compares training steps with those of Hugging Face's BERT and ModernBERT and of the published
    RapidBERT, in turns, on the same sequences."""


class Peer:
    """The ordinary training step around a model that takes padded batches.

    Args:
        batches: whole steps.
        micro_batch: sequences per forward pass; fewer where memory does not hold them.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        batches: list[PackedBatch],
        micro_batch: int,
        device: torch.device,
    ):
        self.model = build().to(device).train()
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.device = device
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=5e-6,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.02,
            fused=True,
        )
        self._padded = [pad_batch(batch) for batch in batches]
        self._use(micro_batch)

    def _use(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch
        self._steps = itertools.cycle(
            [
                {name: part.to(self.device) for name, part in zip(padded, parts, strict=True)}
                for parts in zip(
                    *(torch.split(tensor, micro_batch) for tensor in padded.values()), strict=True
                )
            ]
            for padded in self._padded
        )

    def fits(self) -> bool:
        """Find out whether one step fits into memory, in micro-batches halved until it does.

        Raises:
            torch.cuda.OutOfMemoryError: not even one sequence does.
        """
        while True:
            try:
                self.step()
                return True
            except torch.cuda.OutOfMemoryError:
                if self.micro_batch == 1:
                    raise
            self.optimizer.zero_grad()
            release_memory()
            self._use(self.micro_batch // 2)

    def step(self) -> None:
        """Update the weights by the next global batch, in its micro-batches."""
        micro_batches = next(self._steps)
        for padded in micro_batches:
            with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
                loss = self.model(**padded)
            loss = loss if isinstance(loss, Tensor) else loss.loss
            (loss / len(micro_batches)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def pad_batch(batch: PackedBatch) -> dict[str, Tensor]:
    """Pad the sequences to `input_ids`, `attention_mask` and `labels`, int64 [S, L] each."""
    length = batch.max_sequence_length
    starts = batch.sequence_offsets[:-1].long().unsqueeze(1)
    lengths = batch.sequence_offsets.diff().long().unsqueeze(1)
    column = torch.arange(length).unsqueeze(0)
    real = column < lengths  # [S, L]
    row = torch.where(real, starts + column, 0)
    labels = torch.full_like(batch.input_ids, IGNORED_LABEL)
    counted = batch.labels != IGNORED_LABEL
    labels[batch.masked_positions[counted]] = batch.labels[counted]
    return {
        "input_ids": batch.input_ids[row].masked_fill(~real, 0),
        "attention_mask": real.long(),
        "labels": labels[row].masked_fill(~real, IGNORED_LABEL),
    }


def measure(settings: Settings, record: Record) -> None:
    models = FULL_MODELS if record.gpu else TOY_MODELS
    with training_data(settings.data, record) as shards, one_process() as world:
        setups = {model: on_data(recommended(model, record)[0], shards) for model in models}
        ours = models[0]
        # The toy's own micro-batch is so small that filling its buckets costs a tenth.
        sequences = recommended(ours, record)[1] if record.gpu else TOY_SEQUENCES
        batches = made_batches(shards, sequences, sequences, SEQUENCE_LENGTH, STEPS_MADE)
        record["contenders"] = {}
        record["settings"] = {
            "data": str(settings.data) if settings.data else "synthetic",
            "sequence_length": SEQUENCE_LENGTH,
            "sequences_per_step": sequences,
            "rounds": ROUNDS,
            "setups": {model: setup.describe() for model, setup in setups.items()},
        }
        contenders: dict[str, Trainer | Peer] = {}
        for model, setup in setups.items():
            trainer = record.attempt(model, Trainer, setup, sequences, sequences, batches, world)
            if trainer is not None:
                contenders[model] = trainer
        for name, build in peers(not record.gpu, setups[ours].model).items():
            if not record.out_of_time(name):
                peer = record.attempt(name, Peer, build, batches, sequences, world.device)
                if peer is not None:
                    contenders[name] = peer
        # Twice: only after the first step are the states of all optimizers in memory.
        for name, contender in [*contenders.items()] * 2:
            if name in contenders and not try_alone(record, name, contender, world.device):
                del contenders[name]
        if ours not in contenders:
            return  # a failure that is recorded
        tokens = sum(batch.real_tokens for batch in batches) / len(batches)
        rows = sum(len(batch.input_ids) for batch in batches) / len(batches)
        record["settings"] |= {
            "real_tokens_per_step": tokens,
            "packed_rows_per_step": rows,
            "padded_rows_per_step": sequences * SEQUENCE_LENGTH,
        }

        def go_on(times: dict[str, list[float]]) -> bool:
            for name, seconds in times.items():
                record["contenders"][name] |= {
                    "step_seconds": spread(seconds),
                    "tokens_per_second": spread([tokens / time for time in seconds]),
                    "ratio": ratios(seconds, times[ours]),
                }
            record.save()
            done = len(times[ours])
            return done == ROUNDS or not record.out_of_time(f"rounds after {done}")

        steps = {name: contender.step for name, contender in contenders.items()}
        alternate(steps, world.device, repeats=ROUNDS, go_on=go_on)


def try_alone(record: Record, name: str, contender: Trainer | Peer, device: torch.device) -> bool:
    """Do a step outside of the rounds, to see whether it fits; the record gets its seconds."""
    seconds = record.attempt(name, seconds_per_call, contender.fits, device)
    record["contenders"].pop(name, None)
    if seconds is not None:
        record["contenders"][name] = {
            "parameters": contender.parameters,
            "micro_batch": contender.micro_batch,
            "one_step_alone_seconds": seconds,
        }
    record.save()
    return seconds is not None


def figure(record: Json) -> Figure:
    """Draw real tokens per second of each, with the ratio to ours."""
    measured = {k: v for k, v in record["contenders"].items() if "ratio" in v}
    drawn, ((axes,),) = panels(
        1, 1, "Same tokens, same optimizer work", record, height=1.5 + 0.45 * len(measured)
    )
    for place, (name, found) in enumerate(measured.items()):
        rate = {key: value / 1e3 for key, value in found["tokens_per_second"].items()}
        color = COLORS[0] if place == 0 else COLORS[4] if name.startswith("bert") else "#999999"
        axes.barh(place, rate["median"], color=color, height=0.65)
        axes.hlines(place, rate["min"], rate["max"], color="black", linewidth=1)
        text = f"{rate['median']:,.1f}"
        if place:
            text += f"; a step takes {shown(found['ratio'], '.2f')} times ours"
        axes.annotate(
            text, (rate["max"], place), (5, 0), textcoords="offset points", va="center", fontsize=8
        )
    names = [
        f"{name}\n{found['parameters'] / 1e6:,.1f}M, micro-batch {found['micro_batch']}"
        for name, found in measured.items()
    ]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    most = max((v["tokens_per_second"]["max"] for v in measured.values()), default=1) / 1e3
    axes.set_xlim(0, 1.65 * most)
    axes.set_xlabel("thousand real tokens/s")
    return drawn


def table(record: Json) -> Rows:
    rows: Rows = [("contender", "parameters", "micro", "real tokens/s", "times as long as ours")]
    for name, found in record["contenders"].items():
        if "ratio" in found:
            rows.append(
                (
                    name,
                    f"{found['parameters'] / 1e6:,.1f} M",
                    str(found["micro_batch"]),
                    shown(found["tokens_per_second"], ",.0f"),
                    shown(found["ratio"], ".2f"),
                )
            )
    return rows


def headlines(record: Json) -> list[tuple[str, str]]:
    """Give the tokens per second of every contender, and its time as a multiple of ours."""
    return [
        (
            name,
            f"{found['tokens_per_second']['median']:,.0f} real tokens/s, "
            f"{found['ratio']['median']:.2f} x our time",
        )
        for name, found in record["contenders"].items()
        if "ratio" in found
    ]


MODE = Mode(Settings, measure, table, figure, headlines)
