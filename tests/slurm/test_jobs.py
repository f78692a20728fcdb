"""The repository's own job scripts, submitted unmodified to a real SLURM, and broken on purpose."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from pretrain_scenarios import trained, write_config, write_data

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STEPS = 30
BATCH = 8


@pytest.fixture(scope="module")
def settings(cluster, tmp_path_factory) -> dict[str, str]:
    """The environment that makes the runs tiny."""
    directory = tmp_path_factory.mktemp("jobs")
    write_data(directory / "data")
    return {
        "MODEL": "rapidbert-tiny",
        "DATA": str(directory / "data"),
        "DEEPSPEED_CONFIG": str(write_config(directory, BATCH, 4)),
        "PRETRAIN_OPTIONS": f"--duration {STEPS * BATCH} --sequence-length 32 --log-every 1 "
        "--loader-workers 0 --eval-every 0 --eval-sequences 8 --save-every 1000 --step-timeout 8",
        "FINETUNE": "no",
        "TASK_END_SECONDS": "8",
        "MASTER_ADDR": "127.0.0.1",  # the nodes' names are SLURM's only
        # What tells these jobs' processes from others' on this machine.
        "RAPIDBERT_TEST": str(directory),
    }


@pytest.fixture(autouse=True)
def no_job_left(cluster) -> Iterator[None]:
    yield
    for job in cluster.jobs():
        cluster.command("scancel", job)
    deadline = time.monotonic() + 30
    while cluster.jobs() and time.monotonic() < deadline:
        time.sleep(0.3)


def ranks(output: Path) -> list[psutil.Process]:
    """The trainer's processes that write into `output`, by rank."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[:1] and "python" in words[0] and str(output) in words:
            try:
                found[int(process.environ()["SLURM_PROCID"])] = process
            except (psutil.Error, KeyError):
                continue
    return [found[rank] for rank in sorted(found)]


