"""Wheels for a machine without a network: filled on one that has it, installed on the other.

    ./run.sh wheels --python 3.12 --output .whl
    WHEELS=.whl ./run.sh setup

They are what `pyproject.toml` asks for, in the versions of `constraints.txt`, and everything that
needs, for Linux on this machine's architecture. PyTorch (gigabytes with CUDA) is left out unless
asked for: the set-up then uses the one of the machine. What else is there already can be left out
too; `--have` takes the list that pip prints there:

    python3 -m pip list --format=freeze > there.txt
    ./run.sh wheels --python 3.12 --have there.txt --only deepspeed megatron-core datasets

pip cannot leave a package out of a resolution. So PyTorch takes part in it as an empty wheel, which
is thrown away afterwards. And pip applies the conditions of requirements
(`; python_version >= "3.12"`) to the Python that it runs on: what only the other one needs is found
here, and downloaded in a second round. Only the standard library and pip are needed.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.parser import Parser
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):  # run as a file: import from the repository root, not from recipes/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    import recipes  # noqa: F401  (first: it sees to UTF-8)

# pip brings its own copy. Importing pip itself would take setuptools' distutils from this process.
prefix = "" if find_spec("packaging") else "pip._vendor."
try:
    Requirement = import_module(f"{prefix}packaging.requirements").Requirement
except ImportError:
    sys.exit(f"{sys.executable} has no pip; set PYTHON to an interpreter that has")
canonicalize_name = import_module(f"{prefix}packaging.utils").canonicalize_name
Version = import_module(f"{prefix}packaging.version").Version
InvalidVersion = import_module(f"{prefix}packaging.version").InvalidVersion

from recipes.common.cli import ArgumentParser  # noqa: E402
from recipes.common.entry import run  # noqa: E402
from recipes.common.errors import UserError  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ONLY = ("deepspeed",)  # pure Python, but published without a wheel
THERE = "there"  # the local version of the empty wheel, which no index has
GLIBC = range(5, 29)  # the target's: 2.28, RHEL 8's, or newer


class Found(NamedTuple):
    """A package: its version, its requirements as its metadata state them, and its wheel."""

    version: str
    requires: list[str]
    path: Path | None = None


def project_requirements(root: Path = ROOT) -> dict[str, str]:
    """What `pyproject.toml` asks for by name, development tools included."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return {canonicalize_name(Requirement(line).name): line for line in listed}


def needed_to_run(root: Path = ROOT) -> list[str]:
    """What `pyproject.toml` asks for, without the development tools."""
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]


def read_pins(path: Path) -> dict[str, str]:
    """Version by package from lines `name==version`; other lines say nothing about versions.

    Raises:
        UserError: unreadable, or not one such line.
    """
    try:
        lines = [line.split("#")[0].strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    pairs = (line.split("==", 1) for line in lines if "==" in line)
    pins: dict[str, str] = {canonicalize_name(name.strip()): v.strip() for name, v in pairs}
    if not pins:
        raise UserError(f"{path}: no line like name==version; see pip list --format=freeze")
    return pins


def empty_wheel(directory: Path, name: str, version: str) -> None:
    """A wheel without contents and without requirements."""
    public = Version(version).public
    stem = f"{re.sub('[-.]+', '_', name)}-{public}+{THERE}"
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {public}+{THERE}\n"
    tags = "Wheel-Version: 1.0\nGenerator: rapidbert\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(directory / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", text)
        wheel.writestr(f"{stem}.dist-info/WHEEL", tags)
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def read_wheels(folder: Path) -> dict[str, Found]:
    """Version and requirements of every wheel in `folder`, by package.

    Raises:
        UserError: not a wheel, or a package twice; all faults at once.
    """
    found: dict[str, Found] = {}
    faults = []
    for path in sorted(folder.glob("*.whl")):
        try:
            with zipfile.ZipFile(path) as wheel:
                (name,) = (
                    n for n in wheel.namelist() if re.match(r"[^/]+\.dist-info/METADATA$", n)
                )
                text = Parser().parsestr(wheel.read(name).decode())
        except (zipfile.BadZipFile, ValueError, OSError):
            faults.append(f"{path}: not a wheel; remove it and fill the folder again")
            continue
        package = canonicalize_name(text["Name"])
        if package in found:
            faults.append(f"{path}: {package} {found[package].version} is there as well; keep one")
        found[package] = Found(text["Version"], text.get_all("Requires-Dist") or [], path)
    if faults:
        raise UserError(*faults)
    return found


def installed(package: str, paths: Sequence[Path]) -> Found | None:
    """What the directories `paths`, in this order, have of a package."""
    for distribution in metadata.distributions(name=package, path=list(map(str, paths))):
        return Found(distribution.version, distribution.requires or [])
    return None


