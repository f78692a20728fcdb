"""The command line of the measurements."""

import errno
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from lock_scenarios import held
from matplotlib.figure import Figure

from recipes import benchmark
from recipes.benchmarks import run_all
from recipes.benchmarks.mode import MODES, AllSettings, Mode, ModeSettings, mode_of
from recipes.benchmarks.running import run_mode, take_directory
from recipes.common import locks
from recipes.common.errors import UserError
from recipes.common.settings import help_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("start", [["recipes/benchmark.py"], ["-m", "recipes.benchmark"]])
def test_faults_end_with_a_message_and_exit_code_2(start, tmp_path):
    command = [sys.executable, *start, "input", "--data", str(tmp_path / "nowhere")]
    command += ["--output", str(tmp_path / "out")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "nowhere" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("words", "faults"),
    [
        (["glu", "--batches", "0", "-1"], ["--batches 0: must be", "--batches -1: must be"]),
        (["attention", "--lengths", "0"], ["--lengths 0: must be a whole number from 1"]),
        (
            ["sequence-length", "--lengths", "7", "128"],
            ["--lengths 7: must be a whole number from 8"],
        ),
        (
            ["input", "--minutes", "0", "--micro-batch", "1e3"],
            ["--minutes 0: must", "did you mean 1000?"],
        ),
    ],
)
def test_impossible_numbers_are_refused_before_any_work(words, faults, monkeypatch, tmp_path):
    output = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words, "--output", str(output)])
    with pytest.raises(UserError) as refusal:
        benchmark.main()
    assert not output.exists()
    for said, fault in zip(refusal.value.faults, faults, strict=True):
        assert fault in said


def test_the_mode_comes_first_and_a_mistyped_one_is_told_the_nearest(monkeypatch, capsys):
    for words, said in (
        ([], "the mode is missing: one of throughput, attention,"),
        (["--minutes=3"], "the mode is missing"),
        (["thruput"], "mode thruput: must be one of .* or all; did you mean throughput?"),
        (["input", "--mircobatch", "4"], "did you mean --micro-batch?"),
    ):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
        with pytest.raises(UserError, match=said):
            benchmark.main()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--help"])
    assert benchmark.main() == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name}  " in said for name in (*MODES, "all"))


def test_help_does_not_wait_for_torch():
    program = (
        "import sys, recipes.benchmark, recipes.training.settings\n"
        "from recipes.benchmarks import mode\n"
        "assert not {'torch', 'matplotlib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", MODES)
def test_every_mode_explains_its_options(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    settings = mode_of(name).settings
    assert " ".join(settings.__doc__.split()) in said
    told = help_of(settings)
    assert {"output", "minutes"} <= told.keys() == {field.name for field in fields(settings)}
    for field, text in told.items():
        assert f"--{field.replace('_', '-')}" in said and " ".join(text.split()) in said


def sums(measure=lambda settings, record: None, table=lambda record: [("sum", "2")]):
    return Mode(
        ModeSettings, measure, table, lambda record: Figure(), lambda record: [], by_device=False
    )


def test_a_contender_that_failed_costs_the_exit_status_and_nothing_else(tmp_path, capsys):
    def measured(settings, record):
        record["sum"] = record.attempt("addition", lambda: 1 + 1)
        record.attempt("division", lambda: 1 / 0)

    def table(record):
        return [("sum", str(record["sum"]))]

    assert run_mode("sums", sums(measured, table), ModeSettings(tmp_path)) == 1
    out = capsys.readouterr().out
    assert "sum  2" in out and "division: ZeroDivisionError" in out
    assert (tmp_path / "sums.png").exists() and (tmp_path / "sums.json").exists()


def test_an_output_that_is_a_file_or_taken_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()

    def measure(output):
        return run_mode("sums", sums(), ModeSettings(output))

    with pytest.raises(UserError, match="file: is a file; name a directory"):
        measure(tmp_path / "file")
    with pytest.raises(UserError, match="file is a file"):
        measure(tmp_path / "file" / "below")
    with held(tmp_path, locks.LOCK), pytest.raises(UserError, match="measuring into it right now"):
        measure(tmp_path)
    assert measure(tmp_path) == 0
    with pytest.raises(UserError, match="file: is a file"):
        run_all.run_all(AllSettings(tmp_path / "file"), mode_of)
    (tmp_path / "logs").mkdir()
    with (
        held(tmp_path / "logs", locks.LOCK),
        pytest.raises(UserError, match="measuring into it right now"),
    ):
        run_all.run_all(AllSettings(tmp_path), mode_of)


def test_what_was_imported_counts_as_time(tmp_path):
    out_of_time = []

    def measured(settings, record):
        time.sleep(0.07)  # more than the least budget
        assert not record.out_of_time("first")
        out_of_time.append(record.out_of_time("anything"))

    for seconds in (30.0, 61.0):
        began = time.monotonic() - seconds
        run_mode("sums", sums(measured), ModeSettings(tmp_path, 1.0), began=began)
    assert run_mode("sums", sums(measured), ModeSettings(tmp_path), began=0.0) == 0
    assert out_of_time == [False, True, False]  # without a budget there is no end


def test_an_output_that_only_the_system_refuses_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="--output .*out: No such file or directory"):
        take_directory(tmp_path / "out")


def test_a_refused_measurement_leaves_no_directory(tmp_path, monkeypatch):
    words = ["benchmark.py", "input", "--data", str(tmp_path / "none"), "--output"]
    monkeypatch.setattr(sys, "argv", [*words, str(tmp_path / "out")])
    with pytest.raises(UserError, match="none"):
        benchmark.main()
    assert not (tmp_path / "out").exists()
