"""Real launchers are killed; what they started ends, and what nobody launched goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.common import launcher

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent

# Says that it is watched, and then waits, as a rank does for ranks that never come.
RANK = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from recipes.common import launcher
launcher.LOOK_SECONDS = 0.05
launcher.end_with_launcher()
open(sys.argv[-1] + "/" + str(os.getpid()), "w").close()
time.sleep(60)
"""

# Starts its arguments, and waits for them.
START = "import subprocess, sys\nsubprocess.run(sys.argv[1:])\n"

PROGRAMS = ("torchrun", "deepspeed", "recipes/glue.py", "recipes/reporting/time.py", "plain.py")

CLEAN = {name: value for name, value in os.environ.items() if name not in launcher.MARKS}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/reporting").mkdir()
    for program in PROGRAMS:
        (tmp_path / program).write_text(START)
    (tmp_path / "pids").mkdir()
    return tmp_path


def started(
    place: Path, command: list[str], ranks: int = 1, environment: dict[str, str] = CLEAN
) -> tuple[subprocess.Popen, list[int]]:
    """The first process of `command`, and its ranks, once they are there."""
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    process = subprocess.Popen(command, env=environment, **quiet)  # type: ignore[call-overload]
    deadline = time.monotonic() + 60
    while len(pids := [int(path.name) for path in (place / "pids").iterdir()]) < ranks:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    return process, pids


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in tasks.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def have_ended(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(alive, pids))


def kill(pid: int) -> None:
    if alive(pid):
        os.kill(pid, signal.SIGKILL)


def rank_of(place: Path) -> list[str]:
    return [sys.executable, str(place / "rank.py"), str(place / "pids")]


CHAINS = {
    "torchrun": ["torchrun"],
    "the first of two": ["deepspeed", "torchrun"],
    "a script in between": ["torchrun", "plain.py"],
    "a recipe that starts others": ["recipes/glue.py"],
    "one in a folder": ["recipes/reporting/time.py"],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_process_ends_when_any_ancestor_up_to_its_launcher_is_killed(place, chain):
    for number in range(len(chain)):
        command = [word for name in chain for word in (sys.executable, str(place / name))]
        process, pids = started(place, [*command, *rank_of(place)])
        line = [process.pid]
        while len(line) < len(chain):
            line += children(line[-1])
        try:
            kill(line[number])
            assert have_ended(pids, 10)
        finally:
            for pid in (*line, *pids):
                kill(pid)
            process.wait()
            (place / "pids" / str(pids[0])).unlink()


@pytest.mark.parametrize("shell", ["python", "sh"])
def test_what_no_launcher_has_started_goes_on_without_its_parent(place, shell):
    rank = rank_of(place)
    command = (
        [sys.executable, str(place / "plain.py"), *rank]
        if shell == "python"
        else ["sh", "-c", '"$@" & wait', "sh", *rank]
    )
    # The words of a command line behind the program are no launcher's, whatever they say.
    command.insert(-1, "torchrun")
    process, pids = started(place, command)
    try:
        kill(process.pid)
        process.wait()
        assert not have_ended(pids, 0.5)
    finally:
        kill(pids[0])


def test_a_launcher_that_is_gone_before_the_first_look(place):
    """Its variables are there and it is not; a process that only has its variables ends as well."""
    environment = {**CLEAN, "TORCHELASTIC_RUN_ID": "none"}
    shell = ["sh", "-c", '"$@"; exit $?', "sh", *rank_of(place)]
    finished = subprocess.run(shell, env=environment, capture_output=True, timeout=30)
    assert finished.returncode == 128 + signal.SIGTERM
    assert b"the torchrun that started this process is gone" in finished.stderr


@pytest.mark.parametrize(
    "launch",
    [
        ["-X", "faulthandler", "torchrun"],
        ["-W", "ignore", "torchrun"],
        ["plain.py"],  # an `accelerate launch` or a debugger
    ],
)
def test_a_launcher_called_otherwise_is_none_that_is_gone(place, launch):
    """Its ranks start, and end when it does."""
    *options, program = launch
    command = [sys.executable, *options, str(place / program), *rank_of(place)]
    marked = {**CLEAN, "TORCHELASTIC_RUN_ID": "none"}
    process, pids = started(place, command, environment=marked)
    try:
        kill(process.pid)
        assert have_ended(pids, 10)
    finally:
        for pid in (process.pid, *pids):
            kill(pid)
        process.wait()


def test_the_first_of_two_launchers_is_gone_before_the_second_starts_its_ranks(place):
    """`deepspeed` is killed while `deepspeed.launcher.launch` still imports."""
    (place / launcher.LAUNCH).write_text(
        "import os, subprocess, sys, time\nopen('begun', 'w').close()\n"
        "while not os.path.exists('go'): time.sleep(0.01)\n"
        "sys.exit(subprocess.run(sys.argv[1:], stderr=open('errors', 'w')).returncode)\n"
    )
    command = [sys.executable, str(place / "deepspeed"), sys.executable, launcher.LAUNCH]
    environment = {**CLEAN, "CROSS_RANK": "0", "CROSS_SIZE": "1"}
    # In a session of its own, as in a terminal: who adopts its child is in another. In a container,
    # whose first process has everything in its session, nothing would tell the two apart.
    process = subprocess.Popen(
        [*command, *rank_of(place)], cwd=place, env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not (place / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    [second] = children(process.pid)
    kill(process.pid)
    process.wait()
    (place / "go").touch()
    assert have_ended([second], 30)
    assert "the deepspeed that started this process is gone" in (place / "errors").read_text()


REAL = {
    "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", "0"],
    "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", "2", "--no_local_rank"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_real_launchers_are_known(place, name):
    process, pids = started(place, [*REAL[name], *rank_of(place)[1:]], ranks=2)
    below = [process.pid, *children(process.pid)]
    try:
        kill(process.pid)
        assert have_ended(pids, 10)
    finally:
        for pid in (*below, *pids):
            kill(pid)
        process.wait()
