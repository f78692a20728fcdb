"""Masked-language-model pretraining of RapidBERT through DeepSpeed.

    deepspeed recipes/pretrain.py --model rapidbert-base --data data/c4 --output runs/base \
        --deepspeed_config ds_configs/base.json

Started again with the same --output, a run goes on from its newest whole checkpoint. Which
sequences make up a step, how they are masked and what dropout draws are functions of the seed and
the step, so an interrupted run and an uninterrupted one are the same run. With --minutes the
learning rate follows the clock, and is a function of the machine's speed.
"""

from __future__ import annotations

import faulthandler
import functools
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before the imports below, which take seconds
    from recipes.common.launcher import end_with_launcher

    end_with_launcher()

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from model.config import PRESETS, ModelConfig, ModelOptions, preset, training_flops
from model.masked_lm import IGNORED_LABEL, RapidBertForMaskedLM
from model.parallel import seed_dropout
from recipes.common.cli import (
    COUNT,
    COUNT_OR_NONE,
    GPU_MEMORY_GB,
    LEARNING_RATE,
    MINUTES,
    PART,
    PRICE,
    SEED,
    SEQUENCE_LENGTH,
    SHARE,
    WEIGHT_DECAY,
    ArgumentParser,
    checked,
    number,
    whole,
)
from recipes.common.entry import run
from recipes.common.errors import Faults, SaveError, UserError
from recipes.common.files import why_no_directory
from recipes.common.gpus import describe_peak
from recipes.corpus.mlm_batches import EvaluationBatches, MlmBatches, PackedBatch, mlm_loader
from recipes.corpus.token_shards import TokenShards, open_shards
from recipes.corpus.tokenizer import Tokenizer
from recipes.engine.batch_plan import BatchPlan, plan_batches
from recipes.engine.ds_config import precision, read_config
from recipes.engine.engine import (
    Update,
    build_engine,
    check_replicas,
    set_learning_rate,
    update_weights,
)
from recipes.engine.kernel_choice import add_kernel_options, choose_kernels
from recipes.engine.rendezvous import launched_world_size
from recipes.engine.world import World, initialize_world, shut_down
from recipes.planning import memory as device_memory
from recipes.training import published_run, run_record
from recipes.training.checkpoint import Checkpoints, Progress
from recipes.training.export import TOKENIZER_FILES, export
from recipes.training.interruption import (
    INTERRUPTED,
    STOPPED,
    StopRequests,
    Watchdog,
    outlive_the_console,
)
from recipes.training.run_log import RunLog
from recipes.training.schedule import (
    Budget,
    StepBudget,
    TimeBudget,
    adamw_weight_decay,
    duration_in_sequences,
)
from recipes.training.stragglers import RankTimes
from recipes.training.throughput import ThroughputMeter

# Base and Large as published; XL and the toy scaled by width. Tiny belongs to a batch of 16.
PEAK_LEARNING_RATE = {"tiny": 1e-3, "base": 5e-4, "large": 2e-4, "xl": 1e-4}
MAX_SKIPPED_IN_A_ROW = 10
MAX_SKIPPED_SHARE = 0.1
"""Of all steps, or a single one, in a run that ends well."""
CURE = "a lower --learning-rate or a longer --warmup-fraction is the usual cure, in a new --output."
ENDLESS = 2**40  # optimizer steps
SHUTDOWN_SECONDS = 30


@dataclass(frozen=True)
class Run:
    """Everything a run is, resolved and checked."""

    options: Any
    model: ModelConfig
    deepspeed: dict[str, Any]
    plan: BatchPlan
    train: TokenShards
    validation: TokenShards
    total_steps: int | None
    """None where the clock decides (--minutes)."""

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def main() -> int:
    options = parse_arguments()
    settings = resolve(options, options.gpus or launched_world_size())
    if options.dry_run:
        print(run_record.describe(settings))
        memory = needed_memory(settings)
        print(f"    memory: {memory}")
        capacity = 80.0 if options.gpu_memory_gb is None else options.gpu_memory_gb
        device_memory.check_fit(memory, settings.plan.micro_batch, capacity)
        return 0
    watchdog = Watchdog(options.step_timeout)
    watchdog.pause()
    needed = needed_memory(settings)
    world = initialize_world(options.tensor_parallel)
    try:
        size = settings.plan.micro_batch
        device_memory.check_devices(needed, size, world, options.gpu_memory_gb)
        outlive_the_console()
        status = train(settings, world, watchdog)
    except UserError:
        faulthandler.dump_traceback_later(SHUTDOWN_SECONDS, exit=True)  # others may not have failed
        shut_down()
        raise
    shut_down()
    watchdog.close()
    return status