def steps_logged(output: Path) -> int:
    log = output / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def wait_for_steps(cluster, job: str, output: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while steps_logged(output) < steps:
        assert time.monotonic() < deadline, cluster.log(job)
        time.sleep(0.02)


def attempts(output: Path) -> list[str]:
    return [line.split(" ", 3)[3] for line in (output / "attempts.log").read_text().splitlines()]


def starts(output: Path) -> int:
    """Starts so far whose ranks are all there."""
    if not (output / "attempts.log").exists() or len(ranks(output)) < 2:
        return 0
    return sum(line.startswith("starts") for line in attempts(output))


@pytest.fixture(scope="module")
def straight(cluster, settings, tmp_path_factory) -> Path:
    """A run on two nodes that nothing happens to."""
    output = tmp_path_factory.mktemp("straight") / "run"
    job = cluster.submit("slurm/pretrain_base.sh", "--nodes=2", **settings, OUTPUT=str(output))
    ended = cluster.wait_for(job)
    assert ended["JobState"] == "COMPLETED", cluster.log(job)
    assert json.loads((output / "config.json").read_text())["world_size"] == 2
    assert attempts(output) == ["starts from nothing", "ends with status 0"]
    return output


def assert_same_run(run: Path, straight: Path) -> None:
    assert trained(run)[0] == trained(straight)[0]
    state, other = trained(run)[1], trained(straight)[1]
    assert all((state[name] == other[name]).all() for name in state)


def all_signalled(cluster, job: str, output: Path) -> None:
    """What comes before the time limit, and again."""
    cluster.command("scancel", "--signal=USR1", job)
    for process in ranks(output):
        process.send_signal(signal.SIGUSR1)


def killed(cluster, job: str, output: Path) -> None:
    ranks(output)[1].kill()


def hung(cluster, job: str, output: Path) -> None:
    """A rank stands still; where it may for long, while it saves, then at another moment."""
    rank = ranks(output)[1]
    for _ in range(5):
        rank.suspend()
        with suppress(TimeoutError):
            cluster.wait_for(job, "PENDING", "COMPLETING", "REQUEUED", seconds=20)
            return
        rank.resume()
        time.sleep(0.2)
    raise AssertionError(cluster.log(job))


def node_down(cluster, job: str, output: Path) -> None:
    first = cluster.job(job)["BatchHost"]
    nodes = cluster.command("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()
    other = next(name for name in nodes if name != first)
    cluster.command("scontrol", "update", f"nodename={other}", "state=down", "reason=test")
    cluster.wait_for(job, "PENDING", "COMPLETING", "REQUEUED", seconds=60)
    with suppress(AssertionError):  # it may have come back by itself: it registers again
        cluster.command("scontrol", "update", f"nodename={other}", "state=resume")


def test_a_run_survives_whatever_happens(cluster, settings, straight, tmp_path):
    """One fault after the other, each in the start that the one before has led to."""
    output = tmp_path / "run"
    many = settings | {"OUTPUT": str(output)}
    # The third start is to be stopped in a step, in one from 10 on, and not in a save.
    many["PRETRAIN_OPTIONS"] += " --save-every 4"
    job = cluster.submit("slurm/pretrain_base.sh", "--nodes=2", **many)
    for number, fault in enumerate((all_signalled, killed, hung, node_down)):
        deadline = time.monotonic() + 120
        # Progress of this start, not a line that the one before has left.
        while starts(output) != number + 1 or steps_logged(output) < 3 * number + 3:
            assert time.monotonic() < deadline, cluster.log(job)
            cluster.hurry(job)
            time.sleep(0.05)
        if number == 0:  # srun takes over what a task may use only if it is told
            assert "TresPerTask=cpu:1" in cluster.command("scontrol", "show", "step", "-o", job)
        fault(cluster, job, output)
    ended = cluster.wait_for(job)
    assert ended["JobState"] == "COMPLETED", cluster.log(job)
    assert int(ended["Restarts"]) == 4
    lines = attempts(output)
    assert lines[0] == "starts from nothing"
    assert lines[1].startswith("ends with status")
    assert lines[-1] == "ends with status 0"
    assert_same_run(output, straight)


def test_the_number_of_nodes_may_change(cluster, settings, straight, tmp_path):
    output = tmp_path / "run"
    options = settings | {"OUTPUT": str(output)}
    job = cluster.submit("slurm/pretrain_large.sh", "--nodes=4", **options)
    wait_for_steps(cluster, job, output, 5)
    (output / "stop").touch()
    ended = cluster.wait_for(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "3:0"), cluster.log(job)
    assert ended["Restarts"] == "0"
    done = steps_logged(output)
    job = cluster.submit("slurm/pretrain_large.sh", "--nodes=1", **options)
    assert cluster.wait_for(job)["JobState"] == "COMPLETED", cluster.log(job)
    assert "resuming with world_size 1, before 4" in cluster.log(job)
    records, expected = trained(output)[0], trained(straight)[0]
    assert done < len(records) == len(expected)
    for record, other in zip(records, expected, strict=True):
        assert record["tokens"] == other["tokens"]
        assert record.keys() == other.keys() and {"loss/train", "loss/eval"} & record.keys()
        for name in {"loss/train", "loss/eval"} & record.keys():
            assert record[name] == pytest.approx(other[name], rel=1e-5)


def test_a_run_without_progress_is_given_up_and_a_wrong_setting_at_once(
    cluster, settings, tmp_path
):
    # A start that dies before it has written anything.
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise OSError('the file system is away')\n")
    hopeless = settings | {"OUTPUT": str(tmp_path / "run"), "MAX_RESTARTS": "1"}
    hopeless["PYTHONPATH"] = str(tmp_path / "broken")
    wrong = settings | {"OUTPUT": str(tmp_path / "wrong")}
    wrong["PRETRAIN_OPTIONS"] += " --warmup-fraction 7"
    lost = settings | {"OUTPUT": str(tmp_path / "lost"), "MAX_RESTARTS": "1"}
    jobs = [
        cluster.submit("slurm/pretrain_base.sh", "--nodes=1", *options, **environment)
        for environment, options in ((hopeless, []), (wrong, []), (lost, ["--hold"]))
    ]
    # Two starts that their node took with it have left nothing but their first line.
    (tmp_path / "lost").mkdir()
    line = f"2026-01-01T00:00:00+00:00 job {jobs[2]} starts from nothing\n"
    (tmp_path / "lost" / "attempts.log").write_text(2 * line)
    cluster.command("scontrol", "release", jobs[2])

    ended = cluster.wait_for(jobs[1])
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), cluster.log(jobs[1])
    assert ended["Restarts"] == "0"
    assert "--warmup-fraction 7: must be a number from 0 to 1" in cluster.log(jobs[1])
    ended = cluster.wait_for(jobs[2])
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0"), cluster.log(jobs[2])
    assert "2 starts in a row from nothing have brought no new checkpoint" in cluster.log(jobs[2])
    assert not (tmp_path / "lost" / "config.json").exists()
    ended = cluster.wait_for(jobs[0])
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "1"), cluster.log(jobs[0])
    assert "2 starts in a row from nothing have brought no new checkpoint" in cluster.log(jobs[0])


