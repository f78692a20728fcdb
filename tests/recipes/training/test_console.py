from __future__ import annotations

import io
import math
import sys

import pytest

from recipes.training.console import Console, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch) -> Terminal:
    """Standard output and error of this process, on one terminal that is wide enough."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    return screen


def seen(written: str) -> list[str]:
    """The lines that a terminal shows in the end: a carriage return writes over what was there."""
    rows: list[str] = []
    for row in written.replace("\x1b[A", "").split("\n"):
        line = ""
        for part in row.split("\r"):
            line = part + line[len(part) :]
        rows.append(line.rstrip())
    return [row for row in rows if row]


def test_the_lines_in_a_file(capsys):
    log = Console(1000)
    scalars = {
        "loss/train": 6.12345,
        "optimizer/lr": 5e-4,
        "optimizer/grad_norm": 1.2345,
        "throughput/tokens_per_sec": 1234567.8,
        "throughput/padding_share": 0.0123,
        "throughput/device/mfu": 0.4567,
        "time/step_seconds": 10.0,
        "cost/dollars": 3.456,
    }
    log.log(7, scalars)
    log.log(640, {"loss/train": math.nan})
    log.eval(640, {"loss/eval": 4.5, "accuracy/eval": 0.234, "loss/train": 9})
    log.eval(650, {"dev/pearson": 0.5, "dev/rmse": 5186.4799})  # as finetuning does
    log.close()
    full, bare, evaluation, finetuned = capsys.readouterr().out.splitlines()
    assert (
        full.split()
        == (
            "step 7/1000 loss 6.1235 tok/s 1,234,568 MFU 45.7% ETA 2h45m $ 3.46"
            " pad 1.2% lr 5.00e-04 grad 1.23"
        ).split()
    )
    assert bare.split() == "step 640/1000 loss nan tok/s - ETA - lr - grad -".split()
    assert full.index("tok/s") == bare.index("tok/s"), "columns stay where they are"
    assert evaluation == "step  640/1000  evaluation: loss 4.5000  accuracy 0.2340"
    assert finetuned == "step  650/1000  evaluation: dev/pearson 0.5000  dev/rmse 5186.48"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (187, "3m07s"),
        (3599.7, "1h00m"),
        (18_240, "5h04m"),
        (86_399, "23h59m"),
        (183_600, "2d03h"),
        (math.inf, "-"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_terminal_has_one_live_line_and_what_is_printed_stands_above_it(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    console = Console(100)
    for step in range(1, 61):
        if step % 20 == 0:
            scalars = {"loss/train": 6 - step / 20, "throughput/tokens_per_sec": 1000.0}
            console.log(step, scalars | {"time/step_seconds": 1.0})
        if step == 30:
            print("a checkpoint is there")
            print("and something is wrong", file=sys.stderr)
        console.step(step)
    live = terminal.getvalue().rpartition("\r")[2]
    assert "60%" in live and "step  60/100" in live and "ETA    40s" in live
    console.eval(60, {"loss/eval": 4.0})
    console.close()
    print("the end")
    lines = seen(terminal.getvalue())
    assert lines == [
        "a checkpoint is there",
        "and something is wrong",
        "step  60/100  evaluation: loss 4.0000",
        "step  60/100  loss   3.0000  tok/s      1,000  ETA    40s  lr        -  grad      -",
        "the end",
    ]


def test_the_streams_are_given_back_before_an_error_is_shown(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    console = Console(100)
    assert sys.stdout is not terminal
    console.close()
    console.close()
    assert sys.stdout is terminal and sys.stderr is terminal
    print("Traceback")
    assert seen(terminal.getvalue())[-1] == "Traceback"


def test_a_run_by_the_clock_shows_how_much_of_the_time_is_over(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    console = Console(None, budget_seconds=200.0)
    console.log(7, {"loss/train": 5.0, "time/training_seconds": 50.0})
    live = terminal.getvalue().rpartition("\r")[2]
    assert "25%" in live and "ETA  2m30s" in live
    console.close()


@pytest.mark.parametrize("budget", [None, 3600.0])
def test_eighty_columns_show_speed_utilisation_time_left_and_cost(monkeypatch, budget):
    terminal = on_a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    console = Console(None if budget else 70_000, budget)
    scalars = {
        "loss/train": 6.12345,
        "optimizer/lr": 5e-4,
        "optimizer/grad_norm": 1.2345,
        "throughput/tokens_per_sec": 1234567.8,
        "throughput/padding_share": 0.0123,
        "throughput/device/mfu": 0.4567,
        "time/step_seconds": 0.2,
        "time/training_seconds": 1800.0,
        "cost/dollars": 103.456,
    }
    console.log(43_210, scalars)
    live = terminal.getvalue().rpartition("\r")[2].removesuffix("\x1b[A").rstrip()
    assert len(live) <= 80 and "%|" not in live
    for part in ("loss 6.1235", "tok/s 1,234,568", "MFU 45.7%", "ETA ", "$ 103.46"):
        assert part in live
    console.close()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    console = Console(100)
    console.log(20, {"loss/train": 5.0})
    console.close()
    assert terminal.getvalue().count("\n") == 1 and "\r" not in terminal.getvalue()