def follow(
    roots: Iterable[str],
    find: Callable[[str], Found | None],
    environment: Mapping[str, str],
) -> tuple[set[str], dict[str, tuple[str, str]]]:
    """Go through what `roots` require, and what that requires.

    Args:
        roots: requirements.
        find: version and requirements of a package, None where it is not there.
        environment: decides conditions, see `target_environment`.

    Returns:
        All packages met on the way; and by package, as requirement and as explanation, what is not
        there or not in a version that will do.
    """
    waiting = [(root, "", "") for root in roots]
    met: set[tuple[str, str]] = set()
    gaps: dict[str, tuple[str, str]] = {}
    for text, extra, by in waiting:  # grows on the way
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
            continue
        package = canonicalize_name(requirement.name)
        here = find(package)
        requirement.marker = None
        if here is None or not requirement.specifier.contains(here.version, prereleases=True):
            what = "not there" if here is None else f"there is {here.version}"
            gaps[package] = str(requirement), f"{by or 'the recipe'} needs {requirement}: {what}"
        for wanted in ("", *sorted(requirement.extras)):
            if here is not None and (package, wanted) not in met:
                met.add((package, wanted))
                waiting += [(line, wanted, package) for line in here.requires]
    return {package for package, _ in met}, gaps


def without_what_is_there(
    wheels: Mapping[str, Found],
    there: Mapping[str, str],
    roots: Sequence[str],
    environment: Mapping[str, str],
) -> tuple[set[str], list[str]]:
    """The wheels that a machine needs beside what it has, `there` by version.

    What it has in a version that will do it keeps, with everything that belongs to it.

    Returns:
        Packages to bring; explanations of what is neither in `wheels` nor there.
    """
    kept = set(there)
    while True:
        find = {**wheels, **{name: Found(there[name], []) for name in kept}}.get
        met, gaps = follow(roots, find, environment)
        newer = kept & gaps.keys() & wheels.keys()
        if not newer:
            return met - kept, [explanation for _, explanation in gaps.values()]
        kept -= newer


def target_environment(python: str, machine: str) -> dict[str, str]:
    """What conditions in requirements are about, for CPython `python` (3.12) on Linux."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def download(options: argparse.Namespace) -> int:
    """`wheels.py download`: fill the folder, check that it is complete, say what it weighs."""
    roots, there = resolve(options)
    machine = platform.machine()
    environment = target_environment(options.python, machine)
    pins = read_pins(ROOT / "constraints.txt")
    tags = ["manylinux2014", "manylinux2010", "manylinux1", "linux"]
    tags += [f"manylinux_2_{minor}" for minor in GLIBC]
    with tempfile.TemporaryDirectory() as temporary:
        made, fresh = Path(temporary, "made"), Path(temporary, "fresh")
        for directory in (made, fresh):
            directory.mkdir()
        if "torch" in there:
            empty_wheel(made, "torch", there["torch"])
            pins["torch"] = f"{Version(there['torch']).public}+{THERE}"
        for name in SOURCE_ONLY:
            if project_requirements()[name] in roots:
                pip("wheel", "--no-deps", "--wheel-dir", str(made), f"{name}=={pins[name]}")
        constraints = Path(temporary, "constraints.txt")
        constraints.write_text("".join(f"{name}=={pins[name]}\n" for name in pins), "utf-8")
        wanted = list(roots)
        while True:
            pip(
                *("download", "--dest", str(fresh), "--only-binary", ":all:"),
                *("--implementation", "cp", "--python-version", options.python),
                *(word for tag in tags for word in ("--platform", f"{tag}_{machine}")),
                *("--find-links", str(made), "--constraint", str(constraints), *wanted),
            )
            wheels = read_wheels(fresh)
            _, gaps = follow(roots, wheels.get, environment)
            others = [requirement for requirement, _ in gaps.values() if requirement not in wanted]
            if not others:
                break
            wanted += others
        bring, faults = without_what_is_there(wheels, there, roots, environment)
        options.output.mkdir(parents=True, exist_ok=True)
        for old in options.output.glob("*.whl"):
            old.unlink()
        for name in bring:
            path = wheels[name].path
            assert path is not None
            shutil.copy(path, options.output)
    files = sorted(options.output.glob("*.whl"), key=lambda path: -path.stat().st_size)
    for path in files:
        print(f"{path.stat().st_size / 1e6:8.1f} MB  {path.name}")
    print(f"{sum(path.stat().st_size for path in files) / 1e6:8.1f} MB  in {options.output}")
    print(f"left out: {', '.join(sorted(wheels.keys() - bring)) or 'nothing'}")
    if faults:
        raise UserError(*faults)
    print(f"complete for Python {options.python}: what they need is there, or left out")
    return 0


def resolve(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Requirements to download, and versions of what the other machine has.

    Raises:
        UserError: all faults of the options at once.
    """
    faults = []
    known = project_requirements()
    roots = needed_to_run()
    if options.only:
        unknown = [name for name in options.only if canonicalize_name(name) not in known]
        if unknown:
            faults.append(
                f"--only: {', '.join(unknown)} not in pyproject.toml; it has {', '.join(known)}"
            )
        roots = [known[name] for name in map(canonicalize_name, options.only) if name in known]
    if not re.fullmatch(r"3\.(1[1-9]|[2-9]\d)", options.python):
        faults.append(f"--python {options.python}: 3.11 or newer, like 3.12")
    if options.output.exists() and not options.output.is_dir():
        faults.append(f"--output {options.output}: is a file; name a directory")
    have: dict[str, str] = {}
    try:
        pins = read_pins(ROOT / "constraints.txt")
        have = read_pins(options.have) if options.have else {}
        if not options.with_torch:
            have = {"torch": pins["torch"], **have}
    except UserError as error:
        faults += error.faults
    for name, version in have.items():
        try:
            Version(version)
        except InvalidVersion:
            faults.append(f"--have {options.have}: {name}=={version} is no version")
    if faults:
        raise UserError(*faults)
    if options.with_torch:
        have.pop("torch", None)
    return roots, have


