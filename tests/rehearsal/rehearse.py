"""Rehearses pretraining's steps on a GPU that is not there, and counts what they launch and move.

    PYTHONPATH=.:tests/model/kernels python tests/rehearsal/rehearse.py

writes the budget, which the test compares with, and the table in docs/results, and prints that.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

BUDGET = Path(__file__).with_name("budget.json")
REPOSITORY = Path(__file__).resolve().parents[2]
RECORD = REPOSITORY / "docs/results/step_counted.json"
RANKS = 8
ACCUMULATION = 2
MASKED = 0.3


@dataclass(frozen=True)
class Case:
    """A step that is rehearsed."""

    model: str
    config: str
    """The DeepSpeed JSON, which says how many sequences a micro-batch has at 128 tokens."""
    length: int = 128
    """Tokens of a sequence."""
    layers: int | None = None
    """None for all."""
    changes: tuple[tuple[str, Any], ...] = ()
    """Keys of the JSON that have another value."""

    @property
    def name(self) -> str:
        layers = "" if self.layers is None else f", {self.layers} layers"
        changes = "".join(f", {key} {value}" for key, value in self.changes)
        return f"{self.model}, {self.length} tokens{layers}{changes}"


CASES = (
    Case("rapidbert-base", "base"),
    Case("rapidbert-large", "large"),
    Case("rapidbert-xl", "xl"),
    Case("bert-base", "base"),
    Case("bert-large", "large"),
    Case("rapidbert-base", "base", 128, 2),
    Case("rapidbert-base", "base", 64, 2),
    Case("rapidbert-base", "base", 512, 2),
    # DeepSpeed sends the gradients.
    Case("rapidbert-base", "base", 128, 2, (("prescale_gradients", True),)),
    Case("rapidbert-base", "base", 128, 2, (("communication_data_type", "bf16"),)),
)


@dataclass
class Step:
    """What one optimizer step of two micro-batches comes to."""

    case: Case
    micro_batch: int
    parameters: int
    counts: Any

    def by_part(self) -> dict[str, dict[str, float]]:
        """Launches, bytes and FLOPs of the parts of a step."""
        found: dict[str, dict[str, float]] = defaultdict(
            lambda: {"launches": 0, "gigabytes": 0.0, "teraflops": 0.0}
        )
        for (name, place), total in self.counts.operations.items():
            part = found[part_of(name, place)]
            part["launches"] += total.launches
            part["gigabytes"] += total.bytes / 1e9
            part["teraflops"] += total.flops / 1e12
        return dict(found)

    def update_bytes(self) -> int:
        """What an update moves in this GPU's memory, without the messages themselves."""
        return sum(
            total.bytes
            for (name, place), total in self.counts.operations.items()
            if part_of(name, place) in UPDATE and name not in MESSAGES
        )

    def budget(self) -> dict[str, Any]:
        operations = {
            f"{name} | {place}": [total.launches, total.bytes]
            for (name, place), total in sorted(self.counts.operations.items())
        }
        return {
            "waits": [wait.rpartition(", line")[0] for wait in self.counts.waits],
            "collectives": [asdict(each) for each in self.counts.collectives],
            "operations": operations,
        }


MESSAGES = ("allreduce_", "_allgather_base_", "allgather_", "reduce_scatter")
# In the order in which they are asked: what of an operation's name or place makes it a part's.
PARTS = (
    ("communication", MESSAGES),
    ("matrix products", ("mm |", "addmm |", "bmm |")),
    ("activation", ("gated_gelu", "transformer/mlp.py", "/fusions/")),
    ("attention", ("attention", "Attention")),
    ("norms", ("residual_norm", "PostNormTransformerLayer", "ResidualNorm")),
    ("embedding", ("Embedding", "embedding", "RapidBert.forward", "hashed_dropout", "dropout.py")),
    ("head", ("cross_entropy", "MaskedLMHead", "RapidBertForMaskedLM", "layer.py _rows")),
    ("accumulation", (" _accumulate",)),
    ("optimizer", ("deepspeed/", "torch/optim/", "update_weights")),
    ("rest", ("",)),
)
UPDATE = ("optimizer", "communication")
"""Parts that come once a step; the others come with every micro-batch."""


def part_of(name: str, place: str) -> str:
    text = f"{name} | {place}"
    return next(
        part
        for part, marks in PARTS
        for mark in marks
        if (text.startswith(mark) if mark.endswith("|") else mark in text)
    )


