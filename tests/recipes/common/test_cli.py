import argparse
import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import benchmark
from recipes.common import cli, entry
from recipes.common.cli import ArgumentParser
from recipes.common.entry import run
from recipes.common.errors import SaveError, UserError

ROOT = Path(__file__).resolve().parents[3]


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


def test_options_that_a_command_gives_itself_are_named_with_what_to_do():
    ways = {"--seed": "give --seeds", "--dry-run": "", "--output": ""}
    words = ["--epochs", "2", "--seed=3", "--dry_run", "--seed", "4", "output"]
    assert cli.claimed(words, ways) == [
        "--seed after --: give --seeds",
        "--dry-run after --: give --dry-run before the --",
    ]


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
    assert "--micro-batch many: invalid int value" in capsys.readouterr().err


def named(said: str) -> list[str]:
    return [line.split("error: ")[1] for line in said.splitlines() if "error: " in line]


def test_all_that_is_wrong_with_a_command_line_is_said_at_once(capsys):
    made = ArgumentParser(prog="recipe")
    made.add_argument("--rate", type=cli.LEARNING_RATE, help="peak")
    made.add_argument("--gpus", type=cli.whole(1, 4096), nargs="+", help="numbers")
    made.add_argument("--kind", choices=("a", "b"), help="which")
    made.add_argument("--data", type=Path, required=True, help="directory")
    made.add_argument("--output", type=Path, help="directory")
    words = ["--rate", "-inf", "--gpus", "8", "1e3", "0", "--kind", "c", "--output", "", "--dtaa=x"]
    with pytest.raises(SystemExit) as error:
        made.parse_args(words)
    assert error.value.code == 2
    assert named(capsys.readouterr().err) == [
        "unknown argument '--dtaa=x' (did you mean --data?)",
        "--output '': is empty",
        "--rate -inf: must be a number from 1e-12 to 1,000,000",
        "--gpus 1e3: must be a whole number from 1 to 4,096; did you mean 1000?",
        "--gpus 0: must be a whole number from 1 to 4,096",
        "--kind: invalid choice: 'c' (choose from 'a', 'b')",
        "the following arguments are required: --data",
    ]


def test_a_command_that_finds_more_faults_gets_the_refused_values_with_the_defaults():
    made = ArgumentParser(refuse=False)
    made.add_argument("--rate", type=cli.LEARNING_RATE, default=0.5, help="peak")
    made.add_argument("--gpus", type=cli.whole(1, 9), default=argparse.SUPPRESS, help="numbers")
    options = made.parse_args(["--rate", "nan", "--gpus", "70"])
    assert [fault.partition(":")[0] for fault in options.faults] == ["--rate nan", "--gpus 70"]
    assert vars(options) == {"rate": 0.5}
    assert made.parse_args(["--rate", "1"]).faults == []


def test_an_empty_value_ends_every_command(capsys):
    """What an unset shell variable leaves: nothing may stand in its place."""
    made = ArgumentParser(refuse=False)
    made.add_argument("--output", type=Path, required=True, help="directory")
    made.add_argument("--rate", type=cli.LEARNING_RATE, default=0.5, help="peak")
    for words in (["--output", "", "--rate", "0"], ["--output=", "--rate=0"]):
        with pytest.raises(SystemExit):
            made.parse_args(words)
        said = named(capsys.readouterr().err)
        assert said[0] == "--output '': is empty" and said[1].startswith("--rate 0: must")


@pytest.mark.parametrize(
    ("type_", "text", "meant"),
    [
        (cli.whole(1, 10**6), "1e3", "1000"),
        (cli.whole(1, 10**6), "70k", "70000"),
        (cli.whole(1, 10**6), "1,000", "1000"),
        (cli.whole(1, 10**6), "1 000", "1000"),
        (cli.whole(1, 10**6), "64.0", "64"),
        (cli.whole(1, 10**6), "1.5", None),
        (cli.whole(1, 10**6), "1e400", None),
        (cli.whole(1, 10**6), "2m", None),
        (cli.whole(1, 10**6), "9" * 5000, None),
        (cli.PART, "30%", "0.3"),
        (cli.PART, "0,3", "0.3"),
        (cli.PART, "1", None),
        (cli.LEARNING_RATE, "1e-320", None),
        (cli.SHARE, "x", None),
    ],
)
def test_other_ways_of_writing_a_number_are_answered_with_ours(type_, text, meant):
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        type_(text)
    said = str(refused.value)
    assert (f"did you mean {meant}?" in said) if meant else ("did you mean" not in said)


def test_the_ends_of_a_range():
    assert [cli.SHARE("0"), cli.SHARE("1"), cli.whole(2, 3)("3")] == [0, 1, 3]
    below_one = cli.number(0, 1, below=True)
    assert below_one("0") == 0 and str(below_one) == "a number from 0 to below 1"
    for type_, text in ((cli.PART, "0"), (cli.PART, "1"), (below_one, "1"), (cli.PRICE, "-0.1")):
        with pytest.raises(argparse.ArgumentTypeError):
            type_(text)


class Caught(Exception):
    """Carries a command's parser out of it."""


RECIPES = sorted(p.stem for p in (ROOT / "recipes").glob("*.py") if "cli import" in p.read_text())