def pip(*arguments: str) -> None:
    """Run pip, quietly.

    Raises:
        UserError: it failed; what it said has been printed.
    """
    finished = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"],
        # DeepSpeed's build compiles its operations only where it is told to.
        env={**os.environ, "DS_BUILD_OPS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if finished.returncode:
        lines = finished.stdout.splitlines()
        first = next((n for n, line in enumerate(lines) if line.startswith("ERROR")), 0)
        raise UserError("pip failed:", *lines[first:])


def install(options: argparse.Namespace) -> int:
    """`wheels.py install`: into another environment; say what of the recipe's needs it lacks then.

    Run by an interpreter that has pip; PyTorch, if it is not among the wheels, is this one's.
    """
    wheels = read_wheels(options.folder)
    if not wheels:
        raise UserError(f"{options.folder}: no wheels in it; ./run.sh wheels fills it")
    own = Path(_ask(options.into, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    paths = [own]
    if "torch" not in wheels:
        torch = find_spec("torch")
        if torch is None or torch.origin is None:
            raise UserError(
                f"neither {options.folder} nor {sys.executable} has PyTorch; set PYTHON to an "
                "interpreter that has it, or fill the folder with --with-torch"
            )
        # The line of a .pth file goes to the end of the search path: the wheels come first.
        paths.append(Path(torch.origin).parents[1])
        (own / "torch-of-this-machine.pth").write_text(f"{paths[-1]}\n", "utf-8")
    # Also what is installed beside PyTorch: programs look for its commands in this environment.
    files = map(str, sorted(options.folder.glob("*.whl")))
    pip(
        "--python", options.into, "install", "--no-index", "--no-deps", "--ignore-installed", *files
    )
    python = _ask(options.into, "import sys; print('%d.%d' % sys.version_info[:2])")
    environment = target_environment(python, platform.machine())
    _, gaps = follow(needed_to_run(), partial(installed, paths=paths), environment)
    for _, explanation in gaps.values():
        print(f"not installed: {explanation}")
    return 0


def _ask(python: str, code: str) -> str:
    asked = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return asked.stdout.strip()


def main() -> int:
    parser = ArgumentParser(description="Wheels for a machine without a network.")
    modes = parser.add_subparsers(dest="mode", required=True, metavar="mode")
    mode = modes.add_parser("download", help="fill a folder, on a machine with a network")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    mode.add_argument("--python", default=here, help="version of the other machine")
    mode.add_argument("--output", type=Path, default=Path(".whl"), help="folder, emptied first")
    mode.add_argument("--only", nargs="+", help="these requirements instead of all to run it")
    mode.add_argument(
        "--have", type=Path, help="what the other machine has: pip list --format=freeze"
    )
    mode.add_argument("--with-torch", action="store_true", help="PyTorch as well, with CUDA")
    mode.set_defaults(action=download)
    mode = modes.add_parser("install", help="a folder's wheels, and this interpreter's PyTorch")
    mode.add_argument("folder", type=Path, help="that download has filled")
    mode.add_argument("--into", required=True, help="interpreter of the environment")
    mode.set_defaults(action=install)
    options = parser.parse_args()
    return options.action(options)


if __name__ == "__main__":
    run(main)
