"""Whole runs: the same losses on any world size, exact resume, learning, refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from pretrain_scenarios import (
    command_line,
    free_port,
    pretraining,
    run_world,
    settings_of,
    trained,
    values,
    write_config,
    write_data,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.config import PRESETS
from model.parallel import initialize_parallel
from model.pretrained import read_description
from recipes.common.errors import Faults, UserError
from recipes.common.settings import help_of, parse
from recipes.reporting.runs import load_runs
from recipes.training.checkpoints.manifest import published
from recipes.training.export import read_tensors
from recipes.training.export_source import read_source
from recipes.training.run import resolve
from recipes.training.schedule import learning_rate_at
from recipes.training.settings import PEAK_LEARNING_RATE, Identity, Places, Settings
from recipes.training.throughput import ThroughputMeter

ROOT = Path(__file__).resolve().parents[2]
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


def run(world_size: int, arguments: list[str]) -> str:
    """Pretrain to the end; what rank 0 printed."""
    outcomes = run_world(world_size, pretraining, arguments)
    assert values(outcomes) == [0] * world_size
    return outcomes[0].output


# world size, micro-batch limit, ZeRO stage; the first one is what the others must equal
SAME_RUNS = [(1, 8, 0), (1, 2, 1), (2, 2, 1), (4, 2, 1), (2, 4, 0), (2, 2, 2)]


def test_world_size_accumulation_and_zero_stage_do_not_change_the_run(data, tmp_path):
    outputs = []
    for world_size, micro_batch, stage in SAME_RUNS:
        config = write_config(tmp_path, 8, micro_batch, stage)
        outputs.append(tmp_path / f"{world_size}x{micro_batch}-stage{stage}")
        options = dict(duration=40, model="dropout-tiny")
        run(world_size, command_line(data, outputs[-1], config, **options))
    for output in outputs[1:]:
        records, state = trained(outputs[0])
        other_records, other_state = trained(output)
        assert len(records) == 6  # five steps and an evaluation
        for record, other in zip(records, other_records, strict=True):
            record.pop("optimizer/grad_norm", None)  # stage 0 does not compute it
            other.pop("optimizer/grad_norm", None)
            assert other == pytest.approx(record, rel=1e-5)
        torch.testing.assert_close(other_state, state, rtol=1e-5, atol=2e-6)


def test_a_global_batch_that_the_ranks_do_not_divide_is_announced_and_recorded(data, tmp_path):
    output = tmp_path / "run"
    config = write_config(tmp_path, 17, 8)
    printed = run(4, command_line(data, output, config, duration=40))
    assert "16 = 4 sequences x 1 micro-batches x 4 ranks (rounded from 17" in printed
    record = json.loads((output / "config.json").read_text())
    assert (record["requested_global_batch"], record["global_batch"]) == (17, 16)
    assert record["sequences"] == 48  # 40 sequences are three steps of 16
    assert trained(output)[0][-1]["sequences"] == 48


@pytest.mark.parametrize(
    ("world_size", "workers", "micro_batch", "stage", "keys"),
    [
        pytest.param(1, 0, 4, 0, {}, id="fp32"),
        pytest.param(2, 2, 2, 1, {}, id="fp32-ZeRO1-workers"),
        pytest.param(2, 0, 2, 1, BF16, id="bf16-ZeRO1"),
        pytest.param(1, 2, 4, 1, BF16, id="bf16-workers"),
    ],
)
def test_a_resumed_run_equals_the_straight_one_to_the_bit(
    data, tmp_path, world_size, workers, micro_batch, stage, keys
):
    config = write_config(tmp_path, 8, micro_batch, stage, **keys)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    options = dict(model="dropout-tiny", duration=40, loader_workers=workers)
    run(world_size, command_line(data, straight, config, **options))

    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000000005")
    shutil.rmtree(resumed / "export")
    printed = run(world_size, command_line(data, resumed, config, **options))
    assert "past step 3 dropped" in printed and "step 4/5" in printed
    assert "step 3/5" not in printed

    records, state = trained(straight)
    again, state_again = trained(resumed)
    assert again == records
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state[name], state_again[name]) for name in state)

    # What a report knows of it: one later start, of the same run.
    assert load_runs([straight])[0].restarts == []
    [restart] = load_runs([resumed])[0].restarts
    assert restart.step == 3 and restart.seconds > 0
    starts = [
        json.loads((run / "config.json").read_text())["started"] for run in (straight, resumed)
    ]
    assert starts[0] == starts[1]


def test_the_engine_trains_alike_with_triton_kernels(data, tmp_path):
    """A step of two micro-batches, through hooks, ZeRO and the gradient in the logits' place."""
    config = write_config(tmp_path, 4, 2, 1)
    runs = []
    for kernels in ("torch", "triton"):
        attention = dict(torch="sdpa", triton="triton")[kernels]
        arguments = command_line(
            *(data, tmp_path / kernels, config),
            model="dropout-tiny",
            duration=4,
            sequence_length=8,
            eval_sequences=2,
            kernels=kernels,
            attention=attention,
        )
        run(1, arguments)
        runs.append(trained(tmp_path / kernels))
    (records, state), (fast_records, fast_state) = runs
    for record, fast in zip(records, fast_records, strict=True):
        assert fast == pytest.approx(record, rel=1e-5)
    torch.testing.assert_close(fast_state, state, rtol=1e-5, atol=2e-6)


