"""Measure the host's part of a step: 12 layers so small that nothing else is left, on the CPU.

    python tests/recipes/engine/measure_host_time.py [--profile]

Variants take turns: how a step is, and how it was with one thing undone. Seconds are those of the
processor, which others that use the machine do not lengthen much.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch

from model.config import preset
from recipes.benchmarks.timing import ratios
from recipes.benchmarks.training_step import Setup, Trainer, full_batch, one_process
from recipes.common.places import DS_CONFIGS
from recipes.engine.ds_config import read_config
from recipes.training import step as steps

ROUNDS, STEPS = 25, 4


def undone(trainer: Trainer) -> dict[str, Callable[[], Any]]:
    """Steps with one thing undone."""
    optimizer, seed_dropout = trainer.engine.optimizer, steps.seed_dropout
    in_pieces = optimizer.get_grads_for_norm

    def norm_by_parameter() -> None:
        del optimizer.get_grads_for_norm  # DeepSpeed's own
        trainer.step()
        optimizer.get_grads_for_norm = in_pieces

    def every_device_seeded() -> None:
        steps.seed_dropout = lambda *numbers: torch.manual_seed(sum(numbers))
        trainer.step()
        steps.seed_dropout = seed_dropout

    return {"norm by parameter": norm_by_parameter, "every device seeded": every_device_seeded}


def main() -> None:
    torch.set_num_threads(1)
    sizes = dict(num_layers=12, hidden_size=64, num_heads=1, ffn_size=64, vocab_size=512)
    model = replace(preset("rapidbert-base"), **sizes)
    setup = Setup(model, read_config(DS_CONFIGS / "base.json"), "sdpa", "torch")
    with one_process() as world, Trainer(setup, 1, 1, [full_batch(model, 1, 16)], world) as trainer:
        contenders = {"as it is": trainer.step} | undone(trainer)
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(ROUNDS + 1):
            for name, work in contenders.items():
                began = time.process_time()
                for _ in range(STEPS):
                    work()
                if number:  # the first round fills caches
                    times[name].append((time.process_time() - began) / STEPS)
        for name, seconds in times.items():
            ratio = ratios(seconds, times["as it is"])
            milliseconds = 1e3 * statistics.median(seconds)
            print(
                f"{name:22s}{milliseconds:7.2f} ms, {ratio['median']:.3f} "
                f"({ratio['min']:.3f} to {ratio['max']:.3f}) of the step as it is"
            )
        if "--profile" in sys.argv:
            with cProfile.Profile() as profile:
                for _ in range(20):
                    trainer.step()
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
