"""A command line from a frozen dataclass: what is read, and that all faults are named at once."""

from __future__ import annotations

import ast
import importlib
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest

from recipes.common.errors import Faults, UserError
from recipes.common.numbers import number
from recipes.common.settings import (
    Count,
    LearningRate,
    Positional,
    claimed,
    flat,
    help_of,
    number_in,
    one_of,
    option,
    parse,
    split_rest,
)

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Science:
    """What decides the result."""

    model: Annotated[str, one_of("base", "large")]
    """Size of the model."""
    documents: Literal["split", "truncate"] = "split"
    """What becomes of long documents."""
    learning_rate: LearningRate | None = None
    """Peak; by size if not given."""
    export_at: tuple[Annotated[float, number_in(number(0, 1, above=True))], ...] = ()
    """Shares of the run."""


@dataclass(frozen=True)
class Settings:
    """Counts sheep."""

    output: Path
    """Directory of the flock."""
    science: Science
    input: tuple[str, ...] = ()
    """Files."""
    log_every: Count = 10
    """Steps."""
    dry_run: bool = False
    """Looks only."""


MINIMAL = ["--output", "out", "--model", "base"]


def test_every_field_is_an_option_with_its_default():
    settings = parse(Settings, MINIMAL)
    assert settings == Settings(Path("out"), Science("base"))
    assert flat(settings) == {
        "output": Path("out"),
        "model": "base",
        "documents": "split",
        "learning_rate": None,
        "export_at": (),
        "input": (),
        "log_every": 10,
        "dry_run": False,
    }


def test_dashes_and_underscores_equals_signs_lists_and_flags():
    words = ["--log_every=3", "--learning-rate", "1e-4", "--export_at", "0.25", "0.5"]
    settings = parse(Settings, [*MINIMAL, *words, "--input", "a", "b", "--dry_run"])
    assert (settings.log_every, settings.dry_run, settings.input) == (3, True, ("a", "b"))
    assert settings.science.learning_rate == 1e-4 and settings.science.export_at == (0.25, 0.5)


def test_what_the_deepspeed_launcher_adds_is_passed_over():
    assert parse(Settings, ["--local_rank=1", *MINIMAL]) == parse(Settings, MINIMAL)


def faults_of(*words: str) -> list[str]:
    with pytest.raises(UserError) as refused:
        parse(Settings, words)
    return list(refused.value.faults)


def test_unknown_missing_and_impossible_are_named_together():
    words = ("--outpt", "o", "--model", "bas", "--log-every", "1e3", "--export-at", "0.2", "x", "2")
    assert faults_of(*words) == [
        "unknown argument '--outpt' (did you mean --output?)",
        "--output is needed",
        "--model bas: must be one of base, large; did you mean base?",
        "--export-at x: must be a number above 0, up to 1",
        "--export-at 2: must be a number above 0, up to 1",
        "--log-every 1e3: must be a whole number from 1 to 1,000,000,000; did you mean 1000?",
    ]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "-1", "0", "ten"])
def test_a_number_out_of_its_range_is_refused(value):
    [fault] = faults_of(*MINIMAL, "--learning-rate", value)
    assert fault.startswith(f"--learning-rate {value}: must be a number from 1e-12 to 1,000,000")


@pytest.mark.parametrize("words", [["--output="], ["--output", ""]])
def test_an_empty_value_is_what_an_unset_variable_leaves(words):
    assert faults_of(*words, "--model", "base") == ["--output: is empty"]


def test_words_that_cannot_be_read_are_named_beside_all_other_faults():
    words = ("stray", "--log-every", "--dry-run=no", "--documents", "split", "2", "--model", "bas")
    assert faults_of(*words, "--input", "a", "--output") == [
        "--log-every: is empty",
        "--dry-run=no: takes no value; give --dry-run or leave it out",
        "--output: is empty",
        "unknown argument 'stray'",
        "unknown argument '2'",
        "--model bas: must be one of base, large; did you mean base?",
    ]
    assert faults_of(*MINIMAL, "-x", "--dry-run", "y", "--input", "a", "-z") == [
        "unknown argument '-x'",
        "unknown argument 'y'",
        "unknown argument '-z'",
    ]
    with pytest.raises(UserError, match="unknown argument '-x'"):
        parse(Said, ["a", "-x"])
    assert parse(Said, ["- a", "-5 sheep"]).words == ("- a", "-5 sheep")


def test_a_value_may_begin_with_a_dash():
    assert parse(Settings, ["--output", "-x", "--model", "base"]).output == Path("-x")


def test_an_abbreviation_is_no_option():
    assert faults_of(*MINIMAL, "--log", "3") == [
        "unknown argument '--log' (did you mean --log-every?)"
    ]


def test_refused_values_can_be_named_beside_other_faults():
    faults = Faults(["another"])
    settings = parse(Settings, [*MINIMAL, "--log-every", "0", "--documents", "spit"], faults=faults)
    assert (settings.log_every, settings.science.documents) == (10, "split")
    assert [fault.partition(":")[0] for fault in faults] == [
        "another",
        "--documents spit",
        "--log-every 0",
    ]


