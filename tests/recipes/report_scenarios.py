"""Records of runs and results of finetuning, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recipes.tasks.glue_tasks import TASKS

MINUTES = 2


def write_run(directory: Path, *, steps: int = 40, evals: bool = True, **config: Any) -> Path:
    directory.mkdir(parents=True)
    settings = {
        "model": {"name": "rapidbert-base", "parameters": 137_300_000},
        "run": {"seed": 7, "data": "data/c4"},
        "world_size": 8,
        "device": "NVIDIA H200",
        "versions": {"torch": "2.13.0"},
        "git_revision": "abc123",
        "global_batch": 4096,
        "micro_batch": 512,
        "accumulation": 1,
        "total_steps": 50,
        "sequences": 50 * 4096,
        "data": {"unigram_entropy_nats": 6.46, "train_tokens": 10**9},
        **config,
    }
    (directory / "config.json").write_text(json.dumps(settings))
    records = []
    for step in range(1, steps + 1):
        where = {"step": step, "sequences": 4096 * step, "tokens": 450_000 * step, "seconds": step}
        speed = {
            "throughput/tokens_per_sec": 1e6 + step,
            "throughput/padding_share": 0.02,
            "throughput/device/mfu": 0.4,
            "time/data_wait_share": 0.01,
            "cost/dollars": 0.5 * step,
        }
        records.append({**where, "loss/train": 10 - 0.1 * step, **speed})
        if evals and step % 20 == 0:
            records.append({**where, "loss/eval": 9 - 0.1 * step, "accuracy/eval": 0.01 * step})
    (directory / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return directory


def restart(run: Path, step: int, *, at: float) -> Path:
    """Let its records behind `step` be of a start that began after so many seconds."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in lines:
        late = line["step"] > step
        line |= {"seconds": line["step"] + 10 * late, "time/earlier_seconds": float(at * late)}
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def write_timed_run(
    directory: Path, losses: list[float], scores: list[float], **changes: Any
) -> Path:
    """Evaluations evenly over the time; scores from random weights, at 25, at 50 and 100%."""
    name = directory.name
    options = {"minutes": MINUTES, "mask_probability": 0.3, "attention": "sdpa", "kernels": "torch"}
    config = {
        "model": {"name": name, "parameters": 2_000_000},
        "run": options,
        "device": "cpu",
        "world_size": 1,
        "versions": {},
        "git_revision": "unknown",
        "global_batch": 16,
        "data": {
            "tokenizer_fingerprint": "ab",
            "train_tokens": 1000,
            "unigram_entropy_nats": 6.0,
        },
        **changes,
    }
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    records = []
    for number, loss in enumerate(losses, 1):
        seconds = 60 * MINUTES * number / len(losses)
        where = {"step": number, "sequences": 16 * number, "tokens": 900 * number}
        where |= {"seconds": seconds + 30, "time/training_seconds": seconds}
        rate = {"throughput/tokens_per_sec": 1000.0 + number, "cost/dollars": 0.0}
        records += [where | rate | {"loss/train": loss - 1}, where | {"loss/eval": loss}]
    (directory / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    places = ["glue-from-scratch", "at-25/glue", "at-50/glue", "glue"]
    for place, score, share in zip(places, scores, (0, 0.25, 0.5, 1), strict=True):
        export = directory / Path(place).parent / "export"
        export.mkdir(parents=True, exist_ok=True)
        progress = {"model": {}, "progress": {"training_seconds": 60 * MINUTES * (share or 1)}}
        (export / "config.json").write_text(json.dumps(progress))
        (directory / place).mkdir(parents=True)
        for task, value in (("cola", score), ("sst2", score + 0.2)):
            metric = "matthews" if task == "cola" else "accuracy"
            result = {"task": task, "seed": 17, "score": value, "metrics": {metric: value}}
            result |= {"stand_in": True, "seconds": 1.0, "dollars": 0.0, "notes": []}
            result |= {"checkpoint": "x", "from_scratch": not share, "settings": {}}
            (directory / place / f"{task}-seed17.json").write_text(json.dumps(result))
    return directory


def write_comparison(directory: Path) -> Path:
    """What `cram.py` leaves: two models after equal time."""
    write_timed_run(directory / "rapidbert-tiny", [6.0, 5.0, 4.5, 4.0], [0.1, 0.3, 0.4, 0.5])
    write_timed_run(directory / "bert-tiny", [6.5, 6.0, 5.5, 5.0], [0.05, 0.1, 0.2, 0.3])
    return directory


def result(task: str, seed: int, score: float, **changes: Any) -> dict[str, Any]:
    start = "runs/glue/mnli-seed17" if TASKS[task].start == "mnli" else "runs/base"
    return {
        "task": task,
        "seed": seed,
        "score": score,
        "metrics": {TASKS[task].score: score},
        "stand_in": False,
        "checkpoint": start,
        "checkpoint_sha256": "00" if start == "runs/base" else "11",
        "from_scratch": False,
        "seconds": 90.0,
        "dollars": 0.25,
        "notes": [],
        **changes,
    }


def save(directory: Path, *results: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for one in results:
        (directory / f"{one['task']}-seed{one['seed']}.json").write_text(json.dumps(one))
    return directory


def write_results(directory: Path, **scores: float) -> Path:
    """One seed of each task, by the task's name."""
    return save(directory, *(result(task, 17, score) for task, score in scores.items()))
