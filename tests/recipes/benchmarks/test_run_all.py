"""Everything within a budget: what fails, hangs or is killed costs only itself."""

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from recipes import benchmark
from recipes.benchmarks import records
from recipes.benchmarks import run_all as benchmark_all
from recipes.benchmarks.checks import GPU_TESTS, GRAPH_TESTS, KERNELS, Check, kernel_tests
from recipes.benchmarks.mode import MODES, DataSettings, Mode, ModeSettings
from recipes.common.errors import UserError

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
    "first": "record()",
    "good": "record(); print('measured')",
    "broken": "print('about to fail'); sys.exit(3)",
    "hanging": "record(); print('hangs', flush=True); time.sleep(60)",
    "stopped": "import os; record(); os.kill(os.getppid(), 15); time.sleep(60)",
    "partial": "record(not_run={'b': 'no time left', 'c': 'no time left', 'd': 'no time left'},"
    " failures={'e': 'ValueError: bad\\nmore'}); sys.exit(1)",
}


def mode_of(name):
    return Mode(
        DataSettings if name == "good" else ModeSettings,
        measure=lambda settings, record: None,
        table=lambda record: [],
        figure=lambda record: Figure(),
        headlines=lambda record: [("words", " ".join(record["words"]))],
        by_device=False,
    )


@pytest.fixture
def run_all(monkeypatch, tmp_path):
    """Runs these modes, on a GPU after tests of the kernels, which print and end as told."""

    def run(weights, minutes=1.0, data=None, least=0.01, kernels=None, other_check=None, **more):
        monkeypatch.setattr(benchmark_all, "WEIGHTS", weights)
        monkeypatch.setattr(benchmark_all, "GRACE_SECONDS", 1.0)
        monkeypatch.setattr(benchmark_all, "LEAST_SECONDS", least)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: kernels is not None)
        monkeypatch.setattr(records, "environment", lambda: {"device": "a GPU"})

        def command(mode):
            program = f"NAME = {mode!r}\n{WRITE}\n{ENDINGS[mode]}"
            return [sys.executable, "-S", "-c", program]

        def listed(gpu, scratch):
            told = {KERNELS: kernels, "other": other_check}
            words = [sys.executable, "-S", "-c"]
            return [
                Check(name, "", 60.0, [*words, f"import sys, time; {does}"])
                for name, does in told.items()
                if does is not None
            ]

        monkeypatch.setattr(benchmark_all, "command", command)
        monkeypatch.setattr(benchmark_all, "checks", listed)
        settings = benchmark_all.AllSettings(tmp_path / "out", minutes, data, **more)
        return benchmark_all.run_all(settings, mode_of), tmp_path / "out"

    return run


def test_a_mode_that_fails_or_hangs_costs_only_itself(run_all, capsys):
    order = {"first": 1.0, "broken": 1.0, "hanging": 0.02, "good": 1.0}
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
    rows = said[said.index("benchmark ") :].partition("\n\n")[0].splitlines()
    assert rows[1].startswith("first")
    assert [row.split()[0] for row in rows if not row.startswith(" ")][-1] == "good"


def test_all_good(run_all, capsys):
    status, _ = run_all({"first": 1.0, "good": 1.0}, data=Path("prepared"))
    assert status == 0
    good = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("good  "))
    assert "--data prepared" in good  # given to the modes that take it
    # Half of a minute less the grace goes to each; what the first does not use, to the second.
    minutes = float(good.partition("--minutes ")[2].split()[0])
    assert 0.8 < minutes < 59 / 60


def test_nothing_starts_without_time_left(run_all, capsys):
    status, output = run_all({"hanging": 1.0, "good": 1.0}, minutes=4 / 60, least=0.9)
    assert status == 1 and not (output / "good.json").exists()
    assert "no time left" in capsys.readouterr().out


def test_the_first_ones_get_enough_where_time_is_short(run_all):
    """Five seconds without the grace: a sixth of that would not be enough for anything."""
    _, output = run_all({"first": 1.0, "good": 5.0}, minutes=6 / 60, least=2.0)
    words = json.loads((output / "first.json").read_text())["words"]
    assert float(words[words.index("--minutes") + 1]) == pytest.approx(2 / 60, rel=0.05)


