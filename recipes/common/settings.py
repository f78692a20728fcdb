"""Settings of a command: a frozen dataclass, from which its command line and its help come.

    @dataclass(frozen=True)
    class Settings:
        "Counts sheep."

        sheep: Annotated[int, COUNT] = 5
        "Sheep to count."

    settings = parse(Settings)

Every field is an option, `--log-every` and `--log_every` alike, never abbreviated; the sentence
under it is its help. Fields of a dataclass inside have a heading of their own in the help. Unknown
options are told the nearest one; values that cannot be are all named at once.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from recipes.common.errors import Faults, given_again
from recipes.common.numbers import LENGTHS, Range, number, whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Positional = tyro.conf.Positional[tuple[str, ...]]
"""A field that takes the words which belong to no option."""

Takes = Literal["none", "one", "list"]
Settings = TypeVar("Settings", bound="DataclassInstance")
Value = TypeVar("Value")


def parse(
    settings: type[Settings],
    words: Sequence[str] | None = None,
    *,
    program: str | None = None,
    faults: Faults | None = None,
    manual: str | None = None,
) -> Settings:
    """The settings that the words of a command line say.

    Args:
        settings: a frozen dataclass; its docstring describes the command.
        words: those after the program's name; this process's own if not given.
        program: the name that the help shows.
        faults: takes the values that were refused; their defaults then stand in the settings.
        manual: the command's docstring, with examples; the help begins with it.

    Raises:
        UserError: unknown and missing options, and without `faults` the values that were refused.
        SystemExit: after `--help`, with status 0.
    """
    words = [_dashed(word) for word in (sys.argv[1:] if words is None else words)]
    # The DeepSpeed launcher adds this option; the environment's LOCAL_RANK says the same.
    words = [word for word in words if not word.startswith("--local-rank=")]
    known = dict(_options(settings))
    wrong, missing = Faults(), list[str]()
    if helps := not {"-h", "--help"}.isdisjoint(words):
        print(f"{manual.strip()}\n\n" if manual else "", end="")
    else:
        words = _readable(words, known, wrong, others=Positional in _kinds(settings))
        # A word for each that is missing, so that the values of the others are looked at as well.
        given = {word.partition("=")[0] for word in words}
        missing = [name for name, each in known.items() if each.needed and name not in given]
        empty = [name for name in missing if f"{name}: is empty" in wrong]
        wrong += [f"{name} is needed" for name in missing if name not in empty]
        words += [f"{name}=?" for name in missing]
    result = tyro.cli(
        _explained(settings) if helps else settings,
        prog=program,
        args=words,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
        registry=_registry(),
        description="" if manual else None,
    )
    refused = [fault for name, fault in _refusals(result) if option(name) not in missing]
    if wrong or faults is None:
        wrong += refused
        wrong.stop()
    else:
        faults += refused
        result = _with_defaults(result)
    return result


def explain(settings: type[DataclassInstance], manual: str | None = None) -> None:
    """End with help, `manual` in front, if it is asked for, before imports that take long."""
    if {"-h", "--help"}.intersection(sys.argv):
        parse(settings, manual=manual)


def split_rest(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before a bare `--`, and those behind it: options for another command."""
    words = list(words)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def claimed(words: Sequence[str], ways: Mapping[str, str]) -> list[str]:
    """Faults: options behind a bare "--" that are not for the user to hand on.

    Args:
        words: what stands behind it, for another command.
        ways: what to do instead, by option; an empty one: the command gives it before the "--".
    """
    given = [_dashed(word).partition("=")[0] for word in words]
    return [
        f"{name} after --: {ways[name] or f'give {name} before the --'}"
        for name in dict.fromkeys(given)
        if name in ways
    ]


