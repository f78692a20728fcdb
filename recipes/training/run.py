"""A run of pretraining: its settings with every value filled in, and all that they name, checked.

Everything that can be checked before any process talks to another is checked here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from model.config import ModelConfig, ModelOptions, preset
from recipes.common.errors import Faults
from recipes.common.json_content import Json
from recipes.corpus.sequence_order import Documents
from recipes.corpus.token_shards import TokenShards, open_shards
from recipes.corpus.tokenizer import Tokenizer, open_tokenizer
from recipes.engine.batch_plan import BatchPlan, plan_batches
from recipes.engine.ds_config import precision, read_config
from recipes.engine.interface import AdamW
from recipes.training import published_run
from recipes.training.initial_weights import (
    InitialWeights,
    RecordedStart,
    contradiction,
    open_initial_weights,
    recorded_start,
)
from recipes.training.provenance import device_name
from recipes.training.schedule import (
    Budget,
    StepBudget,
    TimeBudget,
    adamw_weight_decay,
    duration_in_sequences,
)
from recipes.training.settings import (
    DEFAULT_DOCUMENTS,
    DEFAULT_DURATION,
    DEFAULT_MASK_PROBABILITY,
    Adjustable,
    Identity,
    Places,
    Settings,
    peak_learning_rate,
)


@dataclass(frozen=True)
class Run:
    """Everything a run is."""

    settings: Settings
    """Every value is filled in; `config.json` records them."""
    model: ModelConfig
    deepspeed: Json
    """The DeepSpeed JSON."""
    plan: BatchPlan
    train: TokenShards
    validation: TokenShards
    total_steps: int | None
    """None where the clock decides (--minutes)."""
    initial: InitialWeights | RecordedStart | None = None
    """What it starts, or has started, from (--init-from); None: random weights."""

    @property
    def places(self) -> Places:
        return self.settings.places

    @property
    def identity(self) -> Identity:
        return self.settings.identity

    @property
    def adjustable(self) -> Adjustable:
        return self.settings.adjustable

    @property
    def device_name(self) -> str:
        """Name of the GPU, or "cpu"."""
        return device_name()

    @property
    def documents(self) -> Documents:
        """What becomes of documents longer than a sequence."""
        assert self.identity.documents is not None
        return self.identity.documents

    @property
    def mask_probability(self) -> float:
        """Share of tokens to predict."""
        assert self.identity.mask_probability is not None
        return self.identity.mask_probability

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        assert self.identity.learning_rate is not None
        return self.identity.learning_rate

    @property
    def model_options(self) -> ModelOptions:
        """How the model computes."""
        chosen = self.adjustable.kernel_choice
        return ModelOptions(chosen.attention, chosen.kernels, self.adjustable.recompute)

    @property
    def optimizer(self) -> AdamW:
        """AdamW's settings, as `build_engine` takes them."""
        return adamw(self.identity, self.learning_rate)

    @property
    def schedule(self) -> dict[str, float]:
        """Shape of the learning rate over the run, as a budget takes it."""
        return {
            "peak": self.learning_rate,
            "warmup_fraction": self.identity.warmup_fraction,
            "final_fraction": self.identity.final_lr_fraction,
        }

    @property
    def budget_seconds(self) -> float | None:
        """Seconds of training, where the clock decides."""
        return None if self.identity.minutes is None else 60 * self.identity.minutes

    def budget(self, step: int, training_seconds: float) -> Budget:
        """Return what ends the run, and what its learning rate follows, after so many steps."""
        if self.total_steps is not None:
            return StepBudget(self.total_steps, step)
        assert self.budget_seconds is not None
        return TimeBudget(self.budget_seconds, training_seconds)


def adamw(identity: Identity, learning_rate: float) -> AdamW:
    """Return AdamW's settings for this peak learning rate, as `build_engine` takes them."""
    return {
        "learning_rate": learning_rate,
        "betas": (identity.beta1, identity.beta2),
        "eps": identity.eps,
        "weight_decay": adamw_weight_decay(identity.weight_decay, learning_rate),
    }