@pytest.mark.parametrize(
    ("kernels", "verified"),
    [
        ("print('9 passed in 2 s')", True),
        ("print('1 failed, 8 passed in 2 s'); sys.exit(1)", False),
        ("print('..F... [ 50%]\\n..', end='', flush=True); time.sleep(60)", False),
    ],
    ids=["right", "wrong", "too long"],
)
def test_speeds_of_kernels_that_did_not_pass_do_not_lie_among_the_results(
    run_all, capsys, kernels, verified
):
    status, output = run_all({"good": 1.0}, minutes=10 / 60, kernels=kernels)
    assert status == (0 if verified else 1)
    apart = output / benchmark_all.UNVERIFIED / "good.json"
    assert (output / "good.json").exists() == verified and apart.exists() != verified
    said = capsys.readouterr().out
    assert (f"; all records go to {apart.parent}" in said) != verified
    assert (f"{KERNELS}: NOT VERIFIED (" in said) != verified
    last = kernels.split("'")[1]
    if "sleep" in kernels:  # not the same as a kernel that is wrong
        last = "NOT FINISHED: 7 passed, 1 failed"
        record = json.loads((output / "bench.json").read_text())
        assert record["checks"][KERNELS]["status"] == "not finished: 7 passed, 1 failed"
    rows = said[said.index("benchmark ") :].splitlines()
    assert rows[1].startswith("kernels") and any(row.endswith(last) for row in rows[1:3])


def test_a_check_that_fails_is_in_the_record_and_the_modes_run(run_all, capsys):
    fails = "print('first line'); print('NCCL error: no such device'); sys.exit(4)"
    status, output = run_all({"good": 1.0}, kernels="print('all')", other_check=fails)
    assert status == 1 and (output / "good.json").exists()
    record = json.loads((output / "bench.json").read_text())
    assert record["complete"] and record["device"] == "a GPU"
    assert record["modes"]["good"]["status"] == record["checks"][KERNELS]["status"] == "done"
    other = record["checks"]["other"]
    assert other["status"] == "exit status 4" and other["failed"]
    assert other["last_lines"] == ["first line", "NCCL error: no such device"]
    said, faults = capsys.readouterr()
    assert "FAILED: exit status 4: NCCL error: no such device" in said
    assert "other failed (exit status 4)" in faults and "    first line\n" in faults


def test_checks_run_side_by_side(run_all, tmp_path):
    """Each waits for a file that the other one writes: one after the other, none would end."""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    wait = "import os\nwhile not os.path.exists({0!r}): time.sleep(0.05)\n".format
    kernels, other = f"{wait(a)}open({b!r}, 'w')", f"open({a!r}, 'w')\n{wait(b)}"
    status, output = run_all({"good": 1.0}, kernels=kernels, other_check=other)
    checks = json.loads((output / "bench.json").read_text())["checks"]
    assert status == 0 and {check["status"] for check in checks.values()} == {"done"}
    assert len(checks) == 2


def test_no_check_takes_more_than_its_part(run_all):
    hangs = "time.sleep(60)"
    began = time.monotonic()
    status, output = run_all({"good": 1.0}, 6 / 60, kernels="pass", other_check=hangs)
    checks = json.loads((output / "bench.json").read_text())["checks"]
    assert status == 1 and checks["other"]["status"] == "ended at the time limit"
    assert 2.0 < checks["other"]["seconds"] < 4.5 and checks[KERNELS]["status"] == "done"
    assert time.monotonic() - began < 9 and (output / "good.json").exists()


def test_a_signal_ends_everything_with_what_is_there(run_all, capsys, tmp_path):
    archive = tmp_path / "home.tar.gz"
    began = time.monotonic()
    status, output = run_all({"first": 1.0, "stopped": 1.0, "good": 1.0}, archive=archive)
    assert status == 128 + 15 and time.monotonic() - began < 20
    said, faults = capsys.readouterr()
    assert "stopped failed (stopped by a signal)" in faults
    assert "NOT MEASURED: stopped before it began" in said
    record = json.loads((output / "bench_cpu.json").read_text())
    assert not record["complete"] and list(record["modes"]) == ["first", "stopped"]
    with tarfile.open(archive) as packed:
        assert {"out/first.json", "out/stopped.json", "out/bench_cpu.json"} <= set(
            packed.getnames()
        )
    assert not (output / "good.json").exists()


