"""The commands. They read and write UTF-8, whatever the locale says.

The libraries open their own files in the locale's encoding, and so do paths and the console. In a
locale without UTF-8 a command therefore starts itself once more, in Python's UTF-8 mode.
"""

import codecs
import locale
import os
import sys
from importlib.util import find_spec
from pathlib import Path


def _is_command() -> bool:
    """Whether the process is a command of this folder, and not something that imports from it."""
    if sys.argv[:1] == ["-m"]:  # the module to run is being looked for
        return any(word.startswith(f"{__name__}.") for word in sys.orig_argv)
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return script is not None and Path(script).resolve().is_relative_to(Path(__file__).parent)


def _check_python() -> None:
    """End a command, with what to do, in a Python that cannot run it."""
    if sys.version_info < (3, 11):  # noqa: UP036  (who starts it is not asked by pip)
        fault = f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}"
    elif find_spec("tyro") is None:  # one of what `./run.sh setup` installs
        fault = "the packages that RapidBERT needs are not installed in this Python"
    else:
        return
    if _is_command():
        print(
            f"error: {fault} ({sys.executable}); in {Path(__file__).resolve().parents[1]}, "
            "./run.sh setup makes an environment, and source .venv/bin/activate leads into it",
            file=sys.stderr,
        )
        sys.exit(2)


def _start_in_utf8_mode() -> None:
    encodings = {
        codecs.lookup(name).name for name in (locale.getencoding(), sys.getfilesystemencoding())
    }
    # Asked for and not there: an interpreter that ignores its environment (-E, -I).
    if encodings == {"utf-8"} or os.environ.get("PYTHONUTF8") == "1" or not _is_command():
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


_check_python()
_start_in_utf8_mode()
