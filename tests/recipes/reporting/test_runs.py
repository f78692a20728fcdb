"""Runs as they are read: torn lines, faults, names."""

from __future__ import annotations

import pytest
from report_scenarios import write_run

from recipes.common.errors import UserError
from recipes.reporting.runs import load_runs


def test_torn_lines_are_counted_and_said(tmp_path, capsys):
    run = write_run(tmp_path / "base")
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 41, "sequ')
    assert len(load_runs([run])[0].steps) == 40
    assert "log.jsonl: 1 torn line(s) left out" in capsys.readouterr().err


def test_all_faults_of_all_runs_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    unlogged = write_run(tmp_path / "unlogged", steps=0)
    lacking = write_run(tmp_path / "lacking", model={})
    broken = write_run(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    with pytest.raises(UserError) as caught:
        load_runs([tmp_path / "nowhere", tmp_path / "empty", unlogged, lacking, broken])
    faults = [fault.removeprefix(f"{tmp_path}/") for fault in caught.value.faults]
    assert faults[:5] == [
        "nowhere: no such directory",
        "empty: no config.json, so no run of recipes/pretrain.py",
        "empty: no log.jsonl, nothing was logged",
        "unlogged/log.jsonl: no training step among 0 records and 0 torn lines",
        "lacking/config.json: lacks model.name",
    ]
    assert faults[5].startswith("broken/config.json: not JSON (")
    assert len(faults) == 6


def test_runs_of_one_name_are_told_apart(tmp_path):
    paths = [write_run(tmp_path / "a" / "base"), write_run(tmp_path / "b" / "base")]
    assert [run.name for run in load_runs(paths)] == [str(path) for path in paths]
