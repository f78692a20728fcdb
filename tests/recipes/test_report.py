"""The command: which report it makes of which directories."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from report_scenarios import write_comparison, write_results, write_run

from recipes import report
from recipes.common.errors import UserError
from recipes.tasks.glue_tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("program", [["recipes/report.py"], ["-m", "recipes.report"]])
def test_the_command_writes_the_report_beside_the_first_run(tmp_path, program):
    paths = [write_run(tmp_path / "base", steps=300), write_run(tmp_path / "other", evals=False)]
    ended = subprocess.run(
        [sys.executable, *program, *map(str, paths), "--records", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] == str(tmp_path / "base" / "report.html")
    assert "300 of 50" in ended.stdout
    for name in ("loss.png", "throughput.png"):
        pixels = imread(tmp_path / "base" / name)
        assert pixels.shape[1] == 1350
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10, "blank"
    assert not list(tmp_path.rglob("*.partial"))


def test_the_command_says_what_is_wrong_without_a_traceback(tmp_path):
    ended = subprocess.run(
        [sys.executable, "recipes/report.py", str(tmp_path / "nowhere")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2
    assert ended.stderr == f"error: {tmp_path}/nowhere: no such directory\n"


def test_results_of_finetuning_become_a_score_table(tmp_path, capsys):
    base = write_results(tmp_path / "glue", rte=0.7)
    control = write_results(tmp_path / "control", rte=0.5)
    assert report.main([str(base), str(control)]) == 0
    shown = capsys.readouterr().out
    assert "average of 1 task" in shown and "70.0" in shown and "50.0" in shown
    assert shown.splitlines()[-1] == str(base / "scores.html")
    for name in ("scores.md", "scores.json", "scores.png"):
        assert (base / name).exists() and not (control / name).exists()


def test_the_directory_of_cram_becomes_a_comparison(tmp_path, capsys):
    write_comparison(tmp_path)
    assert report.main([str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["rapidbert-tiny", "bert-tiny"]  # not by the alphabet
    assert shown[-1] == str(tmp_path / "out" / "equal_time.md")
    assert (tmp_path / "out" / "equal_time.png").exists()
    # Its runs by themselves are runs.
    models = [str(tmp_path / name) for name in ("rapidbert-tiny", "bert-tiny")]
    assert report.main([*models, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "report.html")


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / "none"), str(tmp_path / "empty"), "--output", str(tmp_path / "file")]
    with pytest.raises(UserError) as caught:
        report.main(words)
    assert caught.value.faults[:2] == (
        f"--output {tmp_path / 'file'}: is a file; name a directory",
        f"{tmp_path / 'none'}: no such directory",
    )
    assert caught.value.faults[2].startswith(f"{tmp_path / 'empty'}: no config.json, so no run")
    with pytest.raises(UserError, match="name at least one directory"):
        report.main([])


def test_what_cannot_be_read_is_named_and_the_rest_reported(tmp_path, capsys):
    """A damaged run, a damaged result, a torn log, a run that goes on, no GPU."""
    run = write_run(tmp_path / "base", device="cpu")
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 41, "sequ')
    write_results(run / "glue", rte=0.7)
    (run / "glue" / "cola-seed17.json").write_text("{")
    (run / "leaderboard.json").write_text("{")
    broken = write_run(tmp_path / "broken", steps=0)
    named = [str(run), str(broken), str(tmp_path / "none")]
    assert report.main([*named, "--records", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    page = (run / "report.html").read_text()
    for said in (
        f"{tmp_path / 'none'}: no such directory",
        f"{broken}/log.jsonl: no training step among 0 records and 0 torn lines",
        f"{run}/glue/cola-seed17.json: damaged result",
        f"{run}/leaderboard.json: no leaderboard",
    ):
        assert f"left out: {said}" in captured.err
        assert f"Left out: {said}" in page
        assert f"- left out: {said}" in (run / "report.md").read_text()
    assert f"{run}/log.jsonl: 1 torn line(s) left out" in captured.err
    assert "1 torn line(s)" in page and "base is not finished: step 40 of 50" in page
    assert "average of 1 task" in page and "no GPU" in page
    assert (run / "leaderboard.json").read_text() == "{"


def test_records_of_other_versions_are_reported_as_far_as_they_go(tmp_path):
    """A configuration of nothing but a name, a step without any rate, results of few words."""
    run = write_run(tmp_path / "base")
    (run / "config.json").write_text('{"model": {"name": "m"}, "run": ["x"], "versions": 3}')
    step = {"step": 1, "sequences": 1, "tokens": 1, "seconds": 1, "loss/train": None}
    (run / "log.jsonl").write_text(json.dumps(step | {"throughput/tokens_per_sec": "fast"}))
    write_results(run / "glue", cola=0.5)
    one = json.loads((run / "glue" / "cola-seed17.json").read_text())
    (run / "glue" / "cola-seed17.json").write_text(json.dumps(one | {"settings": [], "chance": 3}))
    assert report.main([str(run), "--records", str(tmp_path)]) == 0
    page = (run / "report.html").read_text()
    assert "size unknown, on ? × unknown device" in page and "No throughput was logged." in page
    assert page.count("not recorded") >= 3


def test_the_repositorys_records_are_found_from_any_folder(tmp_path, monkeypatch):
    run = write_run(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "docs/results/peers_cpu.json" in page and "no peers.json" not in page


def test_a_leaderboard_gets_a_line_for_each_run(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("base", "other")]
    for run, score in zip(runs, (0.7, 0.8), strict=True):
        write_results(run / "glue", rte=score, cola=score)
    board = tmp_path / "shared" / "board.json"
    words = ["--leaderboard", str(board), "--records", str(tmp_path)]
    for run in (*runs, runs[0]):
        report.main([str(run), *words])
    report.main([str(runs[1] / "glue"), *words])
    lines = json.loads(board.read_text())["lines"]
    assert [(line["name"], line["score"]) for line in lines] == [
        ("base", pytest.approx(70)),
        ("other", pytest.approx(80)),
    ]
    for page in (runs[0] / "report.html", runs[1] / "glue" / "scores.html"):
        assert "ModernBERT-base (published)" in page.read_text()


def test_a_leaderboard_alone_becomes_a_table_and_a_figure(tmp_path, capsys):
    board = tmp_path / "board.json"
    with pytest.raises(UserError, match="no such file"):
        report.main(["--leaderboard", str(board)])
    line = {"key": "1", "name": "mine", "score": 84.25, "benchmark": "GLUE"}
    line |= {"tasks": {task: {} for task in TASKS}, "gpu_hours": 8.0, "dollars": 20.0}
    board.write_text(json.dumps({"lines": [line]}))
    assert report.main(["--leaderboard", str(board)]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == str(tmp_path / "leaderboard.html")
    (row,) = [words for words in map(str.split, shown.splitlines()) if words[:1] == ["mine"]]
    assert row[1] == "84.2" and row[-2:] == ["8.00", "$20.00"]
    assert "| mine | 84.2 |" in (tmp_path / "leaderboard.md").read_text()
    assert imread(tmp_path / "leaderboard.png").shape[2] == 4


def test_directories_of_two_kinds_have_no_report_in_common(tmp_path):
    run = write_run(tmp_path / "base")
    results = write_results(run / "glue", rte=0.7)
    with pytest.raises(UserError) as caught:
        report.main([str(run), str(results)])
    assert caught.value.faults == (
        f"{run}: a run",
        f"{results}: results of finetuning",
        "one report is of one kind of directory; make one for each kind",
    )
    comparisons = [write_comparison(tmp_path / name) for name in "ab"]
    with pytest.raises(UserError, match="one report is of one comparison"):
        report.main([str(path) for path in comparisons])


def test_a_directory_above_runs_names_them(tmp_path):
    write_run(tmp_path / "runs" / "mine")
    with pytest.raises(UserError, match=r"There are runs in it: .*runs/mine$"):
        report.main([str(tmp_path / "runs")])


def test_what_is_named_wrongly_is_refused_at_once(tmp_path):
    """A run under two names would stand beside itself, and be taken for two."""
    run = write_run(tmp_path / "base")
    (tmp_path / "link").symlink_to("base")
    words = [str(run), str(tmp_path / "link"), "--records", str(tmp_path / "none")]
    with pytest.raises(UserError) as error:
        report.main(words)
    assert list(error.value.faults) == [
        f"--records {tmp_path / 'none'}: no such directory",
        f"{tmp_path / 'link'}: is named as {run}, too; name it once",
    ]
    with pytest.raises(UserError, match="base: is named twice; name it once"):
        report.main([str(run), str(run)])
    assert not (run / "report.md").exists()


def test_a_file_that_is_no_leaderboard_is_named_although_no_line_is_for_it(tmp_path, capsys):
    run, table = write_run(tmp_path / "base"), tmp_path / "table.csv"
    table.write_text("a,b\n")
    words = [str(run), "--leaderboard", str(table), "--records", str(tmp_path)]
    assert report.main(words) == 0
    assert f"left out: {table}: no leaderboard" in capsys.readouterr().err
    assert table.read_text() == "a,b\n"


def test_steps_without_effect_are_reported(tmp_path, capsys):
    """Of a loss that was NaN from step 2 on, the table had shown that of step 1 alone."""
    run = write_run(tmp_path / "base", steps=1)
    with (run / "log.jsonl").open("a") as log:
        where = {"step": 10, "sequences": 1, "tokens": 1, "seconds": 9}
        log.write(json.dumps({**where, "loss/train": None, "optimizer/skipped_steps": 9}) + "\n")
    assert report.main([str(run), "--records", str(tmp_path)]) == 0
    assert "10 of 50, 9 without effect" in capsys.readouterr().out
    assert "9 of 10 steps were without effect" in (run / "report.html").read_text()
    assert "9 without effect" in (run / "report.md").read_text()
