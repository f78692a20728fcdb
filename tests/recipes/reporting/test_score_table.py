from __future__ import annotations

import json
import math

import pytest
from matplotlib.image import imread
from report_scenarios import result, save

from recipes.common.errors import UserError
from recipes.reporting.score_figure import figure
from recipes.reporting.score_table import console, markdown, record, table, write_scores
from recipes.reporting.scores import STAND_IN, load_results, summarize
from recipes.tasks.glue_tasks import TASKS


def all_eight(score: float = 0.8, **changes) -> list[dict]:
    return [
        result(task, 17 + k, score, **changes) for task in TASKS for k in range(TASKS[task].seeds)
    ]


def test_mean_deviation_and_best_by_hand():
    series = summarize("base", [result("cola", 17 + k, x) for k, x in enumerate((0.5, 0.6, 0.4))])
    (cola,) = series.tasks
    assert cola.mean == pytest.approx(50)
    # squares of 0, 10 and -10, over n - 1 = 2
    assert cola.deviation == pytest.approx(math.sqrt((0 + 100 + 100) / 2))
    assert cola.best == pytest.approx(60)
    assert series.average_name == "average of 1 task"


@pytest.mark.parametrize(
    ("checkpoint", "recorded", "shown"),
    [
        ("runs/mnli-seed3/export", {"start_task": None}, "pretrained"),
        ("renamed", {"start_task": "mnli"}, "MNLI"),
        ("renamed", {"start_task": "cola"}, "pretrained"),
        ("glue/mnli-seed17", {}, "MNLI"),  # by an older version
        ("runs/base", {}, "pretrained"),
        ("renamed", {"start_task": None, "from_scratch": True}, "random weights"),
    ],
)
def test_where_a_result_starts_from_is_what_it_says_and_not_how_a_path_is_spelt(
    checkpoint, recorded, shown
):
    one = result("rte", 17, 0.6) | {"checkpoint": checkpoint} | recorded
    (rte,) = summarize("base", [one]).tasks
    assert rte.start == shown


def test_the_average_is_over_tasks_not_over_jobs():
    results = [result("mnli", 17, 0.9)] + [result("rte", 17 + k, 0.6) for k in range(5)]
    series = summarize("base", results)
    assert series.average == pytest.approx((90 + 60) / 2)


def test_only_all_eight_of_glue_make_a_glue_average():
    assert summarize("base", all_eight()).average_name == "GLUE average"
    seven = [one for one in all_eight() if one["task"] != "qqp"]
    assert summarize("base", seven).average_name == "average of 7 tasks"
    assert summarize("base", all_eight(stand_in=True)).average_name == "average of 8 stand-ins"


def test_the_table_by_hand():
    metrics = {"matched": {"accuracy": 0.9}, "mismatched": {"accuracy": 0.8}}
    series = summarize(
        "base",
        [
            result("sst2", 17, 0.91),
            result("sst2", 18, 0.93),
            result("mnli", 17, 0.85, metrics=metrics, dollars=1.5, seconds=3600),
            result("mrpc", 17, 0.7, metrics={"accuracy": 0.7, "f1": 0.75}),
        ],
    )
    assert table(series)[1:] == [
        (
            "MNLI",
            "accuracy",
            "85.0",
            "-",
            "85.0",
            "1",
            "-",
            "pretrained",
            "matched/accuracy 90.0, mismatched/accuracy 80.0",
            "1h00m",
            "$1.50",
        ),
        ("SST-2", "accuracy", "92.0", "1.4", "93.0", "2", "-", "pretrained", "-", "3m00s", "$0.50"),
        ("MRPC", "accuracy", "70.0", "-", "70.0", "1", "-", "MNLI", "f1 75.0", "1m30s", "$0.25"),
        ("average of 3 tasks", "", "82.3", "", "", "4", "-", "", "", "1h04m", "$2.25"),
    ]
    assert series.notes == ["fewer seeds than published: sst2 2 of 3, mrpc 1 of 5"]


def test_what_differs_from_the_recipe_is_said():
    series = summarize(
        "base",
        [
            result("rte", 17, 0.6, checkpoint="runs/base", checkpoint_sha256="00"),
            result("cola", 17, 0.5, checkpoint_sha256="22", notes=["9 records skipped"]),
        ],
    )
    notes = "\n".join(series.notes)
    assert "rte starts from pretrained, not from MNLI's result" in notes
    assert "2 different pretrained checkpoints" in notes
    assert series.task_notes == ["cola: 9 records skipped"]
    assert "- cola: 9 records skipped" in markdown([series])
    assert "1 note about the data" in console([series])
    scratch = summarize("none", [result("rte", 17, 0.5, from_scratch=True)])
    assert scratch.tasks[0].start == "random weights"