def test_dropout_drops(data, tmp_path):
    """Equal runs prove nothing about dropout if it drops nothing."""
    config = write_config(tmp_path, 8, 4)
    losses = []
    for model in ("dropout-tiny", "probe-tiny"):
        output = tmp_path / model
        run(2, command_line(data, output, config, duration=16, model=model))
        records = trained(output)[0]
        losses.append([record["loss/train"] for record in records if "loss/train" in record])
    assert len(losses[0]) == 2
    assert all(a != b for a, b in zip(*losses, strict=True))


def pretraining_by_a_set_clock(arguments: list[str]) -> int | None:
    """Half a second passes between two looks at the clock; on ranks above 0 it is far ahead."""
    looks: list[float] = []

    def training_seconds(meter) -> float:
        looks.append(round(meter._clock() - meter._training_began, 1) if not looks else 0.5)
        return sum(looks) + 1e6 * int(os.environ["RANK"])

    ThroughputMeter.training_seconds = training_seconds
    return pretraining(arguments)


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_a_budget_of_time(data, tmp_path, tensor_parallel):
    """Six seconds in steps of one; rank 0's clock decides for all, or they would wait for ever.

    A step knows the time at which its batch was fetched, half a second before it begins.
    """
    output = tmp_path / "run"
    config = write_config(tmp_path, 8, 4)
    options = dict(
        minutes=0.1, keep=3, warmup_fraction=0.5, eval_every=100, tensor_parallel=tensor_parallel
    )
    arguments = [*command_line(data, output, config, **options), "--export-at", "0.5", "0.75"]
    outcomes = run_world(2 * tensor_parallel, pretraining_by_a_set_clock, arguments)
    assert values(outcomes) == [0] * 2 * tensor_parallel
    printed = outcomes[0].output
    assert "0.1 minutes of training" in printed and "  50% of the time  loss" in printed

    def steps() -> list[dict]:
        records = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        return [record for record in records if "loss/train" in record]

    rates = [
        learning_rate_at(k / 6, peak=1e-3, warmup_fraction=0.5, final_fraction=0.02)
        for k in (0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5)
    ]
    assert [record["optimizer/lr"] for record in steps()] == pytest.approx(rates)
    # The last step fetches nothing, so its clock is looked at once.
    ended = [record["time/training_seconds"] for record in steps()]
    assert ended == [1, 2, 3, 4, 5, 6, 7, 7.5]
    assert [record["sequences"] for record in steps()] == [8 * (k + 1) for k in range(8)]
    for share, seconds in ((50, 5), (75, 6)):  # the steps that begin when it is over
        exported = read_description(output / f"at-{share}" / "export")
        assert exported["progress"]["training_seconds"] == seconds
        assert read_tensors(output / f"at-{share}")[0].name == "probe-tiny"
    record = json.loads((output / "config.json").read_text())
    assert record["total_steps"] is None and "clock" in record["follows_the_clock"]

    # Pieces of every rank, put together again, are what the ranks gathered for the export.
    initialize_parallel()
    source = read_source(published(output / "checkpoints")[0])
    assert source.description["progress"]["step"] == 8 and source.config.name == "probe-tiny"
    weights = read_tensors(output)[1]
    assert weights.keys() == source.tensors.keys()
    assert all(torch.equal(weights[name], source.tensors[name]) for name in weights)

    if tensor_parallel > 1:
        return
    # Three seconds were over at step 3.
    before = steps()
    shutil.rmtree(output / "checkpoints" / "step-000000008")
    shutil.rmtree(output / "checkpoints" / "step-000000006")
    shutil.rmtree(output / "export")
    assert values(run_world(2, pretraining_by_a_set_clock, arguments)) == [0, 0]
    assert steps()[:3] == before[:3]
    resumed = [record["time/training_seconds"] for record in steps()[3:]]
    assert resumed == [4, 5, 6, 7, 7.5]
    assert (output / "export").exists()
    again = run_world(1, pretraining, arguments)
    assert "finished already" in again[0].output and len(steps()) == 8