def flat(settings: DataclassInstance) -> dict[str, Any]:
    """Values by the names of their fields, those of dataclasses inside included."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        inside = dataclasses.is_dataclass(value) and not isinstance(value, type)
        values |= flat(value) if inside else {field.name: value}
    return values


def option(field: str) -> str:
    """The option that a field is: `--log-every` for `log_every`."""
    return "--" + field.replace("_", "-")


def number_in(range_: Range) -> PrimitiveConstructorSpec[Any]:
    """Says, in `Annotated[float, number_in(...)]`, which numbers a field takes."""
    shown = "{:d}" if range_.whole else "{:g}"
    return _words("N" if range_.whole else "X", range_.read, shown.format)


def one_of(*choices: str) -> PrimitiveConstructorSpec[str]:
    """Says, in `Annotated[str, one_of(...)]`, which words a field takes."""

    def read(word: str) -> str:
        if word not in choices:
            near = difflib.get_close_matches(word, choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"must be one of {', '.join(choices)}{hint}")
        return word

    return _words("{" + ",".join(choices) + "}", read, str)


def checked(check: Callable[[str], object], metavar: str = "TEXT") -> PrimitiveConstructorSpec[str]:
    """Says that a field takes the texts about which `check` raises no ValueError."""

    def read(word: str) -> str:
        check(word)
        return word

    return _words(metavar, read, str)


def help_of(settings: type) -> Mapping[str, str]:
    """The sentence under each field of a dataclass, by the field's name, those inherited first."""
    said: dict[str, str] = {}
    for owner in reversed(settings.__mro__[:-1]):
        [node] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(node, ast.ClassDef)
        said |= {
            field.target.id: inspect.cleandoc(text.value.value)
            for field, text in zip(node.body, node.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
    return said


class _Refused:
    """Stands in a field for a word that cannot be its value."""

    def __init__(self, word: str, reason: str):
        self.word = word
        self.reason = reason


def _words(
    metavar: str, read: Callable[[str], Value], show: Callable[[Any], str]
) -> PrimitiveConstructorSpec[Any]:
    """Say how a field is read of a word; what `read` refuses becomes a fault of the whole line."""

    def value(words: list[str]) -> Value | _Refused:
        try:
            return read(words[0])
        except ValueError as reason:
            return _Refused(words[0], str(reason))

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=value,
        is_instance=lambda value: not isinstance(value, tuple) and value is not None,
        str_from_instance=lambda value: [show(value)],
    )


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def literal(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str] | None:
        """Collects the faults of choices too, which tyro would end at the first of."""
        choices = get_args(info.type) if get_origin(info.type) is Literal else ()
        return one_of(*choices) if choices else None

    return registry


def _explained(settings: type[Any]) -> type[Any]:
    """The dataclass with the help of each option in one piece, and defaults only where they say
    something: "(default: None)" tells a reader nothing."""
    said, types = help_of(settings), get_type_hints(settings, include_extras=True)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for field in dataclasses.fields(settings):
        kind = types[field.name]
        if dataclasses.is_dataclass(kind):  # its own fields have their defaults
            fields.append((field.name, _explained(kind)))  # type: ignore[arg-type]  # a type
            continue
        text = " ".join(said.get(field.name, "").split())
        plain = field.default is None or field.default is False or field.default == ()
        silent = plain or field.default_factory is not dataclasses.MISSING
        kind = Annotated[kind, tyro.conf.arg(help=text, help_behavior_hint=_hint(silent))]
        same = dataclasses.field(default=field.default)
        if field.default_factory is not dataclasses.MISSING:
            same = dataclasses.field(default_factory=field.default_factory)
        fields.append((field.name, kind, same))
    made = dataclasses.make_dataclass(settings.__name__, fields, frozen=True, kw_only=True)
    made.__doc__ = settings.__doc__
    return made


def _hint(silent: bool) -> str | Callable[[str], str]:
    return "" if silent else "(default: {})".format


@dataclasses.dataclass(frozen=True)
class _Option:
    """What an option takes."""

    needed: bool
    """Whether it must be given."""
    values: Takes


_DASH = re.compile(r"-[^\d.\s]").match
"""Finds words that look like an option, as negative numbers and dashes in a text do not."""


def _kinds(settings: type[DataclassInstance]) -> list[Any]:
    return list(get_type_hints(settings, include_extras=True).values())


def _options(settings: type[DataclassInstance]) -> Iterator[tuple[str, _Option]]:
    """Yield every option with what it takes."""
    plain = get_type_hints(settings)
    for field, kind in zip(dataclasses.fields(settings), _kinds(settings), strict=True):
        if dataclasses.is_dataclass(kind):
            yield from _options(kind)  # type: ignore[arg-type]  # a type here, not an instance
        elif kind != Positional:
            missing = dataclasses.MISSING
            needed = field.default is missing and field.default_factory is missing
            inside = plain[field.name]
            many = get_origin(inside) is tuple
            values: Takes = "none" if inside is bool else "list" if many else "one"
            yield option(field.name), _Option(needed, values)


def _readable(
    words: Sequence[str], known: Mapping[str, _Option], wrong: Faults, *, others: bool
) -> list[str]:
    """Return the words that can be read, those of no option first; the rest become faults.

    Args:
        wrong: takes unknown options and words, values that are missing, and lists given twice.
        others: whether words of no option are taken.
    """
    before, groups = _by_option(words)
    kept: list[str] = []
    for name, values, equals in groups:
        if name not in known:  # what stands behind it is its own
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            said = f"{name}={values[0]}" if equals else name
            wrong.append(f"unknown argument {shorten(said)!r}{hint}")
            continue
        takes = known[name].values
        if takes == "none" and equals:
            wrong.append(
                f"{name}={shorten(values[0])}: takes no value; give {name} or leave it out"
            )
            continue
        count = {"none": 0, "one": 1, "list": len(values)}[takes]
        own, rest = values[:count], values[count:]
        if takes == "list":
            own, rest = [v for v in own if not _DASH(v)], [v for v in own if _DASH(v)]
        before += rest
        if takes != "none" and (not own or "" in own):
            wrong.append(f"{name}: is empty")
        elif takes == "one":
            kept.append(f"{name}={own[0]}")  # in one word, which may begin with a dash
        else:
            kept += [name, *own]
    lists = [name for name, *_ in groups if name in known and known[name].values == "list"]
    wrong += [given_again(name, n) for name, n in Counter(lists).items() if n > 1]
    strays = [word for word in before if not others or _DASH(word)]
    wrong += [f"unknown argument {shorten(word)!r}" for word in strays]
    return [word for word in before if word not in strays] + kept


def _by_option(words: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str], bool]]]:
    """Return the words before any option, and each option with those behind it.

    The flag of each says whether its first value stands behind an equals sign.
    """
    before: list[str] = []
    groups: list[tuple[str, list[str], bool]] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            groups.append((name, [value] if equals else [], bool(equals)))
        else:
            (groups[-1][1] if groups else before).append(word)
    return before, groups


