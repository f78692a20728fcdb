"""The training step of `recipes/pretrain.py`, on batches made beforehand, to be timed.

Model, engine, optimizer, loss and update are pretraining's own, with its defaults. The batches
are packed from documents of real lengths and wait in (page-locked) host memory; the copy to the
device belongs to the step, making the batches does not (`benchmark.py input` measures that).
"""

from __future__ import annotations

import itertools
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from model.attention import check_backend
from model.config import ModelConfig, ModelOptions, preset, training_flops
from model.kernels import check_kernels
from model.masked_lm import RapidBertForMaskedLM
from recipes.benchmarks.plain_engine import PlainEngine
from recipes.benchmarks.records import NotHere, Record
from recipes.benchmarks.synthetic import write_synthetic_data
from recipes.benchmarks.timing import seconds_per_call, spread
from recipes.common.errors import Faults, UserError
from recipes.common.gpus import peak_flops
from recipes.common.json_content import Json
from recipes.common.places import DS_CONFIGS
from recipes.corpus.mlm_batches import MlmBatches, PackedBatch
from recipes.corpus.token_shards import TokenShards, open_shards
from recipes.engine.batch_plan import plan_batches
from recipes.engine.ds_config import precision, read_config
from recipes.engine.engine import build_engine, set_learning_rate, update_weights
from recipes.engine.kernel_choice import KernelChoice
from recipes.engine.micro_steps import MicroSteps
from recipes.engine.rendezvous import launched_world_size
from recipes.engine.world import World, initialize_world, shut_down
from recipes.training.provenance import device_name
from recipes.training.run import adamw
from recipes.training.settings import Identity, peak_learning_rate
from recipes.training.step import GlobalBatch, compute_gradients, fetch
from recipes.training.stragglers import RankTimes
from recipes.training.throughput import executed_flops_utilization, mfu

SEQUENCE_LENGTH = 128
TOY_VOCABULARY = 4096
TOY_CONFIG = "tiny_cpu.json"
STEPS_MADE = 4
"""Global batches that are made and used in turn; their numbers of tokens differ a little."""


@dataclass(frozen=True)
class Setup:
    """What decides how a step is computed."""

    model: ModelConfig
    deepspeed: Json
    attention: str
    kernels: str
    recompute: bool = False
    with_deepspeed: bool = True
    """False: the control, AdamW without an engine around it."""

    def describe(self) -> Json:
        return {
            "model": self.model.name,
            "parameters": self.model.parameters(),
            "attention": self.attention,
            "kernels": self.kernels,
            "recompute": self.recompute,
            "precision": precision(self.deepspeed),
            "deepspeed": self.deepspeed if self.with_deepspeed else None,
        }


def recommended(model: str, record: Record) -> tuple[Setup, int]:
    """Return the setup that `pretrain.py` takes for `model` here, and its JSON's micro-batch."""
    config = DS_CONFIGS / (f"{model.rpartition('-')[2]}.json" if record.gpu else TOY_CONFIG)
    sizes = {} if record.gpu else {"vocab_size": TOY_VOCABULARY}
    built = preset(model, **sizes)
    deepspeed = read_config(config)
    faults = Faults()
    chosen = KernelChoice().resolve(built, precision(deepspeed), faults)
    faults.stop()
    setup = Setup(built, deepspeed, chosen.attention, chosen.kernels)
    return setup, setup.deepspeed["train_micro_batch_size_per_gpu"]


@contextmanager
def training_data(
    data: Path | None, record: Record, *, mean_length: float = 400.0, documents: int = 20_000
) -> Iterator[TokenShards]:
    """Open the shards of `data`, or make some of documents with C4's lengths."""
    if data is not None:
        yield open_shards(data, "train")
        return
    vocabulary = {} if record.gpu else {"vocab_size": TOY_VOCABULARY}
    with TemporaryDirectory() as directory:
        write_synthetic_data(
            Path(directory), documents=documents, mean_length=mean_length, **vocabulary
        )
        yield open_shards(Path(directory), "train")