def resolve(settings: Settings, world_size: int, faults: Faults | None = None) -> Run:
    """Check the settings and fill in what follows from others.

    Args:
        world_size: number of processes.
        faults: found before, to be said with those found here.

    Raises:
        UserError: all faults at once.
    """
    faults = Faults([*(faults or ()), *settings.faults()])
    attempt = faults.attempt
    places, given = settings.places, settings.identity
    deepspeed = attempt(lambda: read_config(places.deepspeed_config))
    data = _open_data(places, faults)
    initial, model = _starting_model(settings, data, faults)
    if world_size % given.tensor_parallel:
        faults.append(
            f"--tensor-parallel {given.tensor_parallel} does not divide {world_size} processes"
        )
    plan = deepspeed and attempt(
        lambda: plan_batches(
            deepspeed["train_batch_size"],
            deepspeed["train_micro_batch_size_per_gpu"],
            max(1, world_size // given.tensor_parallel),
        )
    )
    if model and data:
        model = replace(model, vocab_size=data[0].vocab_size)
        faults += _model_faults(model, given)
    computes_in = precision(deepspeed) if deepspeed else None
    adjustable = settings.adjustable
    if model and computes_in:
        assumed = settings.rehearsal.gpus is not None
        kernels = adjustable.kernel_choice.resolve(model, computes_in, faults, assumed_gpus=assumed)
        adjustable = replace(adjustable, kernel_choice=kernels)
    if adjustable.paper:
        faults += published_run.faults(given, plan.global_batch if plan else None, computes_in)
    faults.stop()
    assert model and deepspeed and plan and data
    identity = _filled_in(given, model, adjustable.paper)
    steps = None
    if identity.duration is not None:
        steps = max(1, math.ceil(duration_in_sequences(identity.duration) / plan.global_batch))
    settings = replace(settings, identity=identity, adjustable=adjustable)
    return Run(settings, model, deepspeed, plan, *data[:2], steps, initial)


def _starting_model(
    settings: Settings, data: tuple[TokenShards, TokenShards, Tokenizer] | None, faults: Faults
) -> tuple[InitialWeights | RecordedStart | None, ModelConfig | None]:
    """Return what the run starts from, if anything, and its model; None, and faults, otherwise."""
    name, path = settings.identity.model, settings.places.init_from
    if path is None:
        return None, None if name is None else faults.attempt(lambda: preset(name))
    initial = recorded_start(settings.places.output, path) or open_initial_weights(
        path, data[2] if data else None, faults
    )
    if initial is None:
        return None, None
    if name and (against := faults.attempt(lambda: contradiction(name, initial.config))):
        faults.append(against)
    return initial, initial.config


def _filled_in(given: Identity, model: ModelConfig, paper: bool) -> Identity:
    """Return the identity with what was not given."""
    published = published_run.published(model.name) if paper else None
    duration = given.duration
    if given.minutes is None and duration is None:
        duration = published.duration if published else DEFAULT_DURATION
    return replace(
        given,
        model=model.name,
        duration=duration,
        documents=given.documents or (published.documents if published else DEFAULT_DOCUMENTS),
        mask_probability=given.mask_probability
        or (published.mask_probability if published else DEFAULT_MASK_PROBABILITY),
        learning_rate=given.learning_rate
        or (published.learning_rate if published else peak_learning_rate(model)),
    )


def _open_data(places: Places, faults: Faults) -> tuple[TokenShards, TokenShards, Tokenizer] | None:
    """Return the shards of training and validation, and the tokenizer; None, and faults, where one
    of them is missing.
    """
    data, attempt = places.data, faults.attempt
    train = attempt(lambda: open_shards(data, "train"))
    validation = train and attempt(lambda: open_shards(data, "validation"))
    tokenizer = train and attempt(lambda: open_tokenizer(data))
    if tokenizer:
        fingerprint = tokenizer.fingerprint
        attempt(lambda: open_shards(data, "train", tokenizer_fingerprint=fingerprint))
    return (train, validation, tokenizer) if train and validation and tokenizer else None


def _model_faults(model: ModelConfig, given: Identity) -> Iterator[str]:
    if refusal := model.why_not_length(given.sequence_length):
        yield f"--sequence-length {given.sequence_length}: {refusal}"
    ranks = given.tensor_parallel
    if model.num_heads % ranks:
        fitting = [n for n in range(1, model.num_heads + 1) if model.num_heads % n == 0]
        yield (
            f"--tensor-parallel {ranks} does not divide the {model.num_heads} "
            f"heads of {model.name}; these do: {', '.join(map(str, fitting))}"
        )
    if model.padded_vocab_size % ranks:
        yield (
            f"--tensor-parallel {ranks} does not divide the padded vocabulary "
            f"of {model.padded_vocab_size}"
        )