def test_a_scaling_sweep_leaves_a_record_of_each_point_and_skips_what_is_done(
    cluster, settings, tmp_path
):
    sweep = settings | {
        "NODE_COUNTS": "1 2",
        "GPUS_PER_NODE": "1",
        "CPUS_PER_GPU": "2",
        "GLOBAL_BATCHES": "8 1",  # two ranks cannot share one sequence
        "SWEEP_STEPS": "10",
        "SWEEP_OUTPUT": str(tmp_path),
        "PRETRAIN_OPTIONS": "--sequence-length 32 --loader-workers 0",
    }

    def submitted(**more: str) -> list[tuple[str, str]]:
        """State and log of the job of each size."""
        planner = cluster.submit("slurm/scaling_sweep.sh", **(sweep | more))
        assert cluster.wait_for(planner)["JobState"] == "COMPLETED", cluster.log(planner)
        jobs = re.findall(r"nodes: job (\d+)", cluster.log(planner))
        logs = [ROOT / "slurm" / "logs" / f"scaling-{job}.log" for job in jobs]
        states = [cluster.wait_for(job)["JobState"] for job in jobs]
        return [(state, log.read_text()) for state, log in zip(states, logs, strict=True)]

    (one, log_of_one), (two, log_of_two) = submitted()
    points = {path.name: path for path in (tmp_path / "rapidbert-tiny").iterdir()}
    assert (one, two) == ("COMPLETED", "FAILED"), log_of_one + log_of_two
    bad = points.pop("gpus-2-batch-1")
    assert f"failed: {bad} (status 2)" in log_of_two
    assert set(points) == {"gpus-1-batch-8", "gpus-1-batch-1", "gpus-2-batch-8"}
    for name, point in points.items():
        record = json.loads((point / "config.json").read_text())
        assert name == f"gpus-{record['world_size']}-batch-{record['global_batch']}"
        records = [json.loads(line) for line in (point / "log.jsonl").read_text().splitlines()]
        speeds = [r["step"] for r in records if "throughput/tokens_per_sec" in r]
        assert speeds == [5, 10]
        assert not list(point.glob("**/*.safetensors"))
    written = {name: (point / "log.jsonl").stat().st_mtime_ns for name, point in points.items()}

    ((state, log),) = submitted(NODE_COUNTS="2", GLOBAL_BATCHES="8")
    # A log of an earlier cluster's job of the same number may lie there.
    assert state == "COMPLETED" and log.endswith(f"{points['gpus-2-batch-8']}: done before\n")
    for name, point in points.items():
        assert (point / "log.jsonl").stat().st_mtime_ns == written[name]


def test_pretraining_then_tasks_side_by_side_then_the_score_table(cluster, settings, tmp_path):
    output, glue = tmp_path / "run", tmp_path / "glue"
    command = [sys.executable, "recipes/stand_in_tasks.py", "--output", str(glue)]
    subprocess.run([*command, "--train", "60", "--dev", "12"], cwd=ROOT, check=True)
    (glue / "CoLA" / "dev.tsv").write_text("")  # one task that fails
    chain = {
        "OUTPUT": str(output),
        "FINETUNE": "yes",
        "CPUS_PER_GPU": "1",
        "GLUE_OPTIONS": f"--data {glue} --tasks cola mnli rte --seeds 1 -- --epochs 1 "
        "--max-train 32 --max-length 16",
    }
    job = cluster.submit("slurm/pretrain_base.sh", "--nodes=1", **(settings | chain))
    assert cluster.wait_for(job)["JobState"] == "COMPLETED", cluster.log(job)
    assert "finetuning: job " in cluster.log(job)
    deadline = time.monotonic() + 300
    while cluster.jobs():
        assert time.monotonic() < deadline, cluster.jobs()
        time.sleep(0.5)
    logs = "".join(path.read_text() for path in (ROOT / "slurm" / "logs").glob("glue*.log"))
    report = int(re.findall(r"report: job (\d+)", logs)[-1])
    assert cluster.job(str(report))["JobState"] == "FAILED"
    assert f"cola-seed17 failed: {output}/glue/logs/cola-seed17.log" in logs
    scores = (output / "glue" / "scores.md").read_text()
    assert "MNLI" in scores and "RTE" in scores and "CoLA" not in scores
    rte = json.loads((output / "glue" / "rte-seed17.json").read_text())
    assert rte["checkpoint"] == f"{output}/glue/mnli-seed17"