@contextmanager
def one_process() -> Iterator[World]:
    """Set up the world of one process that everything is measured in.

    Raises:
        UserError: a launcher has started several processes.
    """
    if launched_world_size() > 1:
        raise UserError(
            "benchmarks measure one device in one process; slurm/scaling_sweep.sh measures many"
        )
    world = initialize_world()
    try:
        yield world
    finally:
        shut_down()


def check_attention_timed(backend: str, device: torch.device) -> None:
    """Raise NotHere where `backend` does not run on `device` as in training."""
    _check_timed(check_backend, backend, device)


def check_kernels_timed(kernels: str, device: torch.device) -> None:
    """Raise NotHere where `kernels` do not run on `device` as in training."""
    _check_timed(check_kernels, kernels, device)


def _check_timed(check: Callable[[str, str], None], name: str, device: torch.device) -> None:
    try:
        check(name, device.type)
    except ValueError as reason:
        raise NotHere(str(reason)) from None
    if name == "triton" and device.type == "cpu":
        raise NotHere("interpreted Triton kernels are for checking, not for timing")


class Trainer:
    """Steps of `setup` on the same few global batches, over and over.

    A context: DeepSpeed hangs hooks and methods on the parameters, which would keep them and their
    fp32 gradients in memory for ever.

    Args:
        micro_batch, global_batch: sequences; equal micro-batches, so one divides the other.
        batches: micro-batches of whole steps, in host memory.
    """

    def __init__(
        self,
        setup: Setup,
        micro_batch: int,
        global_batch: int,
        batches: list[PackedBatch],
        world: World,
    ):
        self.setup, self.world = setup, world
        self.micro_batch, self.parameters = micro_batch, setup.model.parameters()
        plan = plan_batches(global_batch, micro_batch, world.data_parallel_size)
        self.accumulation = plan.accumulation
        self.identity = Identity(setup.model.name)
        self.learning_rate = peak_learning_rate(setup.model)
        torch.manual_seed(self.identity.seed)
        model = RapidBertForMaskedLM(
            setup.model, ModelOptions(setup.attention, setup.kernels, setup.recompute)
        )
        optimizer = adamw(self.identity, self.learning_rate)
        self.engine = (
            build_engine(model, setup.deepspeed, plan, world, **optimizer)
            if setup.with_deepspeed
            else PlainEngine(model, precision(setup.deepspeed), plan, world, **optimizer)
        )
        self._steps = itertools.cycle(
            batches[first : first + self.accumulation]
            for first in range(0, len(batches), self.accumulation)
        )
        self.done = 0
        """Optimizer steps."""
        self.loss: Tensor | None = None
        """Of the step that was done last, on the device."""
        self._times = RankTimes(world)
        self._coming: GlobalBatch | None = None
        self.micro_steps = MicroSteps(self.engine)

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.destroy()
        for parameter in self.engine.module.parameters():
            vars(parameter).clear()  # methods of DeepSpeed's, bound to it

    def fits(self) -> bool:
        """Do a step to see that it fits into memory: return True, or raise OutOfMemoryError."""
        self.step()
        return True

    def step(self) -> dict[str, int]:
        """Do one optimizer step, and return what its global batch held.

        Raises:
            FloatingPointError: the gradient is not finite: that step is not what is to be timed.
        """
        batch = self._coming or self._fetch()
        set_learning_rate(self.engine, self.learning_rate / 100)  # random tokens teach nothing
        loss = compute_gradients(
            self.micro_steps, batch, seed=self.identity.seed, step=self.done, times=self._times
        )
        self._coming = self._fetch()
        self.loss = loss
        update = update_weights(self.engine)
        if not update.applied:
            raise FloatingPointError(
                f"step {self.done}: loss {float(loss)}, gradient norm {float(update.norm)}"
            )
        self.done += 1
        return batch.counts

    def _fetch(self) -> GlobalBatch:
        return fetch(iter(next(self._steps)), self.accumulation, {}, self.world)


