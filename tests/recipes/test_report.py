import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lock_scenarios import held
from matplotlib.image import imread

from recipes import report
from recipes.common import locks
from recipes.common.errors import UserError
from recipes.report import (
    aligned,
    bin_means,
    load_runs,
    loss_figure,
    markdown,
    table,
    throughput_figure,
)

ROOT = Path(__file__).resolve().parents[2]


def write_run(directory: Path, *, steps: int = 40, evals: bool = True, **config) -> Path:
    directory.mkdir(parents=True)
    settings = {
        "model": {"name": "rapidbert-base", "parameters": 137_300_000},
        "run": {"seed": 7, "data": "data/c4"},
        "world_size": 8,
        "device": "NVIDIA H200",
        "versions": {"torch": "2.13.0"},
        "git_revision": "abc123",
        "global_batch": 4096,
        "micro_batch": 512,
        "accumulation": 1,
        "total_steps": 50,
        "sequences": 50 * 4096,
        "data": {"unigram_entropy_nats": 6.46, "train_tokens": 10**9},
        **config,
    }
    (directory / "config.json").write_text(json.dumps(settings))
    records = []
    for step in range(1, steps + 1):
        where = {"step": step, "sequences": 4096 * step, "tokens": 450_000 * step, "seconds": step}
        speed = {
            "throughput/tokens_per_sec": 1e6 + step,
            "throughput/padding_share": 0.02,
            "throughput/device/mfu": 0.4,
            "time/data_wait_share": 0.01,
            "cost/dollars": 0.5 * step,
        }
        records.append({**where, "loss/train": 10 - 0.1 * step, **speed})
        if evals and step % 20 == 0:
            records.append({**where, "loss/eval": 9 - 0.1 * step, "accuracy/eval": 0.01 * step})
    (directory / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return directory


def column(directory: Path) -> dict[str, str]:
    return {name: value for name, value in table(load_runs([directory]))}


def test_the_table_by_hand(tmp_path):
    assert column(write_run(tmp_path / "base")) == {
        "": "base",
        "model": "rapidbert-base",
        "parameters": "137.3 M",
        "devices": "8 × NVIDIA H200",
        "steps": "40 of 50",
        "sequences": "163,840",
        "tokens": "18,000,000",
        "training loss (nats)": "6.000",
        "evaluation loss at 15% masking (nats)": "5.000",
        "evaluation accuracy at 15% masking": "40.0%",
        "unigram entropy (nats)": "6.460",
        "real tokens/s (median)": "1,000,020",
        "padding (median)": "2.0%",
        "MFU, 6N (median)": "40.0%",
        "executed-FLOPs utilisation (median)": "-",
        "wall time": "40s",
        "cost": "$20.00",
    }


def test_a_loss_that_was_not_finite_is_passed_over(tmp_path):
    run = write_run(tmp_path / "base")
    lost = {"step": 41, "sequences": 167_936, "tokens": 1, "seconds": 41, "loss/train": None}
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps(lost) + "\n")
    cells = column(run)
    assert cells["steps"] == "41 of 50"
    assert cells["training loss (nats)"] == "6.000"


def test_torn_lines_are_counted_and_said(tmp_path, capsys):
    run = write_run(tmp_path / "base")
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 41, "sequ')
    assert column(run)["steps"] == "40 of 50"
    assert "log.jsonl: 1 torn line(s) left out" in capsys.readouterr().err


def test_all_faults_of_all_runs_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    unlogged = write_run(tmp_path / "unlogged", steps=0)
    lacking = write_run(tmp_path / "lacking", data={}, device=None)
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
        "lacking/config.json: lacks device, data.unigram_entropy_nats",
    ]
    assert faults[5].startswith("broken/config.json: not JSON (")
    assert len(faults) == 6


def test_runs_of_one_name_are_told_apart(tmp_path):
    paths = [write_run(tmp_path / "a" / "base"), write_run(tmp_path / "b" / "base")]
    assert table(load_runs(paths))[0] == ("", *map(str, paths))