def train(settings: Run, world: World, watchdog: Watchdog) -> int:
    """The run, from building to export; returns the exit status."""
    options, plan = settings.options, settings.plan
    requests = StopRequests(options.output, world.rank)
    expected = run_record.start(settings, world)
    checkpoints = Checkpoints(
        options.output / "checkpoints",
        world,
        keep=options.keep,
        keep_every=options.keep_every,
        facts=run_record.facts(settings, world),
        identity=run_record.identity(settings, world),
    )
    torch.manual_seed(options.seed)
    model = RapidBertForMaskedLM(
        settings.model, ModelOptions(options.attention, options.kernels, options.recompute)
    )
    trainer = build_engine(model, settings.deepspeed, plan, world, **optimizer(options))
    done = checkpoints.resume(trainer, expected=expected)
    budget = budget_left(settings, done)
    if world.rank == 0 and done.step:
        where = "finished already" if budget.spent else f"resumed at step {done.step}"
        print(f"{where}, {done.sequences:,} sequences so far")
    log = RunLog(
        options.output,
        total_steps=settings.total_steps,
        budget_seconds=options.minutes and 60 * options.minutes,
        resume_step=done.step,
        rank=world.rank,
        hparams=vars(options),
    )
    meter = throughput_meter(settings, world, done, max(done.seconds, log.earlier_seconds))
    times = RankTimes(world)
    batches = training_batches(settings, world, done.step)
    first, status = done.step, None
    evaluation: dict[str, float] = {}

    def wait_for_checkpoint() -> None:
        try:
            checkpoints.wait()
        except SaveError as error:
            # A run that ends before its last step has nothing to go on with but its checkpoint.
            if options.on_save_failure == "stop" or status is not None:
                raise
            if world.rank == 0:
                print("\n".join((*error.faults, "going on without it")), flush=True)

    def save(begin: bool, wait: bool) -> None:
        """Hear of the checkpoint before, `begin` one, `wait` until it is there."""
        watchdog.pause()
        with meter.pause():
            wait_for_checkpoint()
            if begin:
                log.flush()
                check_replicas(trainer, world)
                checkpoints.save(trainer, done)
            if wait:
                wait_for_checkpoint()

    try:
        while not budget.spent and status is None:
            if done.step > first:  # the first one compiles, and fills caches
                watchdog.step()
            micro_batches, waited = next_step(batches, plan.accumulation, world)
            asked = {
                "signalled": requests.signalled,
                "stop_file": requests.stop_file,
                "save_failed": checkpoints.failed,
            }
            # Rank 0's clock, in microseconds, counts for all.
            clock = {"clock": round(1e6 * meter.training_seconds()) if world.rank == 0 else 0}
            counts = global_counts(micro_batches, asked | clock, world)
            budget.begin_step(1e-6 * counts.pop("clock"))
            lr = budget.learning_rate(**schedule(options))
            asked = {name: counts.pop(name) > 0 for name in asked}
            loss, update = train_step(
                trainer, micro_batches, counts, lr, done.step, options, world, times
            )
            meter.step(**counts, data_wait_seconds=waited)
            times.step(waited)
            skipped = not update.applied
            done = Progress(
                done.step + 1,
                done.sequences + counts["sequences"],
                done.tokens + counts["real_tokens"],
                meter.elapsed_seconds(),
                done.skipped + skipped,
                done.skipped_in_a_row + 1 if skipped else 0,
                meter.training_seconds(),
            )
            if skipped:
                on_skipped(done, float(loss), float(update.norm), world)
            last = budget.spent
            shares = budget.reached(options.export_at)
            trained = {"time/training_seconds": done.training_seconds}
            if last or done.step % options.log_every == 0:
                scalars = {
                    "loss/train": float(loss),
                    "optimizer/lr": lr,
                    "optimizer/grad_norm": float(update.norm),
                    "optimizer/skipped_steps": done.skipped,
                    **times.window(),
                    **checkpoints.timings,
                    **trained,
                }
                log.log(*position(done), {**scalars, **meter.window()})
            if last or shares or due(done.step, options.eval_every):
                watchdog.pause()
                with meter.pause():
                    evaluation = evaluate(trainer.module, settings, world)
                    log.eval(*position(done), evaluation | trained)
                    for share in shares:
                        directory = options.output / f"at-{100 * share:g}"
                        export_weights(trainer, settings, done, directory)
            ending = not last and (asked["signalled"] or asked["stop_file"])
            if ending:
                status = STOPPED if asked["stop_file"] else INTERRUPTED
            begin = last or ending or due(done.step, options.save_every)
            if begin or asked["save_failed"]:
                save(begin, wait=last or ending)
    finally:
        log.close()
    watchdog.pause()
    if status is not None:
        if world.rank == 0:
            why = "a signal" if status == INTERRUPTED else options.output / "stop"
            print(
                f"ended by {why} after step {done.step}"
                + (f" of {settings.total_steps}" if settings.total_steps else "")
                + ", with a checkpoint; the same command goes on"
            )
        if status == STOPPED:  # one that came too late to be seen is for the next start
            requests.honoured()
        return status
    check_ending(done, evaluation.get("loss/eval", 0.0))
    exported = export_weights(trainer, settings, done, options.output)
    if world.rank == 0:
        print(f"finished {done.step} steps, {done.sequences:,} sequences; exported to {exported}")
    return 0