def test_help_shows_every_option_with_its_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Settings, ["--help"], program="count.py")
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field, text in (help_of(Settings) | help_of(Science)).items():
        assert f"--{field.replace('_', '-')}" in said and text in said
    assert "default: None" not in said and "default: False" not in said
    assert "(default: 10)" in said and "(required)" in said
    assert "Counts sheep." in said and "What decides the result." in said


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_the_help_of_a_command_is_a_manual_with_an_example(path, capsys):
    """What each command hands to `parse`, read from its source: importing all takes a minute."""
    source = path.read_text()
    manual = ast.get_docstring(ast.parse(source))
    assert re.search(rf"recipes/{path.name} |run\.sh {path.stem} ", manual)
    if "parse(Settings" not in source:
        return  # its words have settings each
    assert "manual=__doc__" in source
    with pytest.raises(SystemExit):
        parse(Settings, ["--help"], manual=manual)
    said = capsys.readouterr().out
    assert said.startswith(f"{manual}\n\nusage: ") and "Counts sheep." not in said


def test_words_behind_a_bare_dash_are_for_another_command():
    assert split_rest(["--a", "--", "--b", "--", "c"]) == (["--a"], ["--b", "--", "c"])
    assert split_rest(["--a"]) == (["--a"], [])


@pytest.mark.parametrize("words", [["--input"], ["--input", "--log-every", "3"]])
def test_a_list_without_values_is_what_an_unset_variable_leaves(words):
    assert faults_of(*MINIMAL, *words) == ["--input: is empty"]


@pytest.mark.parametrize("words", [["--input", "a", "--input", "b"], ["--input=a", "--input=b"]])
def test_a_list_that_is_given_twice_does_not_lose_the_first(words):
    [fault] = faults_of(*MINIMAL, *words)
    assert fault.startswith("--input: is there 2 times and the last would win")
    assert parse(Settings, [*MINIMAL, "--input", "a", "b"]).input == ("a", "b")


def test_options_that_a_command_gives_itself_are_named_with_what_to_do():
    ways = {"--seed": "give --seeds", "--dry-run": "", "--output": ""}
    words = ["--epochs", "2", "--seed=3", "--dry_run", "--seed", "4", "output"]
    assert claimed(words, ways) == [
        "--seed after --: give --seeds",
        "--dry-run after --: give --dry-run before the --",
    ]


def test_the_command_line_is_the_default_and_stays_as_it_is(monkeypatch):
    words = ["recipe", "--model", "base", "--output=a_b/c_d", "--log_every", "5"]
    monkeypatch.setattr(sys, "argv", list(words))
    settings = parse(Settings)
    assert (settings.log_every, settings.output) == (5, Path("a_b/c_d"))
    assert sys.argv == words


@dataclass(frozen=True)
class Said:
    """Says words."""

    words: Positional = ()
    """Words to say."""
    times: Count = 1
    """Times."""


def test_words_of_no_option_can_be_a_field():
    assert parse(Said, ["a b", "--times", "2"]) == Said(("a b",), 2)
    assert parse(Said, ["--times", "2", "a", "b"]) == Said(("a", "b"), 2)
    assert parse(Said, []) == Said()
    with pytest.raises(UserError, match="unknown argument '--words'"):
        parse(Said, ["--words", "a"])


COMMANDS = sorted(
    path.stem
    for path in (Path(__file__).parents[3] / "recipes").glob("*.py")
    if "parse(Settings, " in path.read_text()
)
ODD = ["1e-320", "nan", "inf", "-inf", "1e400", "-1", "-0.5", "0", "1e3", " ", "x", "0x10"]
ODD += ["NaN", "Infinity", "1e308", "9" * 30, "70k", "70k-step", "1_0", "\u0663", "1\n2", "\0"]


def number_fields(settings: type) -> Iterator[tuple[str, Any, Any]]:
    """(name, what reads a word, default) of every field that is a number or has numbers."""
    for field in fields(settings):
        hint = get_type_hints(settings, include_extras=True)[field.name]
        if is_dataclass(hint):
            yield from number_fields(hint)
            continue
        if get_origin(hint) is not Annotated:  # a list, or a number or None
            hint = next(iter(get_args(hint)), hint)
        kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if kind in (int, float):
            known = hint is not kind  # else it would take nan and inf
            yield field.name, get_args(hint)[1] if known else None, field.default


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_of_every_command_has_a_finite_range(command):
    settings = importlib.import_module(f"recipes.{command}").Settings
    for name, spec, default in number_fields(settings):
        assert spec is not None, f"{option(name)}: any number; say which with number_in()"
        for given in default if isinstance(default, tuple) else (default,):
            if given is not None and given is not MISSING:
                assert spec.instance_from_str([str(given)]) == given
        for odd in ODD:
            read = spec.instance_from_str([odd])
            if isinstance(read, int | float):
                assert math.isfinite(read) and odd not in ("nan", "NaN", "x", " ", "1\n2")
            else:
                assert "must be a " in read.reason


def test_the_commands_with_numbers_are_found():
    """So that the test above cannot pass by finding nothing."""
    settings = importlib.import_module("recipes.prepare_data").Settings
    names = {name for name, _, _ in number_fields(settings)}
    assert {"vocab_size", "validation_fraction", "workers", "max_documents"} <= names
    assert {"prepare_data", "pretrain", "finetune", "glue", "plan", "cram"} <= set(COMMANDS)
