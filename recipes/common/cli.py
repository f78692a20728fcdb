"""Command lines of the recipes: `_` and `-` alike, no abbreviations, one clear message per fault.

DeepSpeed users type `--deepspeed_config`, everybody else types `--deepspeed-config`; both work
for every option of every recipe. Abbreviations are off because a mistyped option must be an
error, never the nearest other option.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from recipes.common import numbers
from recipes.common.errors import UserError, given_again
from recipes.common.settings import claimed as claimed


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" tells a reader nothing; such options say in words what happens.
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class Range(numbers.Range):
    """A range as argparse wants it."""

    def __call__(self, text: str) -> float:
        try:
            return self.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Range:
    """Type of an option: a finite number from `low` to `high`, or above and below them."""
    return Range(low, high, above, below)


def whole(low: int, high: int) -> Range:
    """Type of an option: a whole number from `low` to `high`."""
    return Range(low, high, whole=True)


# Ranges that several commands share. Wider than anything sensible: they keep out what would
# overflow or vanish, fill the memory or never end.
SEED = whole(0, 2**63 - 1)
SEQUENCE_LENGTH = whole(8, 65_536)
COUNT = whole(1, 10**9)
COUNT_OR_NONE = whole(0, 10**9)
SHARE = number(0, 1)
PART = number(1e-9, 1, below=True)
MINUTES = number(1e-6, 525_600)  # a year
PRICE = number(0, 1_000_000)
GPU_MEMORY_GB = number(0.001, 10_000)
LEARNING_RATE = number(1e-12, 1_000_000)
WEIGHT_DECAY = number(0, 1)


def checked(check: Callable[[str], object]) -> Callable[[str], str]:
    """Type of an option: a text, kept as it is, about which `check` raises no ValueError."""

    def kept(text: str) -> str:
        try:
            check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return kept


class Options(argparse.Namespace):
    """What a command line says.

    `faults` are the values that were refused; the defaults stand in their place. It is no member
    of `vars()`, which is what a run records.
    """

    __slots__ = ("faults",)

    def __init__(self, **values: Any):
        super().__init__(**values)
        self.faults: list[str] = []


class ArgumentParser(argparse.ArgumentParser):
    """argparse with `_` and `-` alike in option names, that names all faults at once.

    Unknown options are told the nearest; refused values stand beside them.

    Args:
        refuse: end with the refused values; otherwise, if they are all that is wrong, they are left
            in `Options.faults`, for a command that names what else is wrong beside them.
    """

    def __init__(self, *args: Any, refuse: bool = True, **kwargs: Any):
        kwargs.setdefault("formatter_class", _HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self._refuse = refuse
        self._unknown: list[str] = []
        self._refused: list[tuple[argparse.Action, str]] = []
        # -inf and -1e5 are numbers as well, for their option to refuse.
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)

    def parse_known_args(  # type: ignore[override]  # argparse overloads it by types
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        words = list(sys.argv[1:] if args is None else args)
        # What follows a bare "--" is no option, whatever it looks like.
        options = words.index("--") if "--" in words else len(words)
        words[:options] = map(_dashed, words[:options])
        known = [option for option in self._option_string_actions if option.startswith("--")]
        # argparse complains about a missing --output before it looks at an --ouput. Those of a
        # subcommand are for its own parser to judge.
        self._unknown = [
            _explain(word, known)
            for word in words[: 0 if self._subparsers else options]
            if word.startswith("--") and word.partition("=")[0] not in known
        ]
        self._unknown += [
            given_again(name, times)
            for name, action in self._option_string_actions.items()
            if action.nargs == "+"
            and (times := sum(word.partition("=")[0] == name for word in words[:options])) > 1
        ]
        self._refused = []
        parsed, unknown = super().parse_known_args(words, namespace or Options())
        self._unknown += [_explain(word, known) for word in unknown]
        if self._unknown or (self._refused and self._refuse):
            self.error("")
        for action, fault in self._refused:
            parsed.faults.append(fault)
            setattr(parsed, action.dest, action.default)
            if action.default is argparse.SUPPRESS:
                delattr(parsed, action.dest)
        return parsed, []

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        try:
            if not text and action.option_strings:
                # No default may stand in its place: it is what an unset shell variable leaves.
                self._unknown.append(f"{'/'.join(action.option_strings)} '': is empty")
                return None
            return super()._get_value(action, text)
        except argparse.ArgumentError as error:
            name = "/".join(action.option_strings) or action.dest
            self._refused.append((action, f"{name} {shorten(text)}: {error.message}"))
            return None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if not action.option_strings:  # the name of a subcommand: nothing to go on with
                raise
            if value is not None:  # otherwise refused before
                self._refused.append((action, str(error).removeprefix("argument ")))

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        faults = [*self._unknown, *(fault for _, fault in self._refused), message]
        for fault in filter(None, dict.fromkeys(faults)):
            print(f"{self.prog}: error: {fault}", file=sys.stderr)
        sys.exit(UserError.status)


def shorten(text: str) -> str:
    """A value for a message: in quotes where a reader would not see it, cut where it is long."""
    text = text if len(text) <= 60 else f"{text[:60]}..."
    return text if text.isprintable() and text.strip() == text != "" else repr(text)


def _dashed(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _explain(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    return f"unknown argument {word!r}" + (f" (did you mean {near[0]}?)" if near else "")