def export_weights(trainer: Any, settings: Run, done: Progress, directory: Path) -> Path:
    """Write `directory/export`, with how far the run was in its `config.json`."""
    facts = {**run_record.export_facts(settings), "progress": asdict(done)}
    return export(trainer, settings.model, settings.options.data, directory, facts)


def needed_memory(settings: Run) -> device_memory.MemoryEstimate:
    """What a GPU has to hold."""
    options = settings.options
    return device_memory.estimate(
        settings.model,
        settings.deepspeed,
        settings.plan,
        sequence_length=options.sequence_length,
        mask_probability=options.mask_probability,
        tensor_parallel=options.tensor_parallel,
        attention=options.attention,
        kernels=options.kernels,
        recompute=options.recompute,
    )


def on_skipped(done: Progress, loss: float, norm: float, world: World) -> None:
    """Say that a step had no effect.

    Raises:
        UserError: too many in a row.
    """
    message = (
        f"step {done.step}: loss {loss:.4g}, gradient norm {norm:.4g}: no update "
        f"({done.skipped} skipped so far)"
    )
    if world.rank == 0:
        print(message, flush=True)
    if done.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise UserError(
            f"{message}; the last {done.skipped_in_a_row} steps were all without effect. Starting "
            f"again goes back to the last checkpoint; {CURE}"
        )


def check_ending(done: Progress, loss: float) -> None:
    """Look at a run before its export.

    Args:
        loss: on held-out text, 0 where this start had nothing to train any more.

    Raises:
        UserError: the weights are not those that the settings ask for, or are good for nothing.
    """
    if not math.isfinite(loss):
        raise UserError(f"the loss on held-out text is {loss:.4g}. Nothing is exported; {CURE}")
    if done.skipped_in_a_row > 1 or done.skipped > max(1, MAX_SKIPPED_SHARE * done.step):
        raise UserError(
            f"{done.skipped} of {done.step} steps were without effect, "
            f"{done.skipped_in_a_row} of them at the very end: the loss or the gradient was not "
            f"finite. Nothing is exported; {CURE}"
        )


def train_step(
    trainer: Any,
    micro_batches: list[PackedBatch],
    counts: dict[str, int],
    lr: float,
    step: int,
    options: Any,
    world: World,
    times: RankTimes,
) -> tuple[Tensor, Update]:
    """One optimizer step on the global batch.

    Returns:
        Mean loss over the global batch's masked tokens, in nats, fp32 scalar on the device, and
        what became of the weights. Where loss or gradient are not finite on any rank, neither
        weights nor optimizer have changed on any.
    """
    set_learning_rate(trainer, lr)
    total = torch.zeros((), device=world.device)
    # DeepSpeed averages gradients over the ranks; with this factor the average is the gradient of
    # the sum over all masked tokens of the global batch divided by their number.
    scale = world.data_parallel_size / max(1, counts["masked_tokens"])
    update = None
    for micro_step, batch in enumerate(micro_batches):
        seed_dropout(options.seed, step, micro_step, world.data_parallel_rank)  # of attention only
        with times.forward():
            loss = trainer(
                batch.input_ids,
                batch.sequence_offsets,
                batch.max_sequence_length,
                batch.masked_positions,
                batch.labels,
                sequence_keys=batch.sequence_keys,
            )
        # 1, or not a number where the loss is not finite: the gradient must not be, either.
        poison = loss.detach() * 0 + 1
        trainer.backward(loss * (scale * poison), scale_wrt_gas=False)
        total += loss.detach()
        update = update_weights(trainer)
    assert update is not None
    dist.all_reduce(total, group=world.data_parallel_group)
    return total / max(1, counts["masked_tokens"]), update


