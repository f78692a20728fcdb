"""The log of a finetuning: what it has trained on and measured."""

from __future__ import annotations

import math
import time
from types import TracebackType

from recipes.common.errors import UserError
from recipes.engine.world import World
from recipes.tasks.classification_batches import ClassificationBatch
from recipes.tasks.work import WARMUP_FRACTION, Finetuning, Metrics
from recipes.training.curves import SCORE
from recipes.training.run_log import RunLog
from recipes.training.schedule import learning_rate


class FinetuneLog:
    """Counts steps, examples and tokens, and writes the log; closes it at the end of a `with`.

    Args:
        total_steps: of all epochs.
        began: `time.perf_counter()` when the work began.
    """

    def __init__(self, work: Finetuning, world: World, total_steps: int, began: float):
        self.work = work
        self.total_steps = total_steps
        self.began = began
        self.step = self.examples = self.tokens = 0
        self._logged_at, self._logged_tokens = time.perf_counter(), 0
        self._log = RunLog(
            work.directory,
            total_steps=total_steps,
            rank=world.rank,
            config=work.identity,
            task=work.task.name,
        )

    def __enter__(self) -> FinetuneLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._log.close()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return learning_rate(
            self.step,
            self.total_steps,
            peak=self.work.task.learning_rate,
            warmup_fraction=WARMUP_FRACTION,
            final_fraction=0.0,
        )

    def trained(self, batch: ClassificationBatch, rate: float, loss: float, norm: float) -> None:
        """Count a step, and log every so many and the last one.

        Raises:
            UserError: loss or gradient are no numbers.
        """
        self.step += 1
        self.examples += batch.global_examples
        self.tokens += batch.global_tokens
        self._log.step(self.step)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(self._not_finite(loss, norm))
        if self.step % self.work.settings.log_every == 0 or self.step == self.total_steps:
            now = time.perf_counter()
            tokens_per_second = (self.tokens - self._logged_tokens) / (now - self._logged_at)
            self._logged_at, self._logged_tokens = now, self.tokens
            scalars = {
                "loss/train": loss,
                "optimizer/lr": rate,
                "optimizer/grad_norm": norm,
                "throughput/tokens_per_sec": tokens_per_second,
            }
            self._log.log(self.step, self.examples, self.tokens, now - self.began, scalars)

    def _not_finite(self, loss: float, norm: float) -> str:
        cure = "a lower --learning-rate is the usual cure"
        if self.step == 1:
            start = self.work.settings.checkpoint
            cure = f"no weight has changed yet, so look at those in {start}"
        return (
            f"{self.work.name}, step {self.step} of {self.total_steps}: loss {loss:.4g}, gradient "
            f"norm {norm:.4g}; stopped, {cure}"
        )

    def evaluated(self, metrics: Metrics) -> None:
        """Log the metrics of an epoch; after the last one the score, also beside the settings."""
        position = self.step, self.examples, self.tokens, self.seconds
        self._log.eval(*position, by_set(metrics))
        if self.step == self.total_steps:
            score = self.work.score(metrics)
            self._log.summarize(position, self._chosen(), {SCORE: score})

    def _chosen(self) -> dict[str, object]:
        """What one chooses, of all that decides the result.

        Numbered, since TensorBoard sorts the names and shows the first five.
        """
        identity = self.work.identity
        start = "random" if identity["from_scratch"] else self.work.start_task or "pretrained"
        chosen = {"task": identity["task"], "start": start}
        names = ("learning_rate", "epochs", "seed", "batch_size", "max_length", "train_examples")
        chosen |= {name: identity[name] for name in names}
        return {f"{number} {name}": value for number, (name, value) in enumerate(chosen.items(), 1)}


def by_set(metrics: Metrics) -> dict[str, float]:
    """Return the metrics by `set/metric`."""
    return {
        f"{name}/{metric}": value for name, of in metrics.items() for metric, value in of.items()
    }