@contextmanager
def rehearsal() -> Iterator[Any]:
    """Make this process rank 0 of `RANKS` that are not there, on a GPU that is not there."""
    warnings.simplefilter("ignore")
    os.environ.update(RANK="0", WORLD_SIZE=str(RANKS), LOCAL_RANK="0", DS_ACCELERATOR="cpu")
    os.environ.pop("TRITON_INTERPRET", None)
    import deepspeed
    from fake_gpu import fake_gpu
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from model.megatron import parallel_state

    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
    deepspeed.init_distributed("gloo", verbose=False)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    with fake_gpu() as counting:
        yield counting


def rehearse(counting: Any, case: Case) -> Step:
    """Count the first step of a run, but for the making of the optimizer's state."""
    from fake_gpu import DEVICE, Counts

    from model.attention import slopes_on
    from model.config import ModelOptions, preset
    from model.masked_lm import RapidBertForMaskedLM
    from recipes.common.errors import Faults
    from recipes.engine.batch_plan import BatchPlan
    from recipes.engine.ds_config import precision, read_config
    from recipes.engine.engine import build_engine, set_learning_rate, update_weights
    from recipes.engine.kernel_choice import KernelChoice
    from recipes.engine.micro_steps import MicroSteps
    from recipes.engine.world import World
    from recipes.training.step import GlobalBatch, compute_gradients
    from recipes.training.stragglers import RankTimes

    config = read_config(REPOSITORY / f"ds_configs/{case.config}.json") | dict(case.changes)
    sequences = config["train_micro_batch_size_per_gpu"] * 128 // case.length
    model = preset(case.model, **({} if case.layers is None else {"num_layers": case.layers}))
    choice = KernelChoice().resolve(model, precision(config), Faults(), assumed_gpus=True)
    with DEVICE:
        network = RapidBertForMaskedLM(model, ModelOptions(choice.attention, choice.kernels))
    network.train()
    world = World(0, 0, RANKS, DEVICE, 0, RANKS, 1)
    plan = BatchPlan(sequences * ACCUMULATION * RANKS, sequences, ACCUMULATION, RANKS)
    adamw = dict(learning_rate=1e-3, eps=1e-6, weight_decay=1e-2)
    engine = build_engine(network, config, plan, world, betas=(0.9, 0.98), **adamw)
    batches = [_batch(sequences, case.length) for _ in range(ACCUMULATION)]
    counts = {"masked_tokens": sum(batch.masked_tokens for batch in batches) * RANKS}
    if model.positions == "alibi":
        slopes_on(DEVICE, model.num_heads, 0, model.num_heads)  # kept by the first step of a run
    counting.counts = Counts()
    set_learning_rate(engine, 1e-3)
    batch = GlobalBatch(batches, counts, {}, 0.0)
    steps = MicroSteps(engine)
    compute_gradients(steps, batch, seed=17, step=0, times=RankTimes(world))
    update_weights(engine)
    counted, counting.counts = counting.counts, Counts()
    made = [key for key in counted.operations if key[1].endswith("._init_group")]
    for key in made:
        del counted.operations[key]
    return Step(case, sequences, model.parameters(), counted)