@torch.no_grad()
def evaluate(model: RapidBertForMaskedLM, settings: Run, world: World) -> dict[str, float]:
    """Loss in nats and accuracy on held-out text at 15% masking."""
    options = settings.options
    dataset = EvaluationBatches(
        settings.validation,
        sequence_length=options.sequence_length,
        documents=options.documents,
        micro_batch=settings.plan.micro_batch,
        rank=world.data_parallel_rank,
        world_size=world.data_parallel_size,
        limit=options.eval_sequences,
    )
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)  # loss, hits, masked tokens
    for batch in mlm_loader(dataset, 0, len(dataset)):
        batch = batch.to(world.device, non_blocking=True)
        logits = model.logits(
            batch.input_ids,
            batch.sequence_offsets,
            batch.max_sequence_length,
            batch.masked_positions,
        ).float()
        sums[0] += F.cross_entropy(
            logits, batch.labels, ignore_index=IGNORED_LABEL, reduction="sum"
        )
        sums[1] += (logits.argmax(-1) == batch.labels).sum()
        sums[2] += batch.masked_tokens
    model.train()
    dist.all_reduce(sums, group=world.data_parallel_group)
    loss, hits, masked = sums.tolist()
    return {"loss/eval": loss / masked, "accuracy/eval": hits / masked}


def next_step(
    batches: Iterator[PackedBatch], accumulation: int, world: World
) -> tuple[list[PackedBatch], float]:
    """This rank's micro-batches of one step on the device, and the seconds it waited for them."""
    began = time.perf_counter()
    micro_batches = [next(batches) for _ in range(accumulation)]
    waited = time.perf_counter() - began
    return [batch.to(world.device, non_blocking=True) for batch in micro_batches], waited


def global_counts(
    micro_batches: list[PackedBatch], asked: dict[str, int], world: World
) -> dict[str, int]:
    """What the global batch holds, and the sums of what the ranks ask for, in one exchange.

    Between hosts, while the devices are still busy with the step before.
    """
    names = ("sequences", "real_tokens", "masked_tokens", "token_pairs")
    counts = [sum(getattr(batch, name) for batch in micro_batches) for name in names]
    counts.append(sum(len(batch.input_ids) for batch in micro_batches))
    numbers = torch.tensor([*counts, *asked.values()])
    if world.world_size > 1:
        dist.all_reduce(numbers, group=world.host_group)
    numbers[: len(counts)] //= world.tensor_parallel_size  # whose ranks hold the same batch
    return dict(zip((*names, "padded_tokens", *asked), numbers.tolist(), strict=True))


def training_batches(settings: Run, world: World, step: int) -> Iterator[PackedBatch]:
    """This rank's micro-batches from optimizer step `step` on."""
    options, plan = settings.options, settings.plan
    dataset = MlmBatches(
        settings.train,
        sequence_length=options.sequence_length,
        documents=options.documents,
        seed=options.seed,
        mask_probability=options.mask_probability,
        micro_batch=plan.micro_batch,
        rank=world.data_parallel_rank,
        world_size=world.data_parallel_size,
    )
    # The clock ends a run at any step.
    last = ENDLESS if settings.total_steps is None else settings.total_steps
    first, end = step * plan.accumulation, last * plan.accumulation
    return iter(mlm_loader(dataset, first, end, workers=options.loader_workers))


def throughput_meter(
    settings: Run, world: World, done: Progress, earlier_seconds: float
) -> ThroughputMeter:
    if world.rank == 0:
        print(describe_peak(settings.device_name))
    on_gpu = world.device.type == "cuda"
    return ThroughputMeter(
        parameters=settings.model.parameters(),
        training_flops=functools.partial(training_flops, settings.model),
        device=world.device,
        device_name=settings.device_name,
        devices=world.world_size,
        dollars_per_device_hour=settings.options.price_per_gpu_hour if on_gpu else 0.0,
        earlier_seconds=earlier_seconds,
        earlier_training_seconds=done.training_seconds,
    )


def budget_left(settings: Run, done: Progress) -> Budget:
    """What ends the run, and what its learning rate is a function of."""
    if settings.total_steps is None:
        return TimeBudget(60 * settings.options.minutes, done.training_seconds)
    return StepBudget(settings.total_steps, done.step)


