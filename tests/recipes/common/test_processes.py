"""Children of this process: what they print, how they end, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from recipes.common import processes

# Starts a child of its own, writes both numbers down, and does not listen to SIGTERM.
STUBBORN = """
import os, signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
Path(sys.argv[1]).write_text(f"{os.getpid()} {child.pid} ")
time.sleep(60)
"""


def python(code: str, *words: object) -> list[str]:
    return [sys.executable, "-S", "-c", code, *map(str, words)]


def numbers(file: Path) -> list[int]:
    """The process numbers that a stubborn child has written down."""
    while not file.exists() or not file.read_text().endswith(" "):
        time.sleep(0.01)
    return [int(number) for number in file.read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int]) -> bool:
    """Whether all have ended, within the moment that a kill takes to arrive."""
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(alive, pids))


def test_what_a_child_prints_is_in_its_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("$ command\n")
    code = "import os, sys; print(os.environ['A'], flush=True); sys.exit('error: no luck')"
    child = processes.start(python(code), log, environment={"A": "given"})
    assert processes.wait(child, 60) == 1
    assert log.read_text() == "$ command\ngiven\nerror: no luck\n"


def test_a_child_that_takes_too_long_is_killed_with_its_own_children(tmp_path):
    child = processes.start(python(STUBBORN, tmp_path / "pids"), tmp_path / "log")
    pids = numbers(tmp_path / "pids")
    assert all(map(alive, pids))
    assert processes.wait(child, 0.05) is None
    assert gone(pids)


def test_a_child_that_has_ended_leaves_no_children_behind(tmp_path):
    code = STUBBORN.replace("time.sleep(60)\n", "sys.exit(3)\n")
    child = processes.start(python(code, tmp_path / "pids"), tmp_path / "log")
    assert processes.wait(child, 60) == 3
    assert gone(numbers(tmp_path / "pids"))


def test_children_are_asked_to_end_and_then_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.3)
    polite = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(75))\n"
    polite += "open(sys.argv[1], 'w').write('0 ')\ntime.sleep(60)"
    children = [
        processes.start(python(code, tmp_path / name), tmp_path / "log")
        for name, code in (("polite", polite), ("stubborn", STUBBORN))
    ]
    numbers(tmp_path / "polite")
    pids = numbers(tmp_path / "stubborn")
    processes.stop(children)
    assert [child.returncode for child in children] == [75, -signal.SIGKILL]
    assert gone(pids)


def test_signals_are_noted_and_their_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with processes.received_signals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_reaches_the_command_in_front(tmp_path):
    began = tmp_path / "began"
    step = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "open(sys.argv[1], 'w').close()\n"
        "time.sleep(60)\n"
    )

    def end_this_process() -> None:
        while not began.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end_this_process)
    thread.start()
    assert processes.run_in_front(python(step, began), tmp_path) == 75
    thread.join()
    killed = "import os; os.kill(os.getpid(), 9)"
    assert processes.run_in_front(python(killed), tmp_path) == 128 + 9
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("text", "line", "error"),
    [
        ("", "", ""),
        ("$ command\n", "$ command", "$ command"),
        ("error: a\nmore\n\n", "more", "error: a"),
        ("torch.OutOfMemoryError: CUDA\nW: ended\n", "W: ended", "torch.OutOfMemoryError: CUDA"),
        ("10%\r20%\r30%", "30%", "30%"),
        ("ValueError: a\nKeyError\n", "KeyError", "KeyError"),
        ("no error: here\n", "no error: here", "no error: here"),
    ],
)
def test_the_last_line_and_the_last_error_of_a_log(tmp_path, text, line, error):
    log = tmp_path / "log"
    log.write_text(text)
    assert (processes.last_line(log), processes.last_error(log)) == (line, error)


def test_of_a_long_log_only_the_end_is_read(tmp_path):
    (tmp_path / "log").write_text("error: early\n" + "x" * 5000 + "\nend\n")
    assert processes.last_error(tmp_path / "log") == "end"
