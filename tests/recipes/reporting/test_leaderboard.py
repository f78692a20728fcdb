"""The leaderboard: one line for a run, no line lost, commands that repeat it."""

from __future__ import annotations

import json
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from report_scenarios import result, write_run

from recipes.common.errors import UserError
from recipes.common.settings import parse, split_rest
from recipes.reporting.leaderboard import (
    PUBLISHED,
    add,
    finetuning_command,
    line_of,
    read,
    with_published,
)
from recipes.reporting.leaderboard_page import compares, figure, leaderboard_part
from recipes.reporting.runs import RecordedRun, load_runs
from recipes.reporting.scores import summarize
from recipes.tasks.glue_plan import Settings
from recipes.tasks.glue_tasks import TASKS

IDENTITY = {"model": "rapidbert-base", "seed": 17}


def run(directory: Path, **config) -> RecordedRun:
    return load_runs([write_run(directory, **{"identity": IDENTITY, **config})])[0]


def line(pretrained: RecordedRun | None, *results: dict, **more) -> dict:
    return line_of("mine", pretrained, summarize("mine", results), results, **more)


def all_eight(score: float = 0.8, **changes) -> list[dict]:
    return [result(task, 17, score, **changes) for task in TASKS]


def test_the_line_by_hand(tmp_path):
    made = line(run(tmp_path / "base", started="2026-11-25"), *all_eight(date="2026-11-26"))
    assert (made["score"], made["score_name"]) == (pytest.approx(80), "GLUE average")
    assert made["hardware"] == "8 × NVIDIA H200"
    # 40 seconds on 8 GPUs, at what the log says they cost.
    assert made["hours"] == pytest.approx(40 / 3600)
    assert made["gpu_hours"] == pytest.approx(8 * 40 / 3600)
    assert made["dollars"] == 20.0
    assert made["dates"] == {"pretraining": "2026-11-25", "finetuning": "2026-11-26"}
    assert made["git_revision"]["pretraining"] == "abc123"
    assert made["tasks"]["rte"] == {
        "mean": pytest.approx(80),
        "metric": "accuracy",
        "seeds": {17: pytest.approx(80)},
    }
    assert made["command"].startswith("deepspeed --num_gpus 8 recipes/pretrain.py ")
    assert " && python recipes/glue.py " in made["command"]


def test_what_is_not_known_is_left_open(tmp_path):
    lost = line(None, result("rte", 17, 0.7))
    assert lost["dollars"] is lost["gpu_hours"] is lost["hours"] is None
    on_cpu = line(run(tmp_path / "cpu", device="cpu"), result("rte", 17, 0.7))
    assert on_cpu["dollars"] is on_cpu["gpu_hours"] is None and on_cpu["hours"] > 0


def test_the_same_again_replaces_its_line_and_others_do_not(tmp_path):
    base = run(tmp_path / "base")
    first = line(base, result("rte", 17, 0.7))
    again = line(
        run(tmp_path / "again", git_revision="def456"),
        *all_eight(checkpoint_sha256="99", git_revision="def456"),
    )
    assert again["key"] == first["key"]
    others = [
        line(run(tmp_path / "seed", identity={**IDENTITY, "seed": 18}), result("rte", 17, 0.7)),
        line(run(tmp_path / "gpus", world_size=16), result("rte", 17, 0.7)),
        line(base, result("rte", 17, 0.7, stand_in=True)),
        line(None, result("rte", 17, 0.7)),
        line_of(
            "other name",
            base,
            summarize("mine", [result("rte", 17, 0.7)]),
            [result("rte", 17, 0.7)],
        ),
    ]
    board = tmp_path / "new" / "board.json"
    for one in (first, *others, again):
        add(board, one)
    assert [found["key"] for found in read(board)] == [first["key"], *(o["key"] for o in others)]
    assert len({found["key"] for found in read(board)}) == 6
    assert len(read(board)[0]["tasks"]) == 8


def test_a_command_that_was_typed_is_not_replaced_by_one_made_from_the_results(tmp_path):
    base, board = run(tmp_path / "base"), tmp_path / "board.json"
    results = [result("rte", 17, 0.5)]
    series = summarize("mine", results)
    typed = "python recipes/glue.py --checkpoint runs/base -- --max-train 64"
    add(board, line_of("base", base, series, results, typed))
    add(board, line_of("base", base, series, results))
    [kept] = read(board)
    assert kept["command"].endswith(typed) and kept["command_as_typed"]
    again = typed.replace("64", "32")
    add(board, line_of("base", base, series, results, again))
    assert read(board)[0]["command"].endswith(again)


def test_fewer_tasks_or_seeds_do_not_replace_more(tmp_path):
    base, board = run(tmp_path / "base"), tmp_path / "board.json"
    trial, whole = line(base, result("rte", 17, 0.5)), line(base, *all_eight())
    for first, second in ((trial, whole), (whole, trial)):
        board.unlink(missing_ok=True)
        said = [add(board, first), add(board, second)]
        [kept] = read(board)
        assert len(kept["tasks"]) == 8 and kept["score"] == pytest.approx(80)
        assert said[0] is None and (said[1] is None) == (second is whole)
    assert "cola, " in said[1] and "rte" not in said[1].split("which")[0].split("it has")[1]
    more = line(base, *all_eight(), result("rte", 18, 0.8))
    assert add(board, more) is None
    assert "1 seed more of rte" in str(add(board, whole))
    assert list(read(board)[0]["tasks"]["rte"]["seeds"]) == ["17", "18"]


