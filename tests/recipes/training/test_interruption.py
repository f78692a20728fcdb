"""A console that goes away; the rest of interruption is tested where whole runs are."""

from __future__ import annotations

import io
import os

import pytest

from recipes.training.interruption import LastingConsole


def test_a_console_that_nobody_reads_any_more_is_no_error():
    reader, writer = os.pipe()
    stream = open(writer, "w", buffering=1)  # noqa: SIM115
    console = LastingConsole(stream)
    print("read", file=console, flush=True)
    assert os.read(reader, 100) == b"read\n"
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        print("lost", file=stream, flush=True)
    print("lost", file=console, flush=True)
    assert console.fileno() == writer
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_console_prints_what_it_is_given():
    text = io.StringIO()
    print("one", 2, file=LastingConsole(text), flush=True)
    assert text.getvalue() == "one 2\n"