def test_columns_are_aligned():
    assert aligned([("", "a"), ("loss", "1.5")]).splitlines() == ["      a", "loss  1.5"]


def test_the_markdown_holds_every_setting_and_escapes_bars(tmp_path):
    run = write_run(tmp_path / "base", run={"seed": 7, "data": "a|b"})
    text = markdown(load_runs([run]))
    for row in ("| seed | `7` |", "| data | `a\\|b` |", "| torch | `2.13.0` |"):
        assert row in text
    assert "![loss](loss.png)" in text


def test_bin_means_by_hand():
    xs = np.array([0.0, 1.0, 2.0, 9.0, 10.0])
    x_means, y_means = bin_means(xs, 10 * xs, 5, logarithmic=False)
    # Bins [0, 2) [2, 4) [4, 6) [6, 8) [8, 10]; the two in the middle are empty.
    assert x_means.tolist() == [0.5, 2.0, 9.5]
    assert y_means.tolist() == [5.0, 20.0, 95.0]


def test_bin_means_follow_the_logarithm_of_the_axis():
    xs = np.array([1.0, 2.0, 20.0, 50.0, 1000.0])
    x_means, _ = bin_means(xs, xs, 3, logarithmic=True)
    assert x_means.tolist() == [1.5, 35.0, 1000.0]


def test_bin_means_keep_the_sum():
    rng = np.random.default_rng(0)
    xs, ys = np.sort(rng.uniform(1, 1e6, 1000)), rng.normal(size=1000)
    for logarithmic in (False, True):
        x_means, y_means = bin_means(xs, ys, 1, logarithmic=logarithmic)
        assert (x_means[0], y_means[0]) == pytest.approx((xs.mean(), ys.mean()))


def test_the_loss_figure_shows_what_was_logged(tmp_path):
    (axes,) = loss_figure(load_runs([write_run(tmp_path / "base")])).axes
    lines = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}
    assert set(lines) == {"training", "evaluation, 15% masked", "unigram entropy 6.46"}
    assert lines["training"][-1, 1] == pytest.approx(6.0)
    assert lines["evaluation, 15% masked"][:, 0].tolist() == [20 * 4096, 40 * 4096]
    assert axes.get_xscale() == "linear"


def test_two_decades_of_sequences_get_a_logarithmic_axis(tmp_path):
    (axes,) = loss_figure(load_runs([write_run(tmp_path / "base", steps=100)])).axes
    assert axes.get_xscale() == "log"


def test_one_entropy_line_for_runs_on_the_same_text(tmp_path):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    (axes,) = loss_figure(load_runs(paths)).axes
    assert axes.get_legend_handles_labels()[1] == [
        "a: training",
        "b: training",
        "a: evaluation, 15% masked",
        "b: evaluation, 15% masked",
        "unigram entropy 6.46",
    ]


def test_the_throughput_figure_shows_what_was_logged(tmp_path):
    figure = throughput_figure(load_runs([write_run(tmp_path / "base", evals=False)]))
    speed, lost = figure.axes
    assert np.asarray(speed.lines[0].get_ydata()).tolist() == [1e6 + step for step in range(1, 41)]
    assert [np.asarray(line.get_ydata())[0] for line in lost.lines] == [0.02, 0.01]


@pytest.mark.parametrize("program", [["recipes/report.py"], ["-m", "recipes.report"]])
def test_the_command_writes_the_report_beside_the_first_run(tmp_path, program):
    paths = [write_run(tmp_path / "base", steps=300), write_run(tmp_path / "other", evals=False)]
    ended = subprocess.run(
        [sys.executable, *program, *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] == str(tmp_path / "base" / "report.md")
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


def test_two_reports_do_not_share_a_directory_but_a_run_may_train_in_it(tmp_path):
    with held(tmp_path, locks.LOCK):
        report.make_directory(tmp_path)
    (tmp_path / "other").mkdir()
    with held(tmp_path / "other", report.REPORT_LOCK):
        with pytest.raises(UserError, match="another process is writing a report into it"):
            report.make_directory(tmp_path / "other")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file; name a directory"):
        report.make_directory(tmp_path / "file")