def position(done: Progress) -> tuple[int, int, int, float]:
    return done.step, done.sequences, done.tokens, done.seconds


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def optimizer(options: Any) -> dict[str, Any]:
    return {
        "learning_rate": options.learning_rate,
        "betas": (options.beta1, options.beta2),
        "eps": options.eps,
        "weight_decay": adamw_weight_decay(options.weight_decay, options.learning_rate),
    }


def schedule(options: Any) -> dict[str, float]:
    return {
        "peak": options.learning_rate,
        "warmup_fraction": options.warmup_fraction,
        "final_fraction": options.final_lr_fraction,
    }


def resolve(options: Any, world_size: int) -> Run:
    """Check everything that can be checked before any process talks to another.

    Raises:
        UserError: all faults at once.
    """
    faults = Faults(_option_faults(options))
    collect = faults.attempt
    model = collect(lambda: preset(options.model))
    deepspeed = collect(lambda: read_config(options.deepspeed_config))
    if options.minutes is not None:
        options.duration = None
    sequences = options.duration and collect(lambda: duration_in_sequences(options.duration))
    train = collect(lambda: open_shards(options.data, "train"))
    validation = train and collect(lambda: open_shards(options.data, "validation"))
    tokenizer = train and collect(lambda: Tokenizer(options.data / "tokenizer.model"))
    if tokenizer:
        fingerprint = tokenizer.fingerprint
        collect(lambda: open_shards(options.data, "train", tokenizer_fingerprint=fingerprint))
    if train:
        faults += [
            f"{options.data / name}: missing, the export needs it; prepare the data again"
            for name in TOKENIZER_FILES
            if not (options.data / name).is_file()
        ]
    if world_size % options.tensor_parallel:
        faults.append(
            f"--tensor-parallel {options.tensor_parallel} does not divide {world_size} processes"
        )
    plan = deepspeed and collect(
        lambda: plan_batches(
            deepspeed["train_batch_size"],
            deepspeed["train_micro_batch_size_per_gpu"],
            max(1, world_size // options.tensor_parallel),
        )
    )
    if model and train:
        model = replace(model, vocab_size=train.vocab_size)
        faults += _model_faults(model, options)
    if model and deepspeed:
        number_format = precision(deepspeed)
        faults += choose_kernels(model, number_format, options, assumed_gpus=bool(options.gpus))
    if options.paper:
        faults += published_run.faults(
            options,
            plan.global_batch if plan else None,
            precision(deepspeed) if deepspeed else None,
        )
    faults.stop()
    assert model and deepspeed and train and validation and plan
    if options.learning_rate is None:
        options.learning_rate = PEAK_LEARNING_RATE[model.name.rpartition("-")[2]]
    total_steps = sequences and max(1, math.ceil(sequences / plan.global_batch))
    return Run(options, model, deepspeed, plan, train, validation, total_steps)


def _option_faults(options: Any) -> list[str]:
    faults = list(options.faults)
    if refusal := why_no_directory(options.output):
        faults.append(f"--output {options.output}: {refusal}")
    elif options.data and options.output.resolve() == options.data.resolve():
        faults.append(
            f"--output {options.output}: holds the data, and preparing them again would put "
            "another tokenizer under the run; name another directory"
        )
    if options.gpus is not None and not options.dry_run:
        faults.append("--gpus: only with --dry-run; a launcher starts")
    return faults


def _model_faults(model: ModelConfig, options: Any) -> list[str]:
    faults = []
    if refusal := model.why_not_length(options.sequence_length):
        faults.append(f"--sequence-length {options.sequence_length}: {refusal}")
    if model.num_heads % options.tensor_parallel:
        fitting = [n for n in range(1, model.num_heads + 1) if model.num_heads % n == 0]
        faults.append(
            f"--tensor-parallel {options.tensor_parallel} does not divide the {model.num_heads} "
            f"heads of {model.name}; these do: {', '.join(map(str, fitting))}"
        )
    if model.padded_vocab_size % options.tensor_parallel:
        faults.append(
            f"--tensor-parallel {options.tensor_parallel} does not divide the padded vocabulary "
            f"of {model.padded_vocab_size}"
        )
    return faults


def parse_arguments(arguments: list[str] | None = None) -> Any:
    parser = ArgumentParser(refuse=False, description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--model", required=True, help=f"preset: {', '.join(PRESETS)}")
    add("--data", type=Path, required=True, help="directory written by prepare_data.py")
    add("--output", type=Path, required=True, help="directory of the run; resumed if it holds one")
    add("--deepspeed-config", type=Path, required=True, help="DeepSpeed JSON (ds_configs/)")
    add(
        "--paper",
        action="store_true",
        help="the published run to the letter: one sequence of each document, BERT's masking rate "
        "for BERT; refuses settings that are not the paper's (recipes/training/published_run.py)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--duration",
        type=checked(duration_in_sequences),
        default="70k-steps",
        help="length of the run: a number of sequences, or 70k-steps or 178k-steps (of 4,096)",
    )
    length.add_argument(
        "--minutes",
        type=MINUTES,
        help="train for so long instead, evaluation and saving not counted; the learning rate "
        "follows the clock",
    )
    add(
        "--sequence-length",
        type=SEQUENCE_LENGTH,
        default=128,
        help="tokens, [CLS] and [SEP] included",
    )
    add(
        "--documents",
        choices=("split", "truncate"),
        default="split",
        help="split documents into consecutive sequences, or truncate each to one, as the paper "
        "does; split uses all of the text",
    )
    add("--mask-probability", type=PART, default=0.30, help="share of tokens to predict")
    add(
        "--learning-rate",
        type=LEARNING_RATE,
        help="peak; by model size unless given: "
        + ", ".join(f"{size} {peak:g}" for size, peak in PEAK_LEARNING_RATE.items()),
    )
    add("--warmup-fraction", type=SHARE, default=0.06, help="share of the steps")
    add("--final-lr-fraction", type=SHARE, default=0.02, help="of the peak, at the last step")
    add("--beta1", type=number(0, 1, below=True), default=0.9, help="AdamW")
    add("--beta2", type=number(0, 1, below=True), default=0.98, help="AdamW")
    add("--eps", type=number(1e-20, 1), default=1e-6, help="AdamW")
    add(
        "--weight-decay",
        type=WEIGHT_DECAY,
        default=1e-5,
        help="per step at peak learning rate, as published; AdamW is handed this / peak",
    )
    add("--seed", type=SEED, default=17, help="of weights, order, masking and dropout")
    add_kernel_options(parser)
    add(
        "--recompute",
        action="store_true",
        help="keep only the inputs of the layers for the backward pass: less memory, more time",
    )
    add(
        "--tensor-parallel",
        type=whole(1, 1024),
        default=1,
        help="ranks that share one copy of the model",
    )
    add(
        "--loader-workers",
        type=whole(0, 256),
        default=2,
        help="processes per rank that make batches",
    )
    add("--log-every", type=COUNT, default=10, help="steps")
    add("--eval-every", type=COUNT_OR_NONE, default=1000, help="steps; 0: at the end only")
    add("--eval-sequences", type=COUNT, default=4096, help="held-out sequences per evaluation")
    add("--save-every", type=COUNT_OR_NONE, default=1000, help="steps; 0: at the end only")
    add(
        "--export-at",
        type=PART,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="evaluate and export at these shares of the run as well, 0.25 to at-25/",
    )
    add("--keep", type=COUNT, default=2, help="checkpoints kept, the newest")
    add(
        "--keep-every",
        type=COUNT_OR_NONE,
        default=0,
        help="keep those of every so many steps as well",
    )
    add(
        "--on-save-failure",
        choices=("continue", "stop"),
        default="continue",
        help="what to do when a checkpoint cannot be written, a full disk for instance; the older "
        "ones stay",
    )
    add(
        "--step-timeout",
        type=number(0.001, 604_800),
        default=600.0,
        help="seconds after which a step hangs, and the process ends; start-up, evaluation and "
        "saving have at least half an hour",
    )
    add("--price-per-gpu-hour", type=PRICE, default=2.5, help="dollars (appendix E)")
    add("--dry-run", action="store_true", help="print the resolved run or its faults, and exit")
    add(
        "--gpus",
        type=whole(1, 100_000),
        help="with --dry-run: as if there were so many, 8 to a node",
    )
    add(
        "--gpu-memory-gb",
        type=GPU_MEMORY_GB,
        help="of each GPU, in 10^9 bytes, against which the estimate is checked before the start; "
        "what the GPU says unless given, and 80 with --dry-run",
    )
    add(
        "--local-rank",
        type=COUNT_OR_NONE,
        default=0,
        help="set by the deepspeed launcher; not used",
    )
    options = parser.parse_args(arguments)
    if options.paper:
        parser.set_defaults(**published_run.settings(options.model))
        options = parser.parse_args(arguments)
    return options


if __name__ == "__main__":
    run(main)
