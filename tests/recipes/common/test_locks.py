"""A directory has one writer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recipes.common.errors import UserError
from recipes.common.locks import lock


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
