"""The way into every command: faults become messages and an exit status."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from recipes.common.errors import NO_SPACE, SYSTEM_REFUSALS, MachineError, SaveError, UserError
from recipes.common.launcher import end_with_launcher


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point; a `UserError` becomes a message per fault on stderr and its exit code."""
    end_with_launcher()
    # A console that cannot show a character gets its number: no output is worth the work.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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
        if error.errno not in SYSTEM_REFUSALS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        sys.exit(MachineError.status if error.errno in NO_SPACE else UserError.status)