def test_other_settings_of_finetuning_get_a_line_of_their_own(tmp_path):
    base, board = run(tmp_path / "base"), tmp_path / "board.json"
    tuned = {"learning_rate": 4e-4}
    lines = [line(base, *all_eight()), line(base, *all_eight(settings=tuned))]
    for one in lines:
        assert add(board, one) is None
    assert [found["key"] for found in read(board)] == [one["key"] for one in lines]
    assert "1 task" in line(base, result("rte", 17, 0.5, settings=tuned))["score_name"]
    assert line(base, result("rte", 17, 0.5, settings=tuned))["key"] == lines[1]["key"]


@pytest.mark.parametrize(
    "damage",
    ['"dates": "2025"', '"tasks": 3', '"score": NaN', '"score": true', '"hours": "2"']
    + [f'"score": {10**400}', '"dollars": -1.5', '"gpu_hours": Infinity'],
)
def test_fields_of_another_type_are_named(tmp_path, damage):
    board = tmp_path / "board.json"
    board.write_text(f'{{"lines": [{{"key": "a", "name": "b", "score": 1.0, {damage}}}]}}')
    with pytest.raises(UserError, match=re.escape(damage.split('"')[1] + " is ")):
        read(board)


def test_writers_at_the_same_time_lose_no_line(tmp_path):
    board = tmp_path / "board.json"
    made = [{"key": str(n), "name": str(n), "score": 1.0, "later": [n]} for n in range(60)]
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda one: add(board, one), made))
    assert sorted(read(board), key=lambda one: int(one["key"])) == made
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"lines": [{"key": "a"}]}', '{"lines": 3}', r'{"lines": [], "x": "\ud800"}'],
)
def test_a_file_that_is_no_leaderboard_stays_as_it_is(tmp_path, content):
    board = tmp_path / "board.json"
    board.write_text(content)
    with pytest.raises(UserError, match=re.escape(f"{board}: no leaderboard")):
        add(board, {"key": "1", "name": "a", "score": 1.0})
    assert board.read_text() == content


def test_the_published_points_are_whole():
    published = read(PUBLISHED)
    names = " ".join(one["name"] for one in published)
    for word in ("BERT-Base", "crammed", "ModernBERT", "Ettin", "MosaicBERT-Large"):
        assert word in names
    assert not any("RapidBERT" in one["name"] for one in published if one["published"])
    assert {79.6, 82.2, 83.4, 85.4} <= {one["score"] for one in published}
    for one in published:
        if not one["published"]:
            continue
        assert one["source"] and len({one["hours"] is None, one["gpu_hours"] is None}) == 1
        if one["hours"] is not None:
            count = int(one["hardware"].split(" ")[0])
            assert one["gpu_hours"] == pytest.approx(count * one["hours"])
        if one["dollars"] is not None:
            assert one["dollars"] == pytest.approx(2.5 * one["gpu_hours"], abs=0.01)


def test_only_glue_stands_beside_the_published(tmp_path):
    base = run(tmp_path / "base")
    whole, part = line(base, *all_eight()), line(base, *all_eight()[:3])
    made = line(base, *all_eight(stand_in=True))
    assert [compares(one) for one in (whole, part, made)] == [True, False, False]
    drawn = {
        axes.get_xlabel(): [
            point.get_xydata()[0].tolist() for point in axes.lines if point.get_marker() == "D"
        ]
        for axes in figure(with_published([whole])).axes
    }
    assert drawn["dollars"] == [[20.0, pytest.approx(80)]]
    assert drawn["GPU-hours"] == [[pytest.approx(8 * 40 / 3600), pytest.approx(80)]]
    text = leaderboard_part(with_published([{**made, "name": "<mine>"}]))
    ranked, others = text.split("Not GLUE", 1)
    assert "ModernBERT-base (published)" in ranked and "mine" not in ranked
    assert "&lt;mine&gt;" in others and "it adds no point" in ranked


def test_the_command_of_the_results_asks_for_these_results():
    changed = {"learning_rate": 4e-4, "weight_decay": 1e-3, "epochs": 2, "max_length": 256}
    results = [
        result(task, seed, 0.5, data="my data", settings=changed)
        for task in ("cola", "sst2")
        for seed in (17, 18)
    ]
    words = shlex.split(finetuning_command(results))
    own, handed_on = split_rest(words[2:])
    settings = parse(Settings, own)
    assert (settings.tasks, settings.seeds, settings.data) == (("cola", "sst2"), 2, Path("my data"))
    assert str(settings.checkpoint) == "runs/base"
    assert handed_on == ["--learning-rate", "0.0004", "--weight-decay", "0.001", "--epochs", "2"]
    published = [result(task, 17 + n, 0.5) for task in TASKS for n in range(TASKS[task].seeds)]
    assert finetuning_command(published) == "python recipes/glue.py --checkpoint runs/base"


def test_the_file_is_readable_json_and_keeps_other_fields(tmp_path):
    board = tmp_path / "board.json"
    board.write_text(
        json.dumps({"lines": [{"key": "x", "name": "n", "score": 2, "new": {"a": 1}}]})
    )
    add(board, {"key": "y", "name": "m", "score": 1.0})
    assert json.loads(board.read_text())["lines"][0]["new"] == {"a": 1}
