"""A comparison from its first command to its last: resumable, alone in its directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from lock_scenarios import held

from recipes import cram
from recipes.common import locks
from recipes.common.errors import UserError


def test_a_dry_run_shows_every_command_and_makes_nothing(tmp_path, capsys):
    words = ["--minutes", "1", "--output", str(tmp_path / "out"), "--dry-run", "--", "--seed", "3"]
    assert cram.main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    started = [Path(line.split()[1]).stem for line in shown]
    assert started == ["prepare_data", *["pretrain"] * 2, "stand_in_tasks", *["glue"] * 8]
    assert all(line.endswith("--seed 3") for line in shown[1:3])
    assert not (tmp_path / "out").exists()


def test_a_failed_step_ends_the_whole_with_its_status(tmp_path, monkeypatch, capsys):
    started = []

    def run_in_front(command, directory):
        started.append(Path(command[1]).stem)
        return 75 if len(started) == 3 else 0

    monkeypatch.setattr(cram, "run_in_front", run_in_front)
    assert cram.main(["--minutes", "1", "--output", str(tmp_path)]) == 75
    assert started == ["prepare_data", "pretrain", "pretrain"]
    assert "status 75; the same command goes on" in capsys.readouterr().err
    # A wrong setting ends the same command again.
    monkeypatch.setattr(cram, "run_in_front", lambda command, directory: 2)
    assert cram.main(["--minutes", "1", "--output", str(tmp_path)]) == 2
    assert "status 2; mend what is named above, and the same" in capsys.readouterr().err


def test_two_comparisons_do_not_share_a_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(cram, "run_in_front", lambda command, directory: 3)
    with held(tmp_path, locks.LOCK), pytest.raises(UserError, match="comparing models in it"):
        cram.main(["--minutes", "1", "--output", str(tmp_path)])