def test_a_duration_and_a_time_exclude_each_other(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    settings = settings_of(data, tmp_path / "run", config, duration=80, minutes=1)
    with pytest.raises(UserError, match="--minutes: not allowed with --duration"):
        resolve(settings, 1)


@pytest.mark.slow
def test_killed_and_started_again_through_the_launcher(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    output = tmp_path / "killed"
    options = dict(model="rapidbert-tiny", duration=800, save_every=20)
    command = [
        *(
            sys.executable,
            Path(sys.executable).with_name("deepspeed"),
            "--quiet",
            "--num_gpus",
            "2",
        ),
        *("--master_port", str(free_port()), "recipes/pretrain.py"),
        *command_line(data, output, config, **options),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}

    def launch() -> subprocess.Popen:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    log = output / "log.jsonl"
    launcher = launch()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and launcher.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) > 30:
            break
        time.sleep(0.01)
    ranks = [
        process
        for process in psutil.Process(launcher.pid).children(recursive=True)
        if "recipes/pretrain.py" in process.cmdline() and "--local_rank=1" in process.cmdline()
    ]
    os.kill(ranks[-1].pid, signal.SIGKILL)
    launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert not (output / "export").exists()

    launcher = launch()
    printed = launcher.communicate(timeout=120)[0].decode()
    assert launcher.returncode == 0, printed
    assert "step   1/100" not in printed
    assert printed.lstrip().startswith("model: rapidbert-tiny"), "the launchers say nothing"
    assert "[INFO]" not in printed and "[WARNING]" not in printed

    straight = tmp_path / "straight"
    run(2, command_line(data, straight, config, **options))
    records, state = trained(straight)
    again, state_again = trained(output)
    assert again == records
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("1 loss/train")] == list(range(1, 101))


def test_the_loss_falls_far_below_the_unigram_entropy(data, tmp_path):
    output = tmp_path / "run"
    options = dict(model="rapidbert-tiny", learning_rate=2e-3, duration=2400, eval_sequences=64)
    config = write_config(tmp_path, 32, 32)
    run(1, command_line(data, output, config, **options, log_every=25, save_every=0))
    entropy = json.loads((output / "config.json").read_text())["data"]["unigram_entropy_nats"]
    last = trained(output)[0][-1]
    # Of the ln(60) = 4.1 nats, knowing a document's topic takes away all but ln(5) = 1.6.
    assert last["loss/eval"] < entropy - 1.5
    assert last["accuracy/eval"] > 0.1  # 1/60 by chance, 1/5 from the topic alone