def made_batches(
    shards: TokenShards, micro_batch: int, global_batch: int, sequence_length: int, steps: int
) -> list[PackedBatch]:
    """Make the micro-batches of the first `steps` global batches, as pretraining would see them."""
    dataset = MlmBatches(shards, sequence_length=sequence_length, seed=17, micro_batch=micro_batch)
    made = (dataset[item] for item in range(steps * global_batch // micro_batch))
    return [batch.pin_memory() if torch.cuda.is_available() else batch for batch in made]


def full_batch(model: ModelConfig, micro_batch: int, sequence_length: int) -> PackedBatch:
    """Make the largest micro-batch there can be: all sequences full, 31% of the tokens masked."""
    draw = torch.Generator().manual_seed(0)
    tokens = micro_batch * sequence_length
    positions = torch.arange(tokens)[torch.rand(tokens, generator=draw) < 0.31]
    return PackedBatch(
        input_ids=torch.randint(5, model.vocab_size, (tokens,), generator=draw),
        sequence_offsets=torch.arange(0, tokens + 1, sequence_length, dtype=torch.int32),
        sequence_keys=torch.arange(micro_batch),
        masked_positions=positions,
        labels=torch.randint(5, model.vocab_size, positions.shape, generator=draw),
        max_sequence_length=sequence_length,
        sequences=micro_batch,
        real_tokens=tokens,
        masked_tokens=len(positions),
        token_pairs=micro_batch * sequence_length**2,
    )


def measure_steps(trainer: Trainer, *, warm_up: int, repeats: int) -> Json:
    """Measure time and memory of optimizer steps, each with the tokens that it held."""
    device = trainer.world.device
    first = seconds_per_call(trainer.step, device)  # what compiles does so here
    for _ in range(warm_up - 1):
        trainer.step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    held: list[dict[str, int]] = []
    seconds = [
        seconds_per_call(lambda: held.append(trainer.step()), device) for _ in range(repeats)
    ]
    found = step_rates(trainer.setup.model, seconds, held) | peak_memory(device)
    return found | {"first_step_seconds": first}


def step_rates(model: ModelConfig, seconds: list[float], held: list[dict[str, int]]) -> Json:
    """Compute the rates of steps that took `seconds` and `held` so many tokens.

    Utilisations are given where the device's peak is known."""
    rates = [counts["real_tokens"] / time for counts, time in zip(held, seconds, strict=True)]
    found: Json = {
        "step_seconds": spread(seconds),
        "tokens_per_second": spread(rates),
        **{
            f"{name}_per_step": sum(counts[name] for counts in held) / len(held)
            for name in ("sequences", "real_tokens", "padded_tokens", "masked_tokens")
        },
        "mfu": None,
        "executed_flops_utilization": None,
    }
    peak = peak_flops(device_name())
    if peak is not None:
        names = {"tokens": "real_tokens", "masked_tokens": "masked_tokens"}
        names["token_pairs"] = "token_pairs"
        flops = sum(
            training_flops(model, **{ours: counts[theirs] for ours, theirs in names.items()})
            for counts in held
        )
        found["mfu"] = mfu(model.parameters(), found["tokens_per_second"]["median"], 1, peak)
        found["executed_flops_utilization"] = executed_flops_utilization(
            flops, sum(seconds), 1, peak
        )
    return found


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak in GB (1e9 bytes): of the device since the last reset, or of this process."""
    if device.type == "cuda":
        return {
            "peak_memory_allocated_gb": torch.cuda.max_memory_allocated(device) / 1e9,
            "peak_memory_reserved_gb": torch.cuda.max_memory_reserved(device) / 1e9,
        }
    return {"host_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def on_data(setup: Setup, shards: TokenShards) -> Setup:
    """Return the setup with the data's vocabulary."""
    return replace(setup, model=replace(setup.model, vocab_size=shards.vocab_size))
