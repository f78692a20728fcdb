"""Command lines of the recipes: `_` and `-` alike, no abbreviations, one clear message per fault.

DeepSpeed users type `--deepspeed_config`, everybody else types `--deepspeed-config`; both work
for every option of every recipe. Abbreviations are off because a mistyped option must be an
error, never the nearest other option.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

Result = TypeVar("Result")


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
# What the user mends, not us: no space, quota, read-only, no permission.
_SYSTEM_REFUSALS = _NO_SPACE | {errno.EROFS, errno.EACCES}


class UserError(ValueError):
    """A fault of the input or the settings: shown as a message, without a traceback, exit code 2.

    Raise it with every fault found, one per item, so that a user mends them in one go.
    """

    def __init__(self, *faults: str):
        super().__init__("\n".join(faults))
        self.faults = faults

    status = 2
    """Exit code of the process."""


class MachineError(UserError):
    """Right settings that the machine cannot serve now: a full disk, a node out of reach.

    Exit code 74 (EX_IOERR of sysexits.h), upon which a SLURM job goes back into the queue.
    """

    status = 74


class SaveError(MachineError):
    """A checkpoint or an export could not be written; the older ones are untouched."""


def refused(error: OSError, where: object) -> UserError:
    """What the system did not let us do, as the user's to mend: a `MachineError` if by space."""
    fault = f"{where}: {error.strerror}"
    return MachineError(fault) if error.errno in _NO_SPACE else UserError(fault)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" tells a reader nothing; such options say in words what happens.
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class Faults(list[str]):
    """Everything found wrong before the work starts, to be said at once."""

    def attempt(self, check: Callable[[], Result]) -> Result | None:
        """What `check` returns, or None after noting what it found wrong."""
        try:
            return check()
        except UserError as error:
            self.extend(error.faults)
        except ValueError as error:
            self.append(str(error))
        return None

    def stop(self) -> None:
        """Raises UserError if anything was found."""
        if self:
            raise UserError(*self)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with `_` and `-` alike in option names; unknown options are told the nearest."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", _HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self._misspelt: list[str] = []

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        # What follows a bare "--" is no option, whatever it looks like.
        options = words.index("--") if "--" in words else len(words)
        words[:options] = map(_dashed, words[:options])
        return super().parse_known_args(words, namespace)

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        known = [option for option in self._option_string_actions if option.startswith("--")]
        options = words[: words.index("--")] if "--" in words else words
        # argparse complains about a missing --output before it looks at an --ouput.
        self._misspelt = [
            _explain(word, known)
            for word in options
            if word.startswith("--") and _dashed(word).partition("=")[0] not in known
        ]
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error("; ".join(_explain(word, known) for word in unknown))
        return parsed

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            message = "; ".join([*self._misspelt, message])
        super().error(message)


def _dashed(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _explain(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    return f"unknown argument {word!r}" + (f" (did you mean {near[0]}?)" if near else "")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point; a `UserError` becomes a message per fault on stderr and its exit code."""
    try:
        status = main()
        sys.stdout.flush()  # here, where a closed pipe is caught, not at interpreter shutdown
        sys.exit(status)
    except UserError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        if isinstance(error, SaveError):
            print("make room, then the same command goes on from what is whole", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # What is still buffered has no reader; shutdown would try to write it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in _SYSTEM_REFUSALS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        sys.exit(MachineError.status if error.errno in _NO_SPACE else UserError.status)
