"""What happens around the steps of a run: clocks, log, evaluation, checkpoints, exports."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from model.config import training_flops
from recipes.common.errors import SaveError
from recipes.common.gpus import describe_peak
from recipes.engine.engine import Update, check_replicas
from recipes.engine.interface import Engine
from recipes.engine.world import World
from recipes.training import run_record
from recipes.training.bill import DOLLARS, GPU_HOURS, Bill
from recipes.training.checkpoints.store import Checkpoints
from recipes.training.console import duration, shown_measure
from recipes.training.export import export
from recipes.training.interruption import StopRequests, Watchdog
from recipes.training.progress import Progress
from recipes.training.run import Run
from recipes.training.run_log import RunLog
from recipes.training.step import evaluate
from recipes.training.stragglers import RankTimes
from recipes.training.throughput import ThroughputMeter, mfu


class Bookkeeping:
    """Keeps the books of one start of a run. Make it, and call its methods, on every rank.

    Args:
        engine: DeepSpeed's engine around the model.
        resumed: how far the run was at this start.
    """

    def __init__(
        self,
        run: Run,
        world: World,
        engine: Engine,
        checkpoints: Checkpoints,
        watchdog: Watchdog,
        resumed: Progress,
    ):
        self.run, self.world, self.engine = run, world, engine
        self.checkpoints, self.watchdog = checkpoints, watchdog
        self.times = RankTimes(world)
        self.evaluated: dict[str, float] = {}
        """Newest evaluation of this start."""
        self._resumed = resumed
        self._log = RunLog(
            run.places.output,
            total_steps=run.total_steps,
            budget_seconds=run.budget_seconds,
            resume_step=resumed.step,
            rank=world.rank,
            config=run_record.recorded(run.places.output) if world.rank == 0 else None,
        )
        self._earlier = max(resumed.seconds, self._log.earlier_seconds)
        self._meter = _throughput_meter(run, world, resumed, self._earlier)
        self._bill = _bill(run, world, resumed, self._log)

    def __enter__(self) -> Bookkeeping:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def begin_step(self, done: Progress) -> None:
        """Watch over the step that begins; the first one of a start compiles, and fills caches."""
        if done.step > self._resumed.step:
            self.watchdog.step()

    def asked(self, requests: StopRequests) -> dict[str, int]:
        """Return what this rank wants all to know: the ranks' sums decide."""
        return {
            **requests.asked(),
            "save_failed": self.checkpoints.failed,
            # Rank 0's clock, in microseconds, counts for all.
            "clock": round(1e6 * self._meter.training_seconds()) if self.world.rank == 0 else 0,
        }

    def count(
        self, done: Progress, counts: dict[str, int], update: Update, waited: float
    ) -> Progress:
        """Count a step that held so much and waited so many seconds for its batches."""
        self._meter.step(**counts, data_wait_seconds=waited)
        self.times.step(waited)
        self._log.step(done.step + 1)
        age = self._meter.seconds_of_this_start()
        return done.after_step(
            counts,
            applied=update.applied,
            seconds=self._meter.elapsed_seconds(),
            training_seconds=self._meter.training_seconds(),
            gpu_seconds=self._bill.gpu_seconds(age),
            dollars=self._bill.dollars(age),
        )

    def log(
        self, done: Progress, counts: dict[str, int], loss: Tensor, lr: float, update: Update
    ) -> None:
        """Log the step that was done last; waits for the device.

        Args:
            counts: what the step's global batch held; without a masked token there is no loss.
        """
        losses = {"loss/train": float(loss)} if counts["masked_tokens"] else {}
        if not losses and self.world.rank == 0:
            none = f"none of its {counts['real_tokens']:,} tokens is masked"
            print(f"step {done.step}: {none}, so it has no loss", flush=True)
        scalars = {
            **losses,
            "optimizer/lr": lr,
            "optimizer/grad_norm": float(update.norm),
            "optimizer/skipped_steps": done.skipped,
            **self.times.window(),
            **self.checkpoints.timings,
            **self._clocks(done),
        }
        self._log.log(*done.position, {**scalars, **self._meter.window()})

    def evaluate(self, done: Progress, shares: Sequence[float]) -> None:
        """Evaluate on held-out text; export as well where shares of the run are completed."""
        self.watchdog.pause()
        with self._meter.pause():
            self.evaluated = evaluate(self.engine.module, self.run, self.world)
            if self.evaluated:
                self._log.eval(*done.position, self.evaluated | self._clocks(done))
            elif self.world.rank == 0:
                print("evaluation: none of the held-out tokens is masked: nothing is measured")
            for share in shares:
                self.export(done, self.run.places.output / f"at-{100 * share:g}")

    def save(self, done: Progress, *, begin: bool, wait: bool, must: bool) -> None:
        """Hear of the checkpoint before, `begin` one, `wait` until it is there.

        Raises:
            SaveError: one could not be written, and the run ends by it: because it was asked to,
                or because it `must` have the checkpoint to go on from.
        """
        self.watchdog.pause()
        with self._meter.pause():
            self._wait(must)
            if begin:
                self._log.flush()
                check_replicas(self.engine, self.world)
                self.checkpoints.save(self.engine, done)
            if wait:
                self._wait(must)

    def export(self, done: Progress, directory: Path) -> Path:
        """Write `directory/export`, with how far the run was in its `config.json`."""
        facts = {**run_record.export_facts(self.run), "progress": asdict(done)}
        return export(self.engine, self.run.model, self.run.places.data, directory, facts)

    def _clocks(self, done: Progress) -> dict[str, float]:
        # Where the second changes, a report shows a restart.
        return {
            "time/training_seconds": done.training_seconds,
            "time/earlier_seconds": self._earlier,
            GPU_HOURS: done.gpu_seconds / 3600,
            DOLLARS: done.dollars,
        }

    def summary(self, done: Progress) -> str:
        """Return what the run came to, starts before this one included, in two lines."""
        resumed = self._resumed
        measured = {name.removesuffix("/eval"): value for name, value in self.evaluated.items()}
        parts = [f"{name} {shown_measure(value)} held out" for name, value in measured.items()]
        if done.training_seconds > 0:
            speed = done.tokens / done.training_seconds
            parts.append(f"{speed:,.0f} tokens/s")
            if (share := self._utilisation(done)) is not None:
                parts.append(f"MFU {share:.1%}" + (" since the restart" if resumed.step else ""))
        parts.append(f"{duration(done.training_seconds)} of training in {duration(done.seconds)}")
        if done.dollars > 0:
            parts.append(f"${done.dollars:,.2f}")
        counted = f"{done.step} steps, {done.sequences:,} sequences, {done.tokens:,} tokens"
        return f"finished {counted}\n    {', '.join(parts)}"

    def _utilisation(self, done: Progress) -> float | None:
        """MFU of this start alone: earlier ones may have had another number of devices."""
        seconds = done.training_seconds - self._resumed.training_seconds
        if self._meter.peak is None or seconds <= 0:
            return None
        speed = (done.tokens - self._resumed.tokens) / seconds
        return mfu(self._meter.parameters, speed, self._meter.devices, self._meter.peak)

    def _wait(self, must: bool) -> None:
        try:
            self.checkpoints.wait()
        except SaveError as error:
            if must or self.run.adjustable.on_save_failure == "stop":
                raise
            if self.world.rank == 0:
                print("\n".join((*error.faults, "going on without it")), flush=True)


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens at this one; 0: at none."""
    return every > 0 and step % every == 0


def _throughput_meter(
    run: Run, world: World, resumed: Progress, earlier_seconds: float
) -> ThroughputMeter:
    if world.rank == 0 and (said := describe_peak(run.device_name)):
        print(said)
    return ThroughputMeter(
        parameters=run.model.parameters(),
        training_flops=functools.partial(training_flops, run.model),
        device=world.device,
        device_name=run.device_name,
        devices=world.world_size,
        earlier_seconds=earlier_seconds,
        earlier_training_seconds=resumed.training_seconds,
    )


def _bill(run: Run, world: World, resumed: Progress, log: RunLog) -> Bill:
    # Steps that have to run again were paid for: the log knows them, the checkpoint does not.
    logged = log.earlier_costs
    return Bill(
        gpus=world.world_size if world.device.type == "cuda" else 0,
        dollars_per_gpu_hour=run.adjustable.price_per_gpu_hour,
        earlier_gpu_seconds=max(resumed.gpu_seconds, 3600 * logged.get(GPU_HOURS, 0.0)),
        earlier_dollars=max(resumed.dollars, logged.get(DOLLARS, 0.0)),
    )
