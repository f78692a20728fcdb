import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import cli
from recipes.cli import ArgumentParser, SaveError, UserError, run

ROOT = Path(__file__).resolve().parents[2]


def parser() -> ArgumentParser:
    made = ArgumentParser(prog="recipe")
    made.add_argument("--micro-batch", type=int, default=8, help="sequences per device")
    made.add_argument("--output", type=Path, help="directory")
    made.add_argument("--dry-run", action="store_true", help="print only")
    made.add_argument("names", nargs="*")
    return made


@pytest.mark.parametrize(
    "words",
    [
        ["--micro-batch", "3"],
        ["--micro_batch", "3"],
        ["--micro-batch=3"],
        ["--micro_batch=3"],
    ],
)
def test_dash_and_underscore_are_the_same(words):
    assert parser().parse_args(words).micro_batch == 3


@pytest.mark.parametrize("words", [["--output=a_b/c_d"], ["--output", "a_b/c_d"]])
def test_values_keep_their_underscores(words):
    assert parser().parse_args(words).output == Path("a_b/c_d")


def test_words_after_a_bare_double_dash_are_left_alone():
    assert parser().parse_args(["one_a", "--", "--two_b"]).names == ["one_a", "--two_b"]


def test_the_command_line_is_the_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe", "--micro_batch", "5"])
    assert parser().parse_args().micro_batch == 5
    assert sys.argv == ["recipe", "--micro_batch", "5"]


def test_subcommands_take_both_spellings_too():
    top = ArgumentParser()
    top.add_subparsers(dest="mode").add_parser("input").add_argument("--micro-batch", type=int)
    assert top.parse_args(["input", "--micro_batch", "3"]).micro_batch == 3


def test_all_unknown_options_are_named_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(["--micro_bach", "--zzz=1"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "'--micro-bach' (did you mean --micro-batch?)" in message
    assert "'--zzz=1'" in message


def test_an_abbreviation_is_an_unknown_option(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--micro", "3"])
    assert "unknown argument '--micro'" in capsys.readouterr().err


def test_a_value_of_the_wrong_type_is_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(["--micro_batch", "many"])
    assert stopped.value.code == 2
    assert "--micro-batch: invalid int value: 'many'" in capsys.readouterr().err


def test_help_shows_defaults_that_say_something():
    text = parser().format_help()
    assert "(default: 8)" in text
    assert "None" not in text
    assert "False" not in text


@pytest.mark.parametrize(("status", "code"), [(None, None), (0, 0), (3, 3)])
def test_run_exits_with_the_status_of_main(status, code):
    with pytest.raises(SystemExit) as stopped:
        run(lambda: status)
    assert stopped.value.code == code


def test_a_user_error_is_one_line_per_fault_and_no_traceback(capsys):
    def main() -> None:
        raise UserError("no such file: a", "batch size 0: 1 is the least")

    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: no such file: a",
        "error: batch size 0: 1 is the least",
    ]


def test_a_programming_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


def test_a_closed_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    program = "from recipes.cli import run; run(lambda: print('nobody reads this'))"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        (OSError(28, "No space left on device", "runs/base/log.jsonl"), 74, "log.jsonl: No space"),
        (OSError(30, "Read-only file system", "runs"), 2, "error: runs: Read-only"),
        (SaveError("step 5 could not be written"), 74, "make room, then the same command"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_the_system_or_the_user_stops_is_said_in_a_line(fault, status, said, capsys):
    def main() -> int:
        raise fault

    with pytest.raises(SystemExit) as error:
        cli.run(main)
    assert error.value.code == status
    assert said in capsys.readouterr().err


def test_other_system_errors_keep_their_traceback():
    def main() -> int:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        cli.run(main)


def test_a_misspelt_required_option_is_named(capsys):
    made = parser()
    made.add_argument("--data", required=True, help="directory")
    with pytest.raises(SystemExit) as error:
        made.parse_args(["--dtaa=x"])
    assert error.value.code == 2
    assert "--dtaa=x' (did you mean --data?)" in capsys.readouterr().err
