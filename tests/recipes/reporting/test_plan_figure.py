"""The planner's figure: it draws what was predicted, and says that it was."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from plan_scenarios import question

from recipes import plan
from recipes.common.errors import UserError
from recipes.reporting.plan_figure import figure, simulate


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plan")
    words = ("--model", "rapidbert-large", "--gpu", "a100-40", "--gpus")
    asked = question(directory, *words, "8", "64", "200")
    return simulate(asked)


def test_constant_batches_bend_and_growing_ones_do_not(simulation):
    assert list(simulation.constant) == [4096, 16_384, 65_536]
    assert [each.plan.requested for each in simulation.growing] == [4096, 32_768, 102_400]
    grown = simulation.growing[-1].times.tokens_per_second
    assert grown > 0.85 * 25 * simulation.growing[0].times.tokens_per_second
    assert simulation.planned[-1].times.tokens_per_second < 0.35 * grown


def test_the_curves_are_the_predictions_and_extrapolation_is_named(simulation):
    drawn = figure([simulation])
    speed, step, cost = drawn.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in speed.get_lines()}
    assert list(lines) == ["linear", "4,096", "16,384", "65,536", "512 per GPU"]
    assert lines["4,096"] == [each.times.tokens_per_second for each in simulation.planned]
    assert "extrapolated" in [text.get_text() for text in speed.texts]
    heights = [bar.get_height() for bar in step.patches]
    totals = [sum(heights[place::3]) for place in range(3)]
    assert totals == pytest.approx([1e3 * each.times.step.total for each in simulation.planned])
    assert len({bar.get_hatch() for bar in step.patches}) == 4  # told apart without colour
    dollars = cost.get_lines()[0].get_ydata()
    assert list(dollars) == [each.times.costs[0].dollars for each in simulation.planned]
    assert drawn.get_suptitle() == "Predicted, not measured: NVIDIA A100-SXM4-40GB"


def test_simulate_writes_figure_page_and_json(tmp_path, capsys):
    output = tmp_path / "out"
    assert plan.main(["--simulate", "--gpus", "8", "104", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("PREDICTED from data sheets") == 2
    for suffix in ("png", "md", "json"):
        assert f"predicted_scaling.{suffix}" in printed
    with Image.open(output / "predicted_scaling.png") as image:
        assert image.width > 1000
    text = (output / "predicted_scaling.md").read_text()
    assert "Everything here is a prediction" in text and "| 104* |" in text
    content = json.loads((output / "predicted_scaling.json").read_text())
    assert [each["model"] for each in content] == ["rapidbert-base", "rapidbert-large"]
    assert all(each["predicted"] is True for each in content)
    assert len(content[0]["constant"]["4096"]) == 2


def test_nothing_is_drawn_of_what_cannot_be(tmp_path):
    config = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8}
    with pytest.raises(UserError, match="no times for fp32"):
        simulate(question(tmp_path, config=config))
    with pytest.raises(UserError, match="4096 / 5000 ranks") as caught:
        plan.main(["--simulate", "--gpus", "5000", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert len(set(caught.value.faults)) == len(caught.value.faults) == 1


def test_gpus_that_cost_nothing_are_drawn(tmp_path, recwarn):
    words = ("--price-per-gpu-hour", "0", "--gpus", "16", "8")
    drawn = figure([simulate(question(tmp_path, *words))])
    assert list(drawn.axes[0].get_lines()[1].get_xdata()) == [8, 16]
    assert drawn.axes[2].get_yscale() == "linear" and not recwarn.list
