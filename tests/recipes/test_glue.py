"""The schedule, with a script of a few lines in place of the finetuning."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from glue_scenarios import FAKE, orders, results
from lock_scenarios import held

from recipes import glue
from recipes.common.errors import UserError
from recipes.common.locks import LOCK
from recipes.common.settings import parse
from recipes.reporting.leaderboard import read
from recipes.tasks import classification_data, finetune_settings
from recipes.tasks import jobs as glue_jobs
from recipes.tasks.finetuning import resolve
from recipes.tasks.glue_plan import plan
from recipes.tasks.glue_tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]


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


def benchmark(checkpoint: Path, fake: Path, *options: str) -> int:
    return glue.main(["--checkpoint", str(checkpoint), *options], script=fake)


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
    [line] = read(checkpoint / "glue" / "leaderboard.json")
    words = ["--checkpoint", str(checkpoint), *tasks, "--seeds", "2", "--jobs", "3"]
    assert line["command"].endswith(shlex.join(["python", "recipes/glue.py", *words]))
    assert sorted(line["tasks"]) == ["cola", "mnli", "qnli", "rte"]


def test_two_jobs_share_a_gpu(checkpoint, fake):
    output = checkpoint / "glue"
    # Each waits for the other, so that one after the other would never end.
    orders(output, cola_seed17="meet", cola_seed18="meet")
    jobs = plan([TASKS["cola"]], checkpoint=checkpoint, output=output, seeds=2, script=fake)
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
        work = resolve(parse(finetune_settings.Settings, named), 1)
        record = {"task": task, "seed": 17, "score": 0.5, "metrics": {TASKS[task].score: 0.5}}
        record |= {"stand_in": True, "seconds": 1.0, "checkpoint": start}
        record |= {"settings": work.identity, "test_examples_sha256": None}
        work.result.write_text(json.dumps(record))
    assert glue.main([*options, "--tasks", "cola", "rte"], script=fake) == 0
    assert capsys.readouterr().out.count("there already") == 2
    assert not (output / "logs").exists(), "no process was started"
    assert glue.main([*options, "--tasks", "cola", "--", "--epochs", "9"], script=fake) == 1


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
    code += f"sys.exit(glue.main(script=Path({str(fake)!r})))"
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
    words = ["--checkpoint", str(tmp_path / "none"), "--tasks", "rte", "wnli", "--seeds", "0"]
    words += ["--data", str(tmp_path / "nowhere"), "--", "--epochs", "0", "--deepspeed-config"]
    with pytest.raises(UserError) as caught:
        glue.main([*words, str(tmp_path / "no.json")])
    assert len(caught.value.faults) == 6
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


def test_a_mistyped_option_of_the_jobs_starts_none(checkpoint, fake):
    with pytest.raises(UserError) as caught:
        benchmark(checkpoint, fake, "--tasks", "cola", "wnli", "--", "--epoch", "2")
    unknown_task, mistyped = caught.value.faults
    assert "wnli" in unknown_task
    assert mistyped == "finetune.py: unknown argument '--epoch' (did you mean --epochs?)"
    assert not (checkpoint / "glue").exists()


def test_the_control_does_not_overwrite_the_results(checkpoint, fake, capsys):
    options = ("--tasks", "cola", "--seeds", "1")
    assert benchmark(checkpoint, fake, *options) == 0
    with pytest.raises(UserError, match="other kind"):
        benchmark(checkpoint, fake, *options, "--from-scratch", "--output", f"{checkpoint}/glue")
    assert benchmark(checkpoint, fake, *options, "--from-scratch") == 0
    assert results(checkpoint / "glue-from-scratch")["cola-seed17"]["from_scratch"]


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


def test_an_output_that_is_a_file_is_refused(checkpoint, fake, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file; name a directory"):
        benchmark(checkpoint, fake, "--tasks", "cola", "--output", str(tmp_path / "file"))


def test_another_models_tokenizer_is_refused_before_any_job(checkpoint, fake):
    config = checkpoint / "export" / "config.json"
    description = json.loads(config.read_text())
    description["rapidbert"]["tokenizer"]["fingerprint"] = "0" * 64
    config.write_text(json.dumps(description))
    with pytest.raises(UserError, match="the weights were trained with 0{64}"):
        benchmark(checkpoint, fake, "--tasks", "cola")
    assert not (checkpoint / "glue").exists()


def test_the_whole_benchmark_has_its_directory_to_itself(checkpoint, fake):
    output = checkpoint / "glue"
    output.mkdir()
    with held(output, LOCK), pytest.raises(UserError, match="another process is running GLUE's"):
        benchmark(checkpoint, fake, "--tasks", "cola")


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


def test_no_task_is_no_benchmark(checkpoint):
    with pytest.raises(UserError, match="--tasks: is empty"):
        glue.main(["--checkpoint", str(checkpoint), "--tasks"])


def test_help_says_what_comes_after_the_dashes_and_nothing_of_slurm(capsys):
    with pytest.raises(SystemExit) as ended:
        glue.main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "Options after a bare -- go to recipes/finetune.py" in shown
    assert "--from-scratch" in shown and "array" not in shown


def test_a_leaderboard_that_is_none_is_refused_before_any_job(checkpoint, fake, tmp_path):
    board = tmp_path / "board.json"
    board.write_text("{")
    for more in ([], ["--dry-run"]):
        with pytest.raises(UserError, match="no leaderboard"):
            benchmark(checkpoint, fake, "--tasks", "cola", "--leaderboard", str(board), *more)
    assert not (checkpoint / "glue").exists()


def test_a_control_has_no_line(checkpoint, fake, tmp_path):
    board = tmp_path / "board.json"
    words = ("--tasks", "cola", "--seeds", "1", "--leaderboard", str(board))
    assert benchmark(checkpoint, fake, *words, "--from-scratch") == 0
    assert not board.exists()
    assert benchmark(checkpoint, fake, *words) == 0
    assert len(read(board)) == 1
