"""The report of a scaling sweep, from records whose numbers are made up here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from recipes import report
from recipes.common.errors import UserError
from recipes.reporting import scaling


def write_point(
    sweep: Path, devices: int, batch: int, speeds: list[float], device: str = "NVIDIA H200"
) -> Path:
    """A run's directory with a window of each of these speeds."""
    directory = sweep / f"gpus-{devices}-batch-{batch}"
    directory.mkdir(parents=True)
    config = {
        "model": {"name": sweep.name, "parameters": 435_221_312},
        "world_size": devices,
        "device": device,
        "versions": {"torch": "2.13.0"},
        "git_revision": "abc123",
        "requested_global_batch": batch,
        "global_batch": batch // devices * devices,
        "micro_batch": batch // devices,
        "accumulation": 1,
        "data": {"unigram_entropy_nats": 6.46},
    }
    (directory / "config.json").write_text(json.dumps(config))
    records = [
        {"step": 5 * n, "sequences": n, "tokens": n, "seconds": n, "loss/train": 9.0}
        | {"throughput/tokens_per_sec": speed, "throughput/device/mfu": 0.4}
        for n, speed in enumerate(speeds, 1)
    ]
    (directory / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return directory


@pytest.fixture
def sweep(tmp_path) -> list[Path]:
    """8 and 200 devices, two global batches; the first window of each run is slow."""
    directory = tmp_path / "scaling" / "rapidbert-large"
    return [
        write_point(directory, 8, 4096, [1, 800, 900, 1000]),
        write_point(directory, 8, 65536, [1, 1000, 1000]),
        write_point(directory, 200, 4096, [1, 9000, 9000]),
        write_point(directory, 200, 65536, [1, 20000]),
    ]


def test_only_the_directories_of_a_sweep_are_one(sweep, tmp_path):
    assert scaling.is_sweep(sweep)
    assert scaling.is_sweep([Path(f"{path}/") for path in sweep])
    assert not scaling.is_sweep([*sweep, tmp_path / "runs" / "base"])


def test_the_table_by_hand(sweep):
    [found] = scaling.load_sweeps(sweep)
    assert scaling.table(found) == [
        ("devices", "global batch", "micro-batch x accumulation", "real tokens/s", "per device")
        + ("MFU, 6N", "efficiency"),
        ("8 x GPU", "4,096", "512 x 1", "900", "112", "40.0%", "100.0%"),
        ("8 x GPU", "65,536", "8192 x 1", "1,000", "125", "40.0%", "100.0%"),
        ("200 x GPU", "4,000", "20 x 1", "9,000", "45", "40.0%", "40.0%"),  # 45 / 112.5
        ("200 x GPU", "65,400", "327 x 1", "20,000", "100", "40.0%", "80.0%"),
    ]


def test_the_figure_shows_a_line_for_each_number_of_devices(sweep):
    [found] = scaling.load_sweeps(sweep)
    speed, each = scaling.figure(found).axes
    drawn = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in speed.lines}
    assert drawn == {
        "8 x GPU": [[4096, 900], [65536, 1000]],
        "200 x GPU": [[4096, 9000], [65536, 20000]],
    }
    assert [np.asarray(line.get_ydata()).tolist() for line in each.lines] == [
        [112.5, 125],
        [45, 100],
    ]


def test_runs_without_a_speed_are_named_and_the_others_shown(sweep, capsys):
    failed = sweep[0].parent / "gpus-64-batch-4096"
    failed.mkdir()
    short = write_point(sweep[0].parent, 64, 65536, [5000])
    report.main([str(path) for path in (*sweep, failed, short)])
    shown = capsys.readouterr().out
    written = sweep[0].parent.parent / "scaling-rapidbert-large.md"
    assert shown.splitlines()[-1] == str(written)
    for text in (shown, written.read_text()):
        assert f"{failed}: no config.json" in text
        assert f"{short}: no window after the first" in text
    assert "| 200 x GPU | 4,000 |" in written.read_text()
    assert "![scaling](scaling-rapidbert-large.png)" in written.read_text()
    pixels = imread(written.with_suffix(".png"))
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10, "blank"


def test_a_sweep_without_any_speed_is_an_error(tmp_path):
    point = write_point(tmp_path / "rapidbert-base", 8, 4096, [5000])
    with pytest.raises(UserError, match="no window after the first"):
        scaling.load_sweeps([point])


def test_models_and_devices_have_reports_of_their_own(tmp_path):
    points = [
        write_point(tmp_path / directory / model, 2, 8, [1, 5], device)
        for directory, model, device in (
            ("a", "rapidbert-base", "NVIDIA H200"),
            ("a", "rapidbert-large", "NVIDIA H200"),
            ("b", "rapidbert-base", "cpu"),
        )
    ]
    sweeps = scaling.load_sweeps(points)
    names = [path.name for path in scaling.write_reports(sweeps, tmp_path / "out")]
    assert names == [
        "scaling-rapidbert-base-NVIDIA-H200.md",
        "scaling-rapidbert-base-cpu.md",
        "scaling-rapidbert-large.md",
    ]
    assert "2 x CPU process" in (tmp_path / "out" / names[1]).read_text()
