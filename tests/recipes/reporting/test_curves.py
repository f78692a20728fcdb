"""Curves: what was logged is what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from report_scenarios import write_run

from recipes.reporting.curves import bin_means, loss_figure, throughput_figure
from recipes.reporting.runs import load_runs


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
