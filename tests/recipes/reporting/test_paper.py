"""The paper's tables in the report, with what the runs and tasks here have beside them."""

from __future__ import annotations

from html import escape

from report_scenarios import result, write_run

from recipes.planning.published import (
    TABLE_S2,
    TABLE_S3,
    cost_inconsistencies,
    inconsistencies,
    throughput_inconsistencies,
)
from recipes.reporting.paper import TABLE_S1, Spent, cost_part, finetuning_part, throughput_part
from recipes.reporting.runs import load_runs
from recipes.reporting.scores import summarize
from recipes.tasks.glue_tasks import TASKS


def test_table_s1_is_what_the_tasks_are_finetuned_with():
    assert set(TASKS) - set(TABLE_S1) == {"stsb"}
    for name, row in TABLE_S1.items():
        task = TASKS[name]
        assert (row.learning_rate, row.betas, row.epsilon) == (
            task.learning_rate,
            task.betas,
            task.eps,
        )
        assert (row.weight_decay, row.epochs) == (task.weight_decay, task.epochs)


def test_what_does_not_add_up_stands_below_its_table():
    throughput, cost = throughput_part([]), cost_part([])
    [first], [second] = throughput_inconsistencies(), cost_inconsistencies()
    assert escape(first) in throughput and escape(first) not in cost
    assert escape(second) in cost and escape(second) not in throughput
    assert inconsistencies() == [first, second]


def test_without_a_run_every_counterpart_is_not_measured():
    assert finetuning_part([]).count("not measured") == len(TASKS)
    assert throughput_part([]).count("not measured") == 2 * len(TABLE_S2)
    assert cost_part([]).count("not measured") == len(TABLE_S3) / 2


def test_a_run_on_the_papers_hardware_stands_in_its_row(tmp_path):
    same = write_run(tmp_path / "same", device="NVIDIA A100-SXM4-80GB")
    other = write_run(tmp_path / "other")
    text = throughput_part(load_runs([same, other]))
    rows = [row for row in text.split("<tr>") if "1,000,02" in row]
    assert len(rows) == 2
    assert "RapidBERT-Base (paper)" in rows[0] and "1,100,000" in rows[0]
    assert ">other<" in rows[1] and "NVIDIA H200" in rows[1]


def test_the_speed_is_that_of_the_page_also_of_a_run_with_one_window(tmp_path):
    (run,) = load_runs([write_run(tmp_path / "short", steps=1, evals=False)])
    speed = f"{run.median('throughput/tokens_per_sec'):,.0f}"
    assert f">{speed}<" in throughput_part([run]), "as in the tile and the table of numbers"
    four = {"steps": 4, "evals": False, "device": "NVIDIA A100-SXM4-80GB"}
    sweep = load_runs([write_run(tmp_path / "sweep", **four)])
    assert ">1,000,003<" in throughput_part([], sweep), "of a sweep without the first window"
    assert ">1,000,002<" in throughput_part(sweep)


def test_a_score_is_reached_or_it_is_said_that_it_is_not():
    text = cost_part([Spent("mine", 82.5, 1.5, 30.0, "8 × NVIDIA H200")])
    assert text.count("mine: 82.5 after 1.50 h on 8 × NVIDIA H200, $30.00") == 2
    assert text.count("mine: not reached (82.5)") == 1


def test_other_finetuning_settings_stand_beside_the_papers():
    settings = {"learning_rate": 4e-4, "betas": [0.9, 0.98], "eps": 1e-6, "epochs": 2}
    series = summarize("mine", [result("cola", 17, 0.5, settings=settings)])
    text = finetuning_part([series])
    (row,) = [row for row in text.split("<tr>") if "0.0004" in row]
    assert ">mine<" in row and "0.9, 0.98" in row
    assert "not recorded" in row, "no weight decay in that record"
    older = finetuning_part([summarize("mine", [result("cola", 17, 0.5)])])
    assert older.count("not recorded") == 1, "finetuned, by a version that did not say how"
    assert older.count("not measured") == len(TASKS) - 1
