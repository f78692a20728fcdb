"""How a global batch is cut into micro-batches for the ranks that there are."""

from __future__ import annotations

from dataclasses import dataclass

from recipes.common.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """How one global batch is cut into micro-batches."""

    requested: int
    """Sequences per global batch asked for by `train_batch_size`."""
    micro_batch: int
    """Sequences per micro-batch on each data-parallel rank."""
    accumulation: int
    """Micro-batches per rank and optimizer step."""
    data_parallel: int
    """Data-parallel ranks."""

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.data_parallel

    def __str__(self) -> str:
        product = (
            f"{self.global_batch} = {self.micro_batch} sequences x {self.accumulation} "
            f"micro-batches x {self.data_parallel} ranks"
        )
        if self.global_batch == self.requested:
            return f"global batch {product}"
        return f"global batch {product} (rounded from {self.requested} to what the ranks divide)"


def plan_batches(requested: int, micro_batch_limit: int, data_parallel: int) -> BatchPlan:
    """Cut a global batch for `data_parallel` ranks with as few micro-batches as memory allows.

    Where equal micro-batches of at most `micro_batch_limit` sequences do not give exactly
    `requested`, the global batch is rounded.

    Raises:
        UserError: the global batch would be more than a tenth away (more ranks than sequences).
    """
    plan = _nearest_plan(requested, micro_batch_limit, data_parallel)
    if not _is_near(plan):
        fewer = [
            ranks
            for ranks in range(1, data_parallel)
            if _is_near(_nearest_plan(requested, micro_batch_limit, ranks))
        ]
        raise UserError(
            f"train_batch_size {requested} / {data_parallel} ranks = "
            f"{requested / data_parallel:.3g} sequences per rank; the nearest possible global "
            f"batch is {plan.global_batch}. Set train_batch_size to {plan.global_batch}"
            + (f" or use {fewer[-1]} ranks." if fewer else ".")
        )
    return plan


def _nearest_plan(requested: int, micro_batch_limit: int, data_parallel: int) -> BatchPlan:
    # The limit may cut the request a little above a whole number of micro-batches: leaving that
    # out can be nearer than one more micro-batch.
    most = -(-requested // (micro_batch_limit * data_parallel))
    plans = []
    for accumulation in {max(1, most - 1), most}:
        per_rank = round(requested / (data_parallel * accumulation))
        micro_batch = min(micro_batch_limit, max(1, per_rank))
        plans.append(BatchPlan(requested, micro_batch, accumulation, data_parallel))
    return min(plans, key=lambda plan: (abs(plan.global_batch - requested), plan.accumulation))


def _is_near(plan: BatchPlan) -> bool:
    return 10 * abs(plan.global_batch - plan.requested) <= plan.requested
