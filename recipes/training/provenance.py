"""What computed a result: versions of the software, and the revision of this repository."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from recipes.common.files import sha256
from recipes.common.places import ROOT

PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy", "sentencepiece", "triton")


def versions() -> dict[str, str]:
    """Return the versions of what computes, and of CUDA and NCCL where there are any."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]  # torch has no types here
        found["nccl"] = ".".join(map(str, nccl))
        found["driver"] = driver_version()
    return found


def device_name() -> str:
    """Return the GPU's name as the driver gives it, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def driver_version(root: Path = Path("/")) -> str:
    """Return the version of NVIDIA's driver, or "unknown".

    Args:
        root: where `sys` and `proc` are.
    """
    with suppress(OSError):
        return (root / "sys/module/nvidia/version").read_text("utf-8").strip()
    with suppress(OSError):
        text = (root / "proc/driver/nvidia/version").read_text("utf-8")
        if numbers := re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text):
            return numbers[0]
    with suppress(OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        asked = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
        return (asked.stdout.split() or ["unknown"])[0]
    return "unknown"


def sources_sha256(root: Path = ROOT) -> str:
    """Return a checksum of the code, by which a copy without git is found among the commits."""
    digest = hashlib.sha256()
    for path in sorted(
        path for part in ("model", "recipes") for path in (root / part).rglob("*.py")
    ):
        digest.update(f"{path.relative_to(root)} {sha256(path)}\n".encode())
    return digest.hexdigest()


@functools.cache
def git_revision() -> str:
    """Return the commit of this repository, with `+changes` on a dirty tree.

    "unknown" outside of git, and in a copy that lies in another repository. It is the commit at
    the first call: what is committed while a run goes on is not what it runs.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return "unknown"
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