def parsers(recipe: str, monkeypatch) -> list[ArgumentParser]:
    """A command's own parser, and those of its subcommands, found where it reads its options."""

    def caught(made, arguments=None, namespace=None):
        raise Caught(made)

    modes = benchmark.MODES if recipe == "benchmark" else [""]
    found = []
    for mode in modes:
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", mode])
        with monkeypatch.context() as patch, pytest.raises(Caught) as stopped:
            patch.setattr(ArgumentParser, "parse_args", caught)
            importlib.import_module(f"recipes.{recipe}").main()
        found.append(stopped.value.args[0])
        for action in found[-1]._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += action.choices.values()
    return found


ODD = [
    "1e-320",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1e400",
    "-1",
    "-0.5",
    "0",
    "1e3",
    "",
    " ",
    "x",
    "0x10",
]
ODD += ["NaN", "Infinity", "1e308", "9" * 30, "70k", "70k-step", "1_0", "\u0663", "1\n2", "\0"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_number_of_every_command_has_a_finite_range(recipe, monkeypatch):
    for made in parsers(recipe, monkeypatch):
        actions = [action for action in made._actions if action.option_strings]
        # What is not a range would take nan and inf.
        assert not [a.option_strings for a in actions if a.type in (int, float, complex)]
        for action in (a for a in actions if isinstance(a.type, cli.Range)):
            low, high = action.type.low, action.type.high
            assert math.isfinite(low) and math.isfinite(high) and low < high
            for default in numbers(action.default):
                assert default in action.type, f"{action.option_strings}: default {default}"
            for odd in ODD:
                made._refused, made._unknown = [], []
                held = made._get_value(action, odd)
                if made._unknown:
                    assert odd == "" and held is None
                elif not made._refused:
                    assert math.isfinite(held) and low <= held <= high
                    assert type(held) is (int if action.type.whole else float)
                else:
                    ((_, fault),) = made._refused
                    assert fault.startswith(f"{action.option_strings[0]} {cli.shorten(odd)}: ")
                    assert "must be a " in fault


def numbers(default: object) -> list[float]:
    found = default if isinstance(default, list | tuple) else [default]
    return [value for value in found if isinstance(value, int | float)]


def test_the_commands_with_numbers_were_all_looked_at(monkeypatch):
    """So that the test above cannot pass by finding nothing."""
    found = {
        recipe: sum(
            isinstance(action.type, cli.Range)
            for made in parsers(recipe, monkeypatch)
            for action in made._actions
        )
        for recipe in ("cram",)
    }
    assert min(found.values()) >= 2


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
    program = "from recipes.common.entry import run; run(lambda: print('nobody reads this'))"
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
        entry.run(main)
    assert error.value.code == status
    assert said in capsys.readouterr().err


def test_other_system_errors_keep_their_traceback():
    def main() -> int:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        entry.run(main)


def test_a_misspelt_required_option_is_named(capsys):
    made = parser()
    made.add_argument("--data", required=True, help="directory")
    with pytest.raises(SystemExit) as error:
        made.parse_args(["--dtaa=x"])
    assert error.value.code == 2
    assert "--dtaa=x' (did you mean --data?)" in capsys.readouterr().err


NO_UTF8 = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
SHOW = "import sys, locale; print(sys.flags.utf8_mode, locale.getencoding(), sys.argv[1:])"


@pytest.mark.parametrize("start", [["recipes/report.py"], ["-m", "recipes.report"]])
def test_a_command_in_a_locale_without_utf8_works_in_utf8(start, tmp_path):
    """Its arguments, the libraries' files and what it prints."""
    place = tmp_path / "r\u00e9sultats \u4e2d"
    ended = subprocess.run(
        [sys.executable, *start, os.fsencode(place)],
        cwd=ROOT,
        env=os.environ | NO_UTF8,
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == 2, ended.stderr
    assert str(place) in ended.stderr.decode() and b"Traceback" not in ended.stderr


def test_nothing_but_a_command_is_started_again(tmp_path):
    (tmp_path / "own.py").write_text(f"import recipes, recipes.common.cli\n{SHOW}\n")
    environment = os.environ | NO_UTF8 | {"PYTHONPATH": str(ROOT)}
    for words in ([str(tmp_path / "own.py"), "a"], ["-c", f"import recipes; {SHOW}", "a"]):
        ended = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=60
        )
        assert ended.stdout.split()[0] == "0" and ended.stdout.endswith("['a']\n"), ended.stderr


def test_a_console_that_cannot_show_a_character_stops_nothing():
    program = "from recipes.common.entry import run; run(lambda: print('\\u4e2d \\u00e9 \\udc80'))"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (0, b"\\u4e2d \\xe9 \\udc80\n"), ended.stderr


@pytest.mark.parametrize("recipe", [path.stem for path in (ROOT / "recipes").glob("[!_]*.py")])
def test_every_command_sees_to_utf8_before_it_imports_libraries(recipe):
    lines = (ROOT / "recipes" / f"{recipe}.py").read_text("utf-8").splitlines()
    imports = [line.strip() for line in lines if line.strip().startswith(("import ", "from "))]
    ours = next(i for i, line in enumerate(imports) if line.split()[1].startswith("recipes"))
    for line in imports[:ours]:
        assert line.split()[1].partition(".")[0] in (*sys.stdlib_module_names, "__future__"), line


@pytest.mark.parametrize("words", [["--names", "a", "--names", "b"], ["--names=a", "--names=b"]])
def test_a_list_that_is_given_twice_does_not_lose_the_first(words, capsys):
    parser = ArgumentParser()
    parser.add_argument("--names", nargs="+")
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert "--names: is there 2 times and the last would win" in capsys.readouterr().err
    assert parser.parse_args(["--names", "a", "b"]).names == ["a", "b"]
