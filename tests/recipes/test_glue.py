"""The schedule, with a script of a few lines in place of the finetuning."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes import glue
from recipes.common.errors import UserError
from recipes.tasks import classification_data, finetune_options
from recipes.tasks import jobs as glue_jobs
from recipes.tasks.glue_tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]

# Writes a result like finetune.py's and, as that does, nothing where it is there with the same
# settings. What it does instead is in a file next to the results, by the name of the job.
FAKE = """\
import json, os, subprocess, sys, time
from pathlib import Path

words = [word for word in sys.argv[1:] if word != "--from-scratch"]
given = dict(zip(words[::2], words[1::2]))
scratch = "--from-scratch" in sys.argv
output, task, seed = Path(given["--output"]), given["--task"], int(given["--seed"])
name = f"{task}-seed{seed}"
result = output / f"{name}.json"
orders = output / "orders.json"
order = json.loads(orders.read_text()).get(name) if orders.exists() else None
began = time.time()
if order == "fail":
    print("first line")
    sys.exit("error: no such luck")
if order == "no result":
    sys.exit(0)
if order == "meet":
    (output / f"{name}.here").touch()
    while len(list(output.glob("*.here"))) < 2:
        time.sleep(0.02)
if order == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (output / "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
settings = {"epochs": given.get("--epochs"), "checkpoint": given["--checkpoint"]}
if result.exists() and json.loads(result.read_text())["settings"] == settings:
    print("done already")
    sys.exit()
time.sleep(0.3)
metrics = {"accuracy": 0.5}
(output / name).mkdir(exist_ok=True)
result.write_text(json.dumps({
    "task": task, "seed": seed, "score": 0.5, "metrics": metrics, "stand_in": False,
    "seconds": 0.3, "dollars": 0.0, "checkpoint": given["--checkpoint"], "settings": settings,
    "from_scratch": scratch, "notes": [], "began": began, "ended": time.time(),
    "environment": {k: os.environ.get(k) for k in
                    ("RANK", "WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS")},
}))
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    return script


@pytest.fixture
def checkpoint(finetune_place: Path, tmp_path: Path, monkeypatch) -> Path:
    """A run with an export, where there is no network."""
    shutil.copytree(finetune_place / "run", tmp_path / "base")
    monkeypatch.setattr(classification_data, "_from_hub", no_network)
    return tmp_path / "base"


def no_network(task) -> None:
    raise UserError("no network")


def orders(output: Path, **by_job: str) -> None:
    output.mkdir(parents=True, exist_ok=True)
    named = {name.replace("_", "-"): order for name, order in by_job.items()}
    (output / "orders.json").write_text(json.dumps(named))


def results(output: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in output.glob("*-seed*.json")}


def benchmark(checkpoint: Path, fake: Path, *options: str) -> int:
    return glue.main(["--checkpoint", str(checkpoint), *options], finetune=fake)


def test_all_tasks_and_seeds_with_mnli_first(checkpoint):
    output = checkpoint / "glue"
    jobs = glue.plan(list(TASKS.values()), checkpoint=checkpoint, output=output)
    # facts of the published recipe: five seeds for the three small tasks, four, three, one each
    assert len(jobs) == 1 + 1 + 1 + 5 + 4 + 3 + 5 + 5
    assert jobs[0].name == "mnli-seed17"
    assert {job.name for job in jobs if job.task.name == "sst2"} == {
        "sst2-seed17",
        "sst2-seed18",
        "sst2-seed19",
    }
    for job in jobs:
        start = job.command[job.command.index("--checkpoint") + 1]
        if job.task.name in ("rte", "mrpc", "stsb"):
            assert job.after is jobs[0]
            assert start == str(output / "mnli-seed17")
        else:
            assert job.after is None
            assert start == str(checkpoint)


def test_from_scratch_is_for_what_does_not_start_from_mnli(checkpoint):
    tasks = [TASKS["mnli"], TASKS["rte"], TASKS["cola"]]
    jobs = glue.plan(tasks, checkpoint=checkpoint, output=checkpoint, seeds=1, from_scratch=True)
    scratch = {job.task.name: "--from-scratch" in job.command for job in jobs}
    assert scratch == {"mnli": True, "rte": False, "cola": True}
    (alone,) = glue.plan(
        [TASKS["rte"]], checkpoint=checkpoint, output=checkpoint, seeds=1, from_scratch=True
    )
    assert "--from-scratch" in alone.command


def test_without_mnli_an_earlier_result_of_it_is_the_start(checkpoint, tmp_path):
    def start() -> str:
        (job,) = glue.plan([TASKS["rte"]], checkpoint=checkpoint, output=tmp_path, seeds=1)
        return job.command[job.command.index("--checkpoint") + 1]

    assert start() == str(checkpoint)
    (tmp_path / "mnli-seed17").mkdir()
    (tmp_path / "mnli-seed17.json").write_text("{}")
    assert start() == str(tmp_path / "mnli-seed17")


def test_jobs_run_side_by_side_and_dependants_after_mnli(checkpoint, fake, capsys):
    tasks = ("--tasks", "rte", "mnli", "cola", "qnli")
    assert benchmark(checkpoint, fake, *tasks, "--seeds", "2", "--jobs", "3") == 0
    done = results(checkpoint / "glue")
    expected = {"mnli-seed17", "qnli-seed17"}
    expected |= {f"{task}-seed{seed}" for task in ("rte", "cola") for seed in (17, 18)}
    assert set(done) == expected
    assert done["rte-seed17"]["began"] >= done["mnli-seed17"]["ended"]
    assert done["rte-seed17"]["checkpoint"].endswith("mnli-seed17")
    ports = [result["environment"]["MASTER_PORT"] for result in done.values()]
    assert all(result["environment"]["RANK"] == "0" for result in done.values())
    assert all(result["environment"]["WORLD_SIZE"] == "1" for result in done.values())
    assert len(ports) == 6 and all(int(port) > 0 for port in ports)
    out = capsys.readouterr().out
    assert out.count("\ndone ") + out.startswith("done ") == 6
    assert "average of 4 tasks" in out
    assert (checkpoint / "glue" / "scores.png").stat().st_size > 0


def test_two_jobs_share_a_gpu(checkpoint, fake):
    output = checkpoint / "glue"
    # Each waits for the other, so that one after the other would never end.
    orders(output, cola_seed17="meet", cola_seed18="meet")
    jobs = glue.plan([TASKS["cola"]], checkpoint=checkpoint, output=output, seeds=2, finetune=fake)
    glue_jobs.run_jobs(jobs, [glue_jobs.Slot("GPU 0", "0", 1), glue_jobs.Slot("GPU 0", "0", 1)])
    assert [job.state for job in jobs] == ["done", "done"]


def test_a_restart_keeps_what_is_done_and_repeats_what_has_other_settings(checkpoint, fake, capsys):
    options = ("--tasks", "cola", "sst2", "--seeds", "1")
    benchmark(checkpoint, fake, *options)
    first = results(checkpoint / "glue")
    capsys.readouterr()
    benchmark(checkpoint, fake, *options)
    assert results(checkpoint / "glue") == first
    assert capsys.readouterr().out.count("there already") == 2
    benchmark(checkpoint, fake, *options, "--", "--epochs", "2")
    assert capsys.readouterr().out.count("again: the settings have changed") == 2
    again = results(checkpoint / "glue")
    assert {result["settings"]["epochs"] for result in again.values()} == {"2"}


def test_what_is_done_is_skipped_without_starting_it(finetune_place, tmp_path, fake, capsys):
    """By the real check: `fake` would fail."""
    output = tmp_path / "out"
    orders(output, cola_seed17="fail", rte_seed17="fail")
    start, data = str(finetune_place / "run"), str(finetune_place / "glue")
    options = ["--checkpoint", start, "--output", str(output), "--data", data, "--seeds", "1"]
    for task in ("cola", "rte"):
        named = ["--task", task, "--checkpoint", start, "--output", str(output), "--data", data]
        work = finetune_options.resolve(finetune_options.parse_arguments(named), 1)
        record = {"task": task, "seed": 17, "score": 0.5, "metrics": {TASKS[task].score: 0.5}}
        record |= {"stand_in": True, "seconds": 1.0, "checkpoint": start}
        record |= {"settings": work.settings, "test_examples_sha256": None}
        work.result.write_text(json.dumps(record))
    assert glue.main([*options, "--tasks", "cola", "rte"], finetune=fake) == 0
    assert capsys.readouterr().out.count("there already") == 2
    assert not (output / "logs").exists(), "no process was started"
    assert glue.main([*options, "--tasks", "cola", "--", "--epochs", "9"], finetune=fake) == 1


def test_a_failure_skips_its_dependants_and_nothing_else(checkpoint, fake, capsys):
    output = checkpoint / "glue"
    orders(output, mnli_seed17="fail")
    tasks = ("--tasks", "mnli", "rte", "cola")
    assert benchmark(checkpoint, fake, *tasks, "--seeds", "1") == 1
    assert set(results(output)) == {"cola-seed17"}
    captured = capsys.readouterr()
    (failed,) = [line for line in captured.out.splitlines() if line.startswith("failed")]
    assert "exit status 1" in failed
    assert str(output / "logs" / "mnli-seed17.log") in failed
    assert "error: no such luck" in failed
    assert "skipped rte-seed17" in captured.out
    assert "average of 1 task" in captured.out
    assert "mnli-seed17.log: error: no such luck" in captured.err
    assert "mnli-seed17 failed" in captured.err and "rte-seed17 skipped" in captured.err
    log = (output / "logs" / "mnli-seed17.log").read_text()
    assert log.startswith("$ ") and "--task mnli" in log and "first line" in log


def test_what_a_failed_job_left_earlier_is_not_in_the_table(checkpoint, fake, capsys):
    options = ("--tasks", "cola", "sst2", "--seeds", "1")
    assert benchmark(checkpoint, fake, *options) == 0
    orders(checkpoint / "glue", cola_seed17="fail")
    capsys.readouterr()
    assert benchmark(checkpoint, fake, *options, "--", "--epochs", "2") == 1
    table = json.loads((checkpoint / "glue" / "scores.json").read_text())
    assert list(table["series"][0]["tasks"]) == ["sst2"]


def test_success_without_a_result_is_a_failure(checkpoint, fake, capsys):
    orders(checkpoint / "glue", cola_seed17="no result")
    assert benchmark(checkpoint, fake, "--tasks", "cola", "--seeds", "1") == 1
    assert "no result in" in capsys.readouterr().out


def test_a_signal_ends_every_process(checkpoint, fake):
    output = checkpoint / "glue"
    orders(output, cola_seed17="hang")
    code = "import sys; from pathlib import Path; from recipes import glue; "
    code += f"sys.exit(glue.main(finetune=Path({str(fake)!r})))"
    options = ["--checkpoint", str(checkpoint), "--tasks", "cola", "--seeds", "2", "--jobs", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (output / "pids").exists() or not (output / "pids").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    pids = [int(pid) for pid in (output / "pids").read_text().split()]
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped with 2 jobs to do" in said
    assert not [pid for pid in pids if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_all_faults_at_once(tmp_path):
    options = glue.parse_arguments(
        ["--checkpoint", str(tmp_path / "none"), "--tasks", "rte", "wnli", "--seeds", "0"]
        + ["--data", str(tmp_path / "nowhere")]
    )
    with pytest.raises(UserError) as caught:
        glue.resolve(options)
    assert len(caught.value.faults) == 4
    assert "wnli" in str(caught.value) and "stsb" in str(caught.value)


def test_tasks_without_data_are_named_before_any_starts(checkpoint, fake, tmp_path):
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").touch()
    with pytest.raises(UserError) as caught:
        benchmark(checkpoint, fake, "--tasks", "cola", "rte", "--data", str(tmp_path))
    faults = sorted(caught.value.faults)
    assert faults[0] == f"{tmp_path / 'CoLA' / 'dev.tsv'}: missing"
    assert "no RTE in it" in faults[1] and len(faults) == 2
    assert not (checkpoint / "glue").exists()


def test_a_mistyped_option_of_the_jobs_starts_none(checkpoint, fake, capsys):
    with pytest.raises(SystemExit):
        benchmark(checkpoint, fake, "--tasks", "cola", "--", "--epoch", "2")
    assert "finetune.py: error: unknown argument '--epoch'" in capsys.readouterr().err
    assert not (checkpoint / "glue").exists()


def test_the_control_does_not_overwrite_the_results(checkpoint, fake, capsys):
    options = ("--tasks", "cola", "--seeds", "1")
    assert benchmark(checkpoint, fake, *options) == 0
    with pytest.raises(UserError, match="other kind"):
        benchmark(checkpoint, fake, *options, "--from-scratch", "--output", f"{checkpoint}/glue")
    assert benchmark(checkpoint, fake, *options, "--from-scratch") == 0
    assert results(checkpoint / "glue-from-scratch")["cola-seed17"]["from_scratch"]


def test_slots_share_gpus_and_cores(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [(slot.gpu, slot.threads) for slot in glue_jobs.slots(None)] == [("4", 8), ("6", 8)]
    assert [slot.gpu for slot in glue_jobs.slots(3)] == ["4", "6", "4"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert [(slot.gpu, slot.threads) for slot in glue_jobs.slots(None)] == [(None, 4)] * 4
    assert [slot.threads for slot in glue_jobs.slots(1)] == [16]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert [slot.threads for slot in glue_jobs.slots(None)] == [1, 1]


@pytest.mark.parametrize(
    ("word", "way"),
    [
        ("--seed=3", "--seeds, how many, before the --"),
        ("--task", "--tasks before"),
        ("--output", "give --output before the --"),
        ("--dry_run", "give --dry-run before the --"),
        ("--checkpoint=x", "give --checkpoint before the --"),
        ("--from-scratch", "give --from-scratch before the --"),
        ("--data", "give --data before the --"),
        ("--train-file", "data of one's own"),
    ],
)
def test_what_each_job_is_given_is_not_handed_on(checkpoint, fake, word, way):
    with pytest.raises(UserError) as caught:
        benchmark(checkpoint, fake, "--tasks", "cola", "--", "--epochs", "2", word, "x", "--task=y")
    option = word.split("=")[0].replace("_", "-")
    (fault,) = [fault for fault in caught.value.faults if fault.startswith(f"{option} after --: ")]
    assert way in fault
    assert any(fault.startswith("--task after --") for fault in caught.value.faults)
    assert not (checkpoint / "glue").exists()


def test_every_option_of_a_job_is_its_own_or_may_be_handed_on(checkpoint):
    """A new option that `plan` writes must not be given twice."""
    jobs = glue.plan([TASKS["cola"]], checkpoint=checkpoint, output=checkpoint, from_scratch=True)
    written = {word for word in jobs[0].options if word.startswith("--")}
    assert written < glue.NOT_AFTER_DASHES.keys()


def test_an_output_that_is_a_file_is_refused(checkpoint, fake, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file; name a directory"):
        benchmark(checkpoint, fake, "--tasks", "cola", "--output", str(tmp_path / "file"))


def test_another_models_tokenizer_is_refused_before_any_job(checkpoint, fake):
    config = checkpoint / "export" / "config.json"
    description = json.loads(config.read_text())
    description["tokenizer"]["fingerprint"] = "0" * 64
    config.write_text(json.dumps(description))
    with pytest.raises(UserError, match="the weights were trained with 0{64}"):
        benchmark(checkpoint, fake, "--tasks", "cola")
    assert not (checkpoint / "glue").exists()


def test_the_whole_benchmark_has_its_directory_to_itself(checkpoint, fake):
    """Single jobs run side by side, as those of a job array do."""
    output = checkpoint / "glue"
    output.mkdir()
    with (output / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for more in ([], ["--report-only"]):
            with pytest.raises(UserError, match="another process is running GLUE's tasks"):
                benchmark(checkpoint, fake, "--tasks", "cola", *more)
        assert benchmark(checkpoint, fake, "--tasks", "cola", "--only", "0") == 0
    assert list(results(output)) == ["cola-seed17"]


def test_a_report_names_what_has_not_run_apart_from_what_failed(checkpoint, fake, capsys):
    output = checkpoint / "glue"
    orders(output, cola_seed18="fail")
    options = ("--tasks", "cola", "--seeds", "3")
    for number in ("0", "1"):
        benchmark(checkpoint, fake, *options, "--only", number)
    capsys.readouterr()
    assert benchmark(checkpoint, fake, *options, "--report-only") == 1
    failed, not_run = capsys.readouterr().err.splitlines()
    log = output / "logs" / "cola-seed18.log"
    assert failed == f"error: cola-seed18 failed: {log}: error: no such luck"
    result = output / "cola-seed19.json"
    assert not_run == (
        f"error: cola-seed19 has not run: {result} is not there, and there is no log of it"
    )


def test_no_more_places_than_jobs(checkpoint, capsys):
    options = ["--checkpoint", str(checkpoint), "--tasks", "cola", "--seeds", "2", "--dry-run"]
    assert glue.main([*options, "--jobs", "1000"]) == 0
    assert "2 jobs, 2 at a time" in capsys.readouterr().out


@pytest.mark.parametrize("start", [["recipes/glue.py"], ["-m", "recipes.glue"]])
def test_dry_run_prints_the_jobs(checkpoint, start):
    done = subprocess.run(
        [sys.executable, *start, "--checkpoint", str(checkpoint), "--tasks", "mnli", "rte"]
        + ["--seeds", "1", "--dry_run", "--", "--epochs", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    mnli, rte, summary = done.stdout.splitlines()
    assert "--task mnli" in mnli and mnli.endswith("--epochs 2")
    assert rte.endswith("# after mnli-seed17")
    assert summary.startswith("2 jobs")
    assert not (checkpoint / "glue").exists()
