"""What a file system refuses, as a message that names what could not be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from recipes.common.errors import MachineError, refused


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Within it a model is written to `output`, by whatever library.

    Raises:
        UserError: the file system refuses; a MachineError where there is no space.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # numpy's, of a write that the disk had no room for
            raise MachineError(f"{output}: could not be written to its end: {error}") from None
        raise refused(error, error.filename or output) from None
    except SafetensorError as error:
        raise MachineError(f"{output}: {error}") from None