def _refusals(settings: DataclassInstance) -> Iterator[tuple[str, str]]:
    for name, value in flat(settings).items():
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, _Refused):
                yield name, f"{option(name)} {shorten(each.word)}: {each.reason}"


def _with_defaults(settings: Settings) -> Settings:
    """The settings with the default where a word was refused."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes[field.name] = _with_defaults(value)
        elif any(isinstance(v, _Refused) for v in (value if isinstance(value, tuple) else [value])):
            given = field.default is not dataclasses.MISSING
            changes[field.name] = field.default if given else None
    return dataclasses.replace(settings, **changes)


def shorten(text: str) -> str:
    """A value for a message: in quotes where a reader would not see it, cut where it is long."""
    text = text if len(text) <= 60 else f"{text[:60]}..."
    return text if text.isprintable() and text.strip() == text != "" else repr(text)


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


# Kinds of fields that several commands share. Their ranges are wider than anything sensible: they
# keep out what would overflow or vanish, fill the memory or never end.
Seed = Annotated[int, number_in(whole(0, 2**63 - 1))]
SequenceLength = Annotated[int, number_in(LENGTHS)]
Count = Annotated[int, number_in(whole(1, 10**9))]
CountOrNone = Annotated[int, number_in(whole(0, 10**9))]
Share = Annotated[float, number_in(number(0, 1))]
Part = Annotated[float, number_in(number(1e-9, 1, below=True))]
Minutes = Annotated[float, number_in(number(1e-6, 525_600))]  # a year
Price = Annotated[float, number_in(number(0, 1_000_000))]
GpuMemoryGb = Annotated[float, number_in(number(0.001, 10_000))]
LearningRate = Annotated[float, number_in(number(1e-12, 1_000_000))]
WeightDecay = Annotated[float, number_in(number(0, 1))]
