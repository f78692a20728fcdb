"""A directory has one writer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recipes.common.errors import UserError
from recipes.common.locks import alone_with, lock


def test_a_second_process_is_refused(tmp_path):
    code = (
        "import sys; from pathlib import Path; from recipes.common.locks import lock\n"
        "lock(Path(sys.argv[1]), 'working'); print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[3],
    )
    assert holder.stdin and holder.stdout
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(UserError, match=f"another process is working .*pid {holder.pid} on"):
        lock(tmp_path, "working")
    holder.kill()
    holder.wait()
    lock(tmp_path, "working")  # free as soon as the other has ended, however it ended


def test_a_writer_that_is_suspended_keeps_no_other_waiting_for_ever(tmp_path):
    path = tmp_path / "board.json"
    with alone_with(path):
        with pytest.raises(
            UserError, match="another process has .* 0.05 seconds; .*board.json.lock"
        ):
            with alone_with(path, patience=0.05):
                raise AssertionError
    with alone_with(path, patience=0):
        path.touch()


def test_without_locks_the_work_goes_on_and_it_is_said(tmp_path, monkeypatch, capsys):
    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("recipes.common.locks.fcntl.flock", none)
    with alone_with(tmp_path / "board.json", patience=0):
        pass
    assert "cannot be locked (No locks available)" in capsys.readouterr().out