def test_stand_ins_are_named_everywhere(tmp_path):
    series = [summarize("demo", all_eight(stand_in=True))]
    assert console(series).startswith(STAND_IN)
    assert markdown(series).startswith(f"# {STAND_IN}\n")
    assert record(series)["title"] == STAND_IN and record(series)["stand_in"] is True
    assert figure(series).get_suptitle() == STAND_IN
    for text in (console(series), markdown(series), json.dumps(record(series))):
        assert "GLUE average" not in text
    assert STAND_IN not in markdown([summarize("base", all_eight())])


def test_stand_ins_and_glue_do_not_mix():
    with pytest.raises(UserError, match="stand-ins .cola. and GLUE's own tasks .rte."):
        summarize("base", [result("rte", 17, 0.5), result("cola", 17, 0.5, stand_in=True)])


def test_the_figure_has_a_bar_per_task_a_dot_per_seed_and_the_averages():
    series = [summarize("base", all_eight(0.8)), summarize("scratch", all_eight(0.5))]
    (axes,) = figure(series).axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([80] * 8 + [50] * 8)
    dots = sum(len(line.get_ydata()) for line in axes.lines if line.get_marker() != "None")
    assert dots == 2 * (1 + 1 + 1 + 5 + 4 + 3 + 5 + 5)
    levels = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "None"]
    assert levels == pytest.approx([80, 50])


def test_the_files(tmp_path):
    directory = save(tmp_path / "glue", *all_eight())
    printed = write_scores({"base": load_results(directory)}, tmp_path / "out")
    assert "GLUE average" in printed
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    (series,) = scores["series"]
    assert series["average"] == {
        "name": "GLUE average",
        "score": pytest.approx(80),
        "tasks": 8,
    }
    assert series["tasks"]["rte"]["scores"] == {str(17 + k): pytest.approx(80) for k in range(5)}
    assert series["dollars"] == pytest.approx(25 * 0.25)
    assert series["seconds"] == pytest.approx(25 * 90)
    assert imread(tmp_path / "out" / "scores.png").shape[2] == 4
    assert "| GLUE average |" in (tmp_path / "out" / "scores.md").read_text()


def test_results_left_out_and_files_of_others(tmp_path):
    directory = save(tmp_path, result("rte", 17, 0.5), result("rte", 18, 0.6))
    (directory / "custom-seed17.json").write_text("{}")
    (directory / "scores.json").write_text("{}")
    assert [one["seed"] for one in load_results(directory)] == [17, 18]
    left = load_results(directory, without=[directory / "rte-seed17.json"])
    assert [one["seed"] for one in left] == [18]


def test_every_damaged_result_is_named(tmp_path):
    save(tmp_path, result("rte", 17, 0.5))
    (tmp_path / "rte-seed18.json").write_text('{"task": "rte", "se')
    (tmp_path / "rte-seed19.json").write_text('{"task": "rte"}')
    (tmp_path / "rte-seed20.json").write_text(json.dumps(result("rte", 20, math.nan)))
    (tmp_path / "rte-seed21.json").write_text(json.dumps(result("cola", 21, 0.5)))
    (tmp_path / "rte-seed22.json").write_text(json.dumps({**result("rte", 22, 0.5), "score": "x"}))
    (tmp_path / "rte-seed23.json").write_text("[]")
    with pytest.raises(UserError) as caught:
        load_results(tmp_path)
    assert len(caught.value.faults) == 6


def test_the_chance_level_of_each_task_is_in_table_and_figure():
    chance = {"score": 0.684, "metrics": {"accuracy": 0.684}}
    series = summarize("base", [result("mrpc", 17, 0.8, chance=chance), result("cola", 17, 0.5)])
    assert [row[6] for row in table(series)] == ["chance", "-", "68.4", "-"]
    assert series.chance is None, "one of two is not known"
    (axes,) = figure([series]).axes
    (level,) = [path for lines in axes.collections for path in lines.get_segments()]
    assert level[:, 1].tolist() == pytest.approx([68.4, 68.4])
    both = summarize("base", all_eight(chance={"score": 0.5, "metrics": {}}))
    assert both.chance == pytest.approx(50)
