from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("start", [["recipes/stand_in_tasks.py"], ["-m", "recipes.stand_in_tasks"]])
def test_command_line(tmp_path, start):
    command = [sys.executable, *start, "--output", str(tmp_path / "glue")]
    done = subprocess.run([*command, "--train", "60"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("STAND-IN TASKS: not GLUE")
    assert (tmp_path / "glue" / "MNLI" / "dev_mismatched.tsv").exists()
    wrong = subprocess.run([*command, "--dev", "0"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "--dev" in wrong.stderr and "Traceback" not in wrong.stderr