def test_the_archive_has_what_this_run_wrote(run_all, tmp_path):
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "older.json"
    old.write_text("{}")
    os.utime(old, (1e9, 1e9))
    archive = tmp_path / "out" / "home.tgz"
    run_all({"hanging": 0.02, "good": 1.0}, minutes=0.1, archive=archive)
    with tarfile.open(archive) as packed:
        names = set(packed.getnames())
        log = packed.extractfile("out/logs/hanging.log").read()
    assert names == {
        *(f"out/{name}" for name in ("bench_cpu.json", "hanging.json", "hanging.png", "good.json")),
        *(f"out/logs/{name}.log" for name in ("hanging", "good")),
    }
    assert log == b"hangs\n"


def test_what_could_not_be_measured_is_in_the_table_with_the_reason(run_all, capsys):
    status, _ = run_all({"partial": 1.0})
    said = capsys.readouterr().out
    assert status == 1
    assert re.search(r"b, c and 1 more +NOT MEASURED: no time left\n", said)
    assert re.search(r" e +FAILED: ValueError: bad\n", said)
    assert "predicted" not in said


def test_everything_that_is_wrong_is_said_at_once(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    words = ["all", "--minutes", "1.5", "--output", str(tmp_path / "file"), "--archive", "home.zip"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
    with pytest.raises(UserError) as refusal:
        benchmark.main()
    short, output, archive = refusal.value.faults
    assert "40 s and 45 s to finish" in short and "at least 2.2" in short
    assert "file: is a file; name a directory" in output
    assert "home.zip: must end in .tar.gz or .tgz" in archive


def test_on_the_cpu_it_is_said_that_nothing_was_tested(run_all, capsys):
    run_all({"good": 1.0})
    assert "kernels: not checked, since on the CPU" in capsys.readouterr().out


def test_the_kernel_tests_are_those_that_compute_on_a_gpu():
    """As pytest finds them, without running any."""
    words = [word for word in kernel_tests() if not re.fullmatch(r"-n|\d+", word)]
    listed = subprocess.run([*words, "--collect-only"], capture_output=True, text=True).stdout
    for name in (
        "test_every_backend_at_the_sizes_of_training",
        "test_a_model_trains_with_each_as_with_plain_pytorch",
        "test_the_fast_paths_train_like_the_plain_one",
        *(f"test_{operation}[" for operation in ("residual_norm", "gated_gelu", "cross_entropy")),
    ):
        assert name in listed, name


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
    _, output = run_all({"hanging": 1.0}, minutes=3 / 60)
    child = json.loads((output / "hanging.json").read_text())["child"]
    with pytest.raises(ProcessLookupError):
        for _ in range(50):  # until init has reaped it
            os.kill(child, 0)
            time.sleep(0.1)


def test_every_mode_has_its_place():
    assert list(benchmark_all.WEIGHTS) == list(MODES)


def test_no_time_at_all_is_refused(monkeypatch, tmp_path):
    words = ["benchmark.py", "all", "--minutes", "0", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(UserError, match="--minutes 0: must be"):
        benchmark.main()
    assert not (tmp_path / "out").exists()


def test_all_tests_that_want_a_gpu_are_collected_there():
    """And the test files there need no package that `convert_hf.py` is checked with."""
    tests = Path(__file__).resolve().parents[2]
    places = [tests / place for place in (*GPU_TESTS, GRAPH_TESTS)]
    collected = {
        path
        for place in places
        for path in ([place] if place.is_file() else place.rglob("test_*.py"))
    }
    marked = {path for path in tests.rglob("test_*.py") if "mark.gpu" in path.read_text()}
    assert marked and marked - {Path(__file__).resolve()} <= collected
    packages = "gguf|onnx|onnxruntime|xllamacpp|mteb|sentence_transformers"
    at_the_top = re.compile(rf"^(import|from) ({packages})\b", re.MULTILINE)
    assert not [path for path in collected if at_the_top.search(path.read_text())]
