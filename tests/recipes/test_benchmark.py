"""The command line of the measurements."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from recipes import benchmark
from recipes.cli import UserError

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
        (["glu", "--batches", "0", "-1"], ["--batches 0: at least 1", "--batches -1: at least 1"]),
        (["attention", "--lengths", "0"], ["--lengths 0: at least 1"]),
        (["sequence-length", "--lengths", "7", "128"], ["--lengths 7: at least 8"]),
        (["input", "--minutes", "0"], ["--minutes 0: more than 0"]),
    ],
)
def test_impossible_numbers_are_refused_before_any_work(words, faults, monkeypatch, tmp_path):
    output = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words, "--output", str(output)])
    with pytest.raises(UserError) as refusal:
        benchmark.main()
    assert list(refusal.value.faults) == faults and not output.exists()


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
