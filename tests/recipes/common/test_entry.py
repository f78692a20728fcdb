"""The way into every command: its exit status, its messages, its encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.common import entry
from recipes.common.entry import run
from recipes.common.errors import SaveError, UserError

ROOT = Path(__file__).resolve().parents[3]


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
        (TimeoutError(110, "another process has been", "a.md"), 2, "error: a.md: another process"),
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
    (tmp_path / "own.py").write_text(f"import recipes, recipes.common.entry\n{SHOW}\n")
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


def test_a_python_without_the_packages_is_told_where_they_are():
    for command in ("report.py", "pretrain.py", "plan.py"):
        ended = subprocess.run(
            [sys.executable, "-S", f"recipes/{command}"], cwd=ROOT, capture_output=True, text=True
        )
        assert ended.returncode == 2
        assert "not installed in this Python" in ended.stderr
        assert "./run.sh setup" in ended.stderr and "Traceback" not in ended.stderr
