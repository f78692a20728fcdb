"""Everything within a budget: what fails, hangs or is killed costs only itself."""

import json
import os
import sys
import time
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from recipes import benchmark
from recipes.benchmarks import run_all as benchmark_all

# What a mode's process does: write what it has measured, then end in its own way.
WRITE = """
import json, pathlib, sys, time
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
words = sys.argv[1:]
def record(**content):
    content = {"words": words, "failures": {}, **content}
    (output / f"{NAME}.json").write_text(json.dumps(content))
"""
ENDINGS = {
    "correctness": "record(within_limits=True)",
    "wrong": "record(within_limits=False); sys.exit(1)",
    "good": "record(); print('measured')",
    "broken": "print('about to fail'); sys.exit(3)",
    "hanging": "record(); print('hangs', flush=True); time.sleep(60)",
}


def module_of(mode):
    def add_options(parser):
        if mode == "good":
            parser.add_argument("--data")

    return SimpleNamespace(
        BY_DEVICE=False,
        add_options=add_options,
        figure=lambda record: Figure(),
        headlines=lambda record: [("words", " ".join(record["words"]))],
    )


@pytest.fixture
def run_all(monkeypatch, tmp_path):
    def run(order, minutes=1.0, data=None, as_wrong=False, least=0.01):
        monkeypatch.setattr(benchmark_all, "ORDER", order)
        monkeypatch.setattr(benchmark_all, "GRACE_SECONDS", 1.0)
        monkeypatch.setattr(benchmark_all, "LEAST_SECONDS", least)

        def command(mode):
            ending = ENDINGS["wrong" if as_wrong and mode == "correctness" else mode]
            return [sys.executable, "-S", "-c", f"NAME = {mode!r}\n{WRITE}\n{ending}"]

        monkeypatch.setattr(benchmark_all, "command", command)
        options = SimpleNamespace(minutes=minutes, output=tmp_path / "out", data=data)
        return benchmark_all.run_all(options, dict.fromkeys(order), module_of), tmp_path / "out"

    return run


def test_a_mode_that_fails_or_hangs_costs_only_itself(run_all, capsys):
    order = {"correctness": 1.0, "broken": 1.0, "hanging": 0.02, "good": 1.0}
    began = time.monotonic()
    status, output = run_all(order, minutes=0.2)
    assert status == 1 and time.monotonic() - began < 12
    said, faults = capsys.readouterr()
    assert f"broken failed (exit status 3); its log is {output}/logs/broken.log" in faults
    assert f"hanging failed (ended at the time limit); its log is {output}" in faults
    assert "good failed" not in faults
    assert (output / "logs/broken.log").read_text() == "about to fail\n"
    # What was measured before the kill is there, with its figure.
    assert json.loads((output / "hanging.json").read_text())
    assert (output / "hanging.png").exists()
    rows = said[said.index("benchmark ") :].splitlines()
    assert rows[1].startswith("correctness")
    assert [row.split()[0] for row in rows if not row.startswith(" ")][-1] == "good"


def test_all_good(run_all, capsys):
    status, _ = run_all({"correctness": 1.0, "good": 1.0}, data="prepared")
    assert status == 0
    good = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("good  "))
    assert "--data prepared" in good  # given to the modes that take it
    # Half of a minute less the grace goes to each; what the first does not use, to the second.
    minutes = float(good.partition("--minutes ")[2].split()[0])
    assert 0.8 < minutes < 59 / 60


def test_nothing_starts_without_time_left(run_all, capsys):
    status, output = run_all({"hanging": 1.0, "good": 1.0}, minutes=2 / 60, least=0.9)
    assert status == 1 and not (output / "good.json").exists()
    assert "no time left" in capsys.readouterr().out


def test_the_first_ones_get_enough_where_time_is_short(run_all):
    """Three seconds without the grace: half of that would not be enough for anything."""
    _, output = run_all({"correctness": 1.0, "good": 1.0}, minutes=4 / 60, least=2.0)
    words = json.loads((output / "correctness.json").read_text())["words"]
    assert float(words[words.index("--minutes") + 1]) == pytest.approx(2 / 60, rel=0.05)


def test_speeds_of_wrong_kernels_do_not_lie_among_the_results(run_all, capsys):
    status, output = run_all({"correctness": 1.0, "good": 1.0}, as_wrong=True)
    assert status == 1
    assert not (output / "good.json").exists()
    assert (output / benchmark_all.UNVERIFIED / "good.json").exists()
    assert "WRONG KERNELS" in capsys.readouterr().out


def test_a_record_of_an_earlier_run_is_not_taken_for_this_one(run_all, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "broken.json").write_text('{"words": ["old"], "failures": {}}')
    run_all({"broken": 1.0})
    assert "old" not in capsys.readouterr().out


def test_a_kill_reaches_what_the_mode_has_started(run_all, monkeypatch, tmp_path):
    monkeypatch.setitem(
        ENDINGS,
        "hanging",
        "import subprocess; child = subprocess.Popen(['sleep', '60']);"
        "record(child=child.pid); time.sleep(60)",
    )
    _, output = run_all({"hanging": 1.0}, minutes=2 / 60)
    child = json.loads((output / "hanging.json").read_text())["child"]
    with pytest.raises(ProcessLookupError):
        for _ in range(50):  # until init has reaped it
            os.kill(child, 0)
            time.sleep(0.1)


def test_every_mode_has_its_place():
    from recipes.benchmark import MODES

    assert list(benchmark_all.ORDER) == list(MODES)


def test_no_time_at_all_is_refused(monkeypatch, capsys, tmp_path):
    words = ["benchmark.py", "all", "--minutes", "0", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--minutes 0: must be" in capsys.readouterr().err and not (tmp_path / "out").exists()