def test_every_fault_is_named_at_once(data, tmp_path):
    config = tmp_path / "wrong.json"
    config.write_text('{"train_batch_size": 8, "train_micro_batch_size_per_gpu": 8, "bf61": {}}')
    finished = subprocess.run(
        [
            *(sys.executable, "recipes/pretrain.py", "--model", "rapidbert-bose"),
            *("--data", str(tmp_path / "absent"), "--output", str(tmp_path / "run")),
            *("--deepspeed_config", str(config), "--sequence_length", "7"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    faults = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(faults) == 4
    for named in ("did you mean rapidbert-base?", "'bf61' (did you mean 'bf16'?)", "absent", "7"):
        assert any(named in fault for fault in faults)
    assert not (tmp_path / "run").exists()


def test_faults_of_the_options(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    wrong = dict(
        mask_probability=1,
        warmup_fraction=1.5,
        learning_rate=0,
        log_every=0,
        keep=0,
        loader_workers=-1,
        tensor_parallel=3,
        export_at=1,
        duration="80k-steps",
        gpu_memory_gb="inf",
        sequence_length=513,
        model="bert-base",
    )
    arguments = command_line(data, tmp_path / "run", config, **wrong)
    with pytest.raises(UserError) as caught:
        faults = Faults()
        resolve(parse(Settings, arguments, faults=faults), 4, faults)
    message = "\n".join(caught.value.faults)
    assert "--sequence-length 513: bert-base has learned positions for 512 tokens" in message
    for name in wrong.keys() - {"model"}:
        assert name.replace("_", "-") in message


def test_a_run_does_not_share_its_directory_with_its_data(data, tmp_path):
    config = write_config(tmp_path, 8, 4)
    (tmp_path / "link").symlink_to(data)
    settings = settings_of(data, tmp_path / "link", config)
    with pytest.raises(UserError, match=f"--output {tmp_path / 'link'}: holds the data"):
        resolve(settings, 1)


def test_defaults_are_the_published_ones(data, tmp_path):
    places = Places(data, tmp_path / "run", write_config(tmp_path, 8, 4))
    settings = Settings(places, Identity("rapidbert-base"))
    run = resolve(settings, 1)
    identity = run.identity
    assert identity.learning_rate == 5e-4
    assert (identity.beta1, identity.beta2, identity.eps) == (0.9, 0.98, 1e-6)
    assert (identity.warmup_fraction, identity.final_lr_fraction) == (0.06, 0.02)
    assert (identity.mask_probability, identity.sequence_length) == (0.30, 128)
    assert identity.documents == "split" and identity.duration == "70k-steps"
    assert run.total_steps * run.plan.global_batch == 286_720_000
    assert run.model.vocab_size == run.train.vocab_size
    assert settings == Settings(places, Identity("rapidbert-base"))  # is not changed


def test_help_explains_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Settings, ["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--deepspeed-config" in text and "--warmup-fraction" in text
    assert "(default: 0.06)" in text and "70k-steps if neither" in text
    told = help_of(Identity)
    named = set(re.findall(r"(?<!-)\b[a-z]+-[a-z]+", told["model"]))
    assert named == PRESETS.keys() - {"probe-tiny", "dropout-tiny"}
    for size, rate in PEAK_LEARNING_RATE.items():
        assert f"{size} {rate:g}" in told["learning_rate"]


def test_both_spellings_of_an_option(data, tmp_path):
    arguments = command_line(data, tmp_path / "run", write_config(tmp_path, 8, 4))
    dashed = [word.replace("_", "-") if word.startswith("--") else word for word in arguments]
    assert dashed != arguments
    assert parse(Settings, dashed) == parse(Settings, arguments)
    assert parse(Settings, arguments) == settings_of(
        data, tmp_path / "run", write_config(tmp_path, 8, 4)
    )
