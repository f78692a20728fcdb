"""Curves: what was logged is what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from report_scenarios import restart, write_run

from recipes.reporting.curves import bin_means, loss_figure, losses_figure, throughput_figure
from recipes.reporting.figures import look
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
    drawn = {
        axes.get_title(loc="left"): np.asarray(axes.lines[0].get_xydata()) for axes in figure.axes
    }
    speed = drawn.pop("real tokens/s, all devices")
    assert speed[:, 1].tolist() == [1e6 + step for step in range(1, 41)]
    assert speed[:, 0].tolist() == list(range(1, 41))  # seconds: the run is shorter than 2 minutes
    assert {title: points[0, 1] for title, points in drawn.items()} == {
        "MFU (6N)": 0.4,
        "padding, of the tokens computed": 0.02,
        "waiting for data, of the time": 0.01,
    }


def test_losses_stand_against_steps_tokens_and_time(tmp_path):
    figure = losses_figure(load_runs([write_run(tmp_path / "base", steps=200)]))
    ends = {axes.get_xlabel(): np.asarray(axes.lines[0].get_xydata())[-1] for axes in figure.axes}
    assert set(ends) == {"step", "tokens", "minutes of wall time"}
    last = {label: (float(x), float(y)) for label, (x, y) in ends.items()}
    assert last["step"] == pytest.approx((200, -10))
    assert last["tokens"] == pytest.approx((200 * 450_000, -10))
    assert last["minutes of wall time"] == pytest.approx((200 / 60, -10))


def test_half_a_minute_is_not_500_thousandths(tmp_path):
    runs = load_runs([write_run(tmp_path / "short", steps=5)])
    figure = losses_figure(runs)
    figure.canvas.draw()
    steps, _, time = figure.axes[:3]
    labels = [label.get_text() for label in time.get_xticklabels()]
    assert "wall time" in time.get_xlabel() and not any("m" in label for label in labels)
    assert type(time.xaxis.get_major_formatter()) is not type(steps.xaxis.get_major_formatter())


def test_restarts_are_marked_where_they_were(tmp_path):
    """The second start began after 25 seconds, from step 20: its records say so."""
    loaded = load_runs([restart(write_run(tmp_path / "base"), 20, at=25)])
    assert loaded[0].restarts == [(20, 25.0)]
    for axes in throughput_figure(loaded).axes:
        marks = [line for line in axes.lines if line.get_label() == "restart"]
        assert [np.asarray(mark.get_xydata()).tolist() for mark in marks] == [[[25.0, 0.0]]]


def test_runs_are_told_apart_without_colour(tmp_path):
    paths = [write_run(tmp_path / name) for name in "abcd"]
    speed = throughput_figure(load_runs(paths)).axes[0]
    assert len({(line.get_linestyle(), line._unscaled_dash_pattern) for line in speed.lines}) == 4
    loss = losses_figure(load_runs(paths)).axes[0]
    evaluations = [line for line in loss.lines if "evaluation" in str(line.get_label())]
    assert len({line.get_marker() for line in evaluations}) == 4
    assert len({(look(n).color, look(n).dashes, look(n).marker) for n in range(140)}) == 140


def test_the_largest_value_is_not_at_the_edge(tmp_path):
    for axes in throughput_figure(load_runs([write_run(tmp_path / "base")])).axes:
        bottom, top = axes.get_ylim()
        most = max(max(np.asarray(line.get_ydata())) for line in axes.lines)
        assert bottom == 0 and 1.02 * most < top < 1.2 * most