def _batch(sequences: int, length: int) -> Any:
    """A micro-batch of full sequences."""
    from fake_gpu import DEVICE

    from recipes.corpus.mlm_batches import PackedBatch

    tokens = sequences * length
    masked = int(tokens * MASKED) // 64 * 64

    def numbers(count: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
        return torch.empty(count, dtype=dtype, device=DEVICE)

    return PackedBatch(
        numbers(tokens), numbers(sequences + 1, torch.int32), numbers(sequences),
        numbers(masked), numbers(masked), length, sequences, tokens, masked, tokens * length,
    )  # fmt: skip


def table(steps: list[Step]) -> str:
    """Launches and gigabytes of every part, by micro-batch or by update."""
    parts = [part for part, _ in PARTS]
    names = [step.case.name.replace("rapidbert", "rb") for step in steps]
    lines = ["".join(f"{text:>24}" for text in ["", *names])]
    found = [step.by_part() for step in steps]
    for part in parts:
        cells = []
        for each in found:
            of = each.get(part, {"launches": 0, "gigabytes": 0.0})
            times = 1 if part in UPDATE else ACCUMULATION
            cells.append(f"{of['launches'] / times:.0f}  {of['gigabytes'] / times:.2f} GB")
        lines.append(f"{part:>24}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def differences(case: str, found: dict[str, Any], allowed: dict[str, Any]) -> list[str]:
    """Name every operation that a step does more or less often, or on more or fewer bytes.

    One that has only moved to another function of the code is none.
    """
    faults = []
    if len(found["waits"]) != len(allowed["waits"]):
        faults += [f"{case}: waits for the device: {wait}" for wait in found["waits"]]
    if found["collectives"] != allowed["collectives"]:
        faults.append(f"{case}: sends {found['collectives']}, not {allowed['collectives']}")
    now, before = found["operations"], allowed["operations"]
    changed = {
        name
        for name in {key.partition(" |")[0] for key in {*now, *before}}
        if _differ(_in_all(name, now), _in_all(name, before))
    }
    for key in sorted({*now, *before}):
        counted, expected = now.get(key, (0, 0)), before.get(key, (0, 0))
        if key.partition(" |")[0] in changed and _differ(counted, expected):
            faults.append(
                f"{case}: {key}: {counted[0]} launches and {counted[1] / 1e9:.3f} GB, "
                f"in the budget {expected[0]} and {expected[1] / 1e9:.3f} GB"
            )
    return faults


def _in_all(name: str, operations: dict[str, Any]) -> tuple[int, int]:
    """Launches and bytes of an operation, wherever it is."""
    of = [total for key, total in operations.items() if key.partition(" |")[0] == name]
    return sum(launches for launches, _ in of), sum(moved for _, moved in of)


def _differ(counted: tuple[int, int], expected: tuple[int, int]) -> bool:
    """Not by a launch, and by no more than a thousandth of the bytes."""
    return counted[0] != expected[0] or abs(counted[1] - expected[1]) > 1e-3 * expected[1]


def record(steps: list[Step]) -> dict[str, Any]:
    """What others read: parts of a step, what is sent when, and what an update moves."""
    rows = []
    for step in whole(steps):
        parts = {
            part: {
                name: round(value / (1 if part in UPDATE else ACCUMULATION), 4)
                for name, value in of.items()
            }
            for part, of in step.by_part().items()
        }
        collectives = step.budget()["collectives"]
        last = max(each["accumulated"] for each in collectives)
        for each in collectives:
            width = {"float32": 4, "bfloat16": 2}[each["dtype"]]
            each["bytes"] = each["elements"] * width
            each["before_the_last_gradient"] = each["accumulated"] < last
        rows.append(
            {
                "model": step.case.model,
                "sequence_length": step.case.length,
                "micro_batch": step.micro_batch,
                "parameters": step.parameters,
                "deepspeed_config": f"ds_configs/{step.case.config}.json",
                "per_micro_batch": {k: v for k, v in parts.items() if k not in UPDATE},
                "per_update": {k: v for k, v in parts.items() if k in UPDATE},
                "collectives_per_step": collectives,
                "bytes_that_can_overlap": sum(
                    each["bytes"] for each in collectives if each["before_the_last_gradient"]
                ),
            }
        )
    return {
        "what": "counted on fake CUDA tensors by tests/rehearsal/rehearse.py; nothing was timed",
        "ranks": RANKS,
        "versions": {name: metadata.version(name) for name in ("torch", "triton", "deepspeed")},
        "rows": rows,
        "updates": [
            {
                "deepspeed_config": f"ds_configs/{step.case.config}.json",
                "changes": dict(step.case.changes),
                "bytes_per_parameter": round(step.update_bytes() / step.parameters, 4),
            }
            for step in steps
            if step.case == Case("rapidbert-base", "base", 128, 2, step.case.changes)
        ],
    }


def whole(steps: list[Step]) -> list[Step]:
    """Those of whole models as their JSONs are."""
    return [step for step in steps if step.case.layers is None and not step.case.changes]


def main() -> None:
    with rehearsal() as counting:
        steps = [rehearse(counting, case) for case in CASES]
    BUDGET.write_text(
        json.dumps({step.case.name: step.budget() for step in steps}, indent=0) + "\n"
    )
    RECORD.write_text(json.dumps(record(steps), indent=1) + "\n")
    print(table(whole(steps)))


if __name__ == "__main__":
    main()
