"""Faults of the input, the settings and the machine: one clear message each, all at once."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the last one: `ulimit -f`
# What the user mends, not us: no space, quota, read-only, no permission, another who does not end.
SYSTEM_REFUSALS = NO_SPACE | {errno.EROFS, errno.EACCES, errno.ETIMEDOUT}


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
    return MachineError(fault) if error.errno in NO_SPACE else UserError(fault)


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


def given_again(name: str, times: int) -> str:
    """The message that only the last list of several would count."""
    return f"{name}: is there {times} times and the last would win; give all values behind one"
