"""The command line of the measurements."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from lock_scenarios import held
from matplotlib.figure import Figure

from recipes import benchmark
from recipes.benchmarks import run_all as benchmark_all
from recipes.common import locks
from recipes.common.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("start", [["recipes/benchmark.py"], ["-m", "recipes.benchmark"]])
def test_faults_end_with_a_message_and_exit_code_2(start, tmp_path):
    command = [sys.executable, *start, "input", "--data", str(tmp_path / "nowhere")]
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
            ["input", "--minutes", "0", "--repeats", "1e3"],
            ["--minutes 0: must", "did you mean 1000?"],
        ),
    ],
)
def test_impossible_numbers_are_refused_before_any_work(
    words, faults, monkeypatch, tmp_path, capsys
):
    output = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words, "--output", str(output)])
    with pytest.raises(SystemExit) as refusal:
        benchmark.main()
    assert refusal.value.code == 2 and not output.exists()
    said = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(said) == len(faults)
    assert all(fault in line for fault, line in zip(faults, said, strict=True))


@pytest.mark.parametrize("mode", benchmark.MODES)
def test_every_mode_has_what_the_command_needs(mode):
    module = benchmark.module_of(mode)
    for name in ("add_options", "benchmark", "figure", "table", "headlines"):
        assert callable(getattr(module, name))
    assert isinstance(module.BY_DEVICE, bool) and module.__doc__


def test_a_contender_that_failed_costs_the_exit_status_and_nothing_else(tmp_path, capsys):
    def measured(options, record):
        record["sum"] = record.attempt("addition", lambda: 1 + 1)
        record.attempt("division", lambda: 1 / 0)

    module = SimpleNamespace(
        BY_DEVICE=False,
        benchmark=measured,
        figure=lambda record: Figure(),
        table=lambda record: [("sum", str(record["sum"]))],
    )
    options = SimpleNamespace(output=tmp_path, minutes=None)
    assert benchmark.run_mode("sums", module, options) == 1
    out = capsys.readouterr().out
    assert "sum  2" in out and "division: ZeroDivisionError" in out
    assert (tmp_path / "sums.png").exists() and (tmp_path / "sums.json").exists()


def sums(tmp_path, output):
    module = SimpleNamespace(
        BY_DEVICE=False,
        benchmark=lambda options, record: None,
        figure=lambda record: Figure(),
        table=lambda record: [("sum", "2")],
    )
    return benchmark.run_mode("sums", module, SimpleNamespace(output=output, minutes=None))


def test_an_output_that_is_a_file_or_taken_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file; name a directory"):
        sums(tmp_path, tmp_path / "file")
    with pytest.raises(UserError, match="file is a file"):
        sums(tmp_path, tmp_path / "file" / "below")
    with held(tmp_path, locks.LOCK), pytest.raises(UserError, match="measuring into it right now"):
        sums(tmp_path, tmp_path)
    assert sums(tmp_path, tmp_path) == 0
    everything = SimpleNamespace(output=tmp_path / "file", minutes=1.0, data=None)
    with pytest.raises(UserError, match="file: is a file"):
        benchmark_all.run_all(everything, {}, benchmark.module_of)
    (tmp_path / "logs").mkdir()
    everything.output = tmp_path
    with (
        held(tmp_path / "logs", locks.LOCK),
        pytest.raises(UserError, match="measuring everything"),
    ):
        benchmark_all.run_all(everything, {}, benchmark.module_of)


def test_a_refused_measurement_leaves_no_directory(tmp_path, monkeypatch):
    words = ["benchmark.py", "input", "--data", str(tmp_path / "none"), "--output"]
    monkeypatch.setattr(sys, "argv", [*words, str(tmp_path / "out")])
    with pytest.raises(UserError, match="none"):
        benchmark.main()
    assert not (tmp_path / "out").exists()
