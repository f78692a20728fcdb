"""The page of runs: what stands where, for one run and for several."""

from __future__ import annotations

from page_scenarios import Outline
from report_scenarios import result, write_run

from recipes.reporting.run_page import Found, page
from recipes.reporting.runs import load_runs
from recipes.reporting.scores import summarize
from recipes.tasks.glue_tasks import TASKS


def first_screen(text: bytes) -> str:
    return " ".join(Outline(text).text.split("Contents")[0].split("Loss in nats")[0].split())


def chance(score: float) -> dict:
    return {"score": score, "metrics": {}}


def test_the_first_screen_says_what_was_run_on_what_and_what_came_out(tmp_path):
    runs = load_runs([write_run(tmp_path / "base", total_steps=40, started="2026-11-25T10:00:00")])
    glue = [result(task, 17, 0.8, chance=chance(0.5)) for task in TASKS]
    scratch = [result(task, 17, 0.6, from_scratch=True) for task in TASKS]
    found = Found(runs, {"base": summarize("base", glue)}, {"base": summarize("none", scratch)})
    shown = first_screen(page(found))
    for words in (
        "rapidbert-base, 137.3 M parameters, on 8 × NVIDIA H200",
        "git revision abc123, started 2026-11-25 10:00 UTC",
        "held-out loss, 15% masked 5.000 nats 40.0% of the tokens right; unigram entropy 6.46",
        "GLUE average 80.0 chance 50.0; from random weights 60.0",
        "1,000,020 median; padding 2.0%",
        "MFU, 6N 40.0%",
        "cost of pretraining $20.00",
    ):
        assert words in shown
    assert "not finished" not in shown and "STAND-IN" not in shown


def test_a_run_that_goes_on_or_has_no_gpu_is_told_as_that(tmp_path):
    run = write_run(tmp_path / "base", evals=False, device="cpu", data={})
    shown = first_screen(page(Found(load_runs([run]), left_out=["x/log.jsonl: torn"])))
    for words in (
        "base is not finished: step 40 of 50",
        "held-out loss, 15% masked not measured unigram entropy not recorded",
        "GLUE not measured",
        "cost of pretraining no GPU",
        "Left out: x/log.jsonl: torn",
    ):
        assert words in shown


def test_runs_stand_side_by_side_whatever_they_are_called(tmp_path):
    names = ["_<b>&\"'$x$", "plain"]
    runs = load_runs([write_run(tmp_path / name) for name in names])
    glue = {name: summarize(name, [result("cola", 17, 0.5)]) for name in names}
    outline = Outline(page(Found(runs, glue)))
    assert "b" not in outline.elements
    # The heading, the table of the first screen, figures, scores, cost, tables, settings.
    for name in names:
        assert outline.text.count(name) > 8
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.references <= set(outline.ids)


def test_every_seed_and_the_control_are_in_the_table_and_the_paper_is_beside_them(tmp_path):
    runs = load_runs([write_run(tmp_path / "base")])
    glue = [result("cola", 17 + n, 0.5 + n / 10, chance=chance(0)) for n in range(3)]
    scratch = [result("cola", 17, 0.125, from_scratch=True)]
    found = Found(runs, {"base": summarize("base", glue)}, {"base": summarize("none", scratch)})
    text = page(found).decode()
    # Every table and figure of the appendix has a counterpart, and there is a style for paper.
    for words in ("Table S1", "Table S2", "Table S3", "Figure S1", "@media print"):
        assert words in text
    (row,) = [row for row in text.split("<tr>") if "50.0, 60.0, 70.0" in row]
    cells = [cell.split(">")[-1] for cell in row.split("</t")]
    assert cells[:7] == ["CoLA", "matthews", "60.0", "10.0", "50.0, 60.0, 70.0", "0.0", "12.5"]
