"""Rates against hand formulas, and the control without DeepSpeed against the engine."""

import weakref
from pathlib import Path

import pytest
import torch
from pretrain_scenarios import run_world, values

from model.config import PRESETS
from recipes.benchmarks import training_step as training
from recipes.benchmarks.records import Record
from recipes.benchmarks.timing import release_memory
from recipes.benchmarks.training_step import Setup, Trainer, full_batch, step_rates
from recipes.engine.engine import full_precision_parameters

FP32 = {"zero_optimization": {"stage": 1}}
BF16 = {**FP32, "bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
HELD = {
    "sequences": 4,
    "real_tokens": 100,
    "padded_tokens": 128,
    "masked_tokens": 30,
    "token_pairs": 2600,
}


def test_rates_are_those_of_each_step(monkeypatch):
    """Three steps of which one was slow, on a device with a known peak."""
    monkeypatch.setattr(training.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(training.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    model = PRESETS["rapidbert-base"]
    held = [HELD, HELD, HELD | {"real_tokens": 200}]
    found = step_rates(model, [0.5, 1.0, 0.25], held)
    assert found["tokens_per_second"] == {"median": 200, "min": 100, "max": 800, "repeats": 3}
    assert found["step_seconds"] == {"median": 0.5, "min": 0.25, "max": 1.0, "repeats": 3}
    assert found["real_tokens_per_step"] == pytest.approx(400 / 3)
    assert found["padded_tokens_per_step"] == 128
    assert found["mfu"] == pytest.approx(6 * model.parameters() * 200 / 989e12)
    # Multiply-adds of one step: QKV and attention see every token, what follows the last
    # attention, and the head, the masked ones only; six FLOPs for each, forward and backward.
    h, f, v = 768, 3072, 30528

    def work(tokens: int) -> int:
        layers = 12 * (3 * h * h * tokens + 2 * h * 2600)
        return layers + (h * h + 3 * h * f) * (11 * tokens + 30) + (h * h + h * v) * 30

    executed = 6 * (2 * work(100) + work(200)) / 1.75 / 989e12
    assert found["executed_flops_utilization"] == pytest.approx(executed)


def test_no_utilisation_without_a_known_peak(monkeypatch):
    found = step_rates(PRESETS["rapidbert-tiny"], [1.0], [HELD])
    if not torch.cuda.is_available():
        assert found["mfu"] is None and found["executed_flops_utilization"] is None
    monkeypatch.setattr(training.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(training.torch.cuda, "get_device_name", lambda: "NVIDIA H9000")
    assert step_rates(PRESETS["rapidbert-tiny"], [1.0], [HELD])["mfu"] is None


def test_the_full_batch_has_no_padding():
    batch = full_batch(PRESETS["rapidbert-tiny"], 64, 128)
    assert batch.real_tokens == len(batch.input_ids) == 64 * 128
    assert batch.token_pairs == 64 * 128**2
    assert batch.sequence_offsets.diff().eq(128).all()
    assert 0.29 < batch.masked_tokens / batch.real_tokens < 0.33
    assert len(batch.labels) == batch.masked_tokens == len(batch.masked_positions.unique())


def _updates(config: dict, accumulation: int) -> dict[str, torch.Tensor]:
    """What two steps change in the fp32 weights, with DeepSpeed and without."""
    changes = {}
    with training.one_process() as world:
        record = Record("probe", Path("nowhere"))
        with training.training_data(None, record, documents=40) as shards:
            batches = training.made_batches(shards, 4, 4 * accumulation, 32, steps=2)
        for name, with_deepspeed in (("deepspeed", True), ("plain", False)):
            model = PRESETS["probe-tiny"]
            setup = Setup(model, config, "sdpa", "torch", with_deepspeed=with_deepspeed)
            trainer = Trainer(training.on_data(setup, shards), 4, 4 * accumulation, batches, world)

            def weights(trainer: Trainer = trainer) -> torch.Tensor:
                if trainer.setup.with_deepspeed:
                    parts = full_precision_parameters(trainer.engine)
                    return torch.cat([tensor.clone().flatten() for _, tensor in parts])
                masters = trainer.engine._masters or trainer.engine._weights
                return torch.cat([tensor.detach().clone().flatten() for tensor in masters])

            before = weights()
            for _ in range(2):
                trainer.step()
            changes[name] = weights() - before
    return changes


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("config", [FP32, BF16], ids=["fp32", "bf16"])
def test_the_control_updates_weights_as_the_engine_does(config, accumulation):
    (changes,) = values(run_world(1, _updates, config, accumulation))
    assert changes["plain"].abs().max() > 1e-6
    torch.testing.assert_close(changes["plain"], changes["deepspeed"])


def _survivors(config: dict) -> list[bool]:
    """Of a parameter, its optimizer state and the module, which are there after the context."""
    setup = Setup(PRESETS["probe-tiny"], config, "sdpa", "torch")
    with training.one_process() as world:
        batch = full_batch(setup.model, 2, 16)
        with Trainer(setup, 2, 2, [batch], world) as trainer:
            trainer.step()
            parameter = next(trainer.engine.module.parameters())
            state = next(iter(trainer.engine.optimizer.state.values()))["exp_avg"]
            kept = [weakref.ref(x) for x in (parameter, state, trainer.engine.module)]
        del trainer, parameter, state
        release_memory()
        return [reference() is not None for reference in kept]


@pytest.mark.parametrize("config", [FP32, BF16], ids=["fp32", "bf16"])
def test_nothing_of_a_trainer_outlives_it(config):
    """Or the next one would run out of memory."""
    assert values(run_world(1, _survivors, config)) == [[False] * 3]
